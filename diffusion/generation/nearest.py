"""The training images nearest to samples, in pixels."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion import pictures
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.request import Request
from diffusion.metrics.distances import neighbours
from diffusion.metrics.pixels import Pixels, Source
from diffusion.support.scaling import Scaling, arranged

if TYPE_CHECKING:
    from diffusion.data import ImageData  # needs Lightning

COLUMNS = 10  # samples beside each other, unless the conditions say otherwise
GAP = 1  # pixels between a sample and its neighbours, before enlarging


class Mirrored:
    """A source of images and, after them, some of them mirrored left to right, as `data.flip` shows them in training.

    Args:
        source: of N raw images.
        which: the numbers (M,) of those that are mirrored.
    """

    def __init__(self, source: Source, which: Tensor) -> None:
        self.source, self.numbers = source, torch.cat([torch.arange(len(source)), which])
        self.shape, self.dtype = source.shape, source.dtype
        self.sequential = getattr(source, "sequential", False)

    def __len__(self) -> int:
        return len(self.numbers)

    def flipped(self, index: Tensor) -> Tensor:
        """Whether images are mirrored ones."""
        return index >= len(self.source)

    def take(self, index: Tensor) -> Tensor:
        """The raw images (B, C, H, W) of some numbers."""
        raw = self.source.take(self.numbers[index])
        return torch.where(self.flipped(index)[:, None, None, None], raw.flip(-1), raw)

    def ahead(self, index: Tensor) -> None:
        """Announce the next images."""
        self.source.ahead(self.numbers[index])


class Nearest(NamedTuple):
    """The K training images nearest to each of n pictures, nearest first.

    Attributes:
        images: x_0 (n, K, C, H, W).
        distances: |x_0 - x_0'|, the root of the sum over all channels and pixels, (n, K) float64.
        index: numbers in the training split, (n, K), all different for one picture.
        mirrored: whether the image is nearest as its mirror image, (n, K).
    """

    images: Tensor
    distances: Tensor
    index: Tensor
    mirrored: Tensor

    def arrays(self, scaling: Scaling) -> dict[str, np.ndarray]:
        """The arrays of a file: `nearest` in the type and the units of the data, `distances`, `index`, `mirrored`."""
        raw = arranged(scaling.decode(self.images.flatten(0, 1)))
        raw = raw.reshape(*self.index.shape, *raw.shape[1:])
        found = {name: getattr(self, name).numpy() for name in ("distances", "index", "mirrored")}
        return {"nearest": raw} | found

    @property
    def words(self) -> str:
        """The distances to the nearest image in words."""
        first = self.distances[:, 0]
        k = int(first.argmin())
        return (
            f"distance to the nearest training image (L2 of x_0): median {float(first.median()):.3g}, "
            f"least {float(first[k]):.3g} (picture {k}, training image {int(self.index[k, 0])})"
        )


def training_images(request: Request, pipeline: Pipeline, k: int) -> Pixels:
    """The images that a run was trained on, see `seen`. Of a cascade they are those of its last stage.

    Nothing is downloaded.

    Args:
        k: neighbours, at most the number of images.
    Raises:
        FileNotFoundError: the run's configuration, or its data, are missing.
        ValueError: k out of range, an open pipeline instead of a run, or data of another shape.
    """
    from diffusion.data.recorded import open_shared  # needs Lightning

    stages = [request.run, *request.then]
    if any(isinstance(stage, Pipeline) for stage in stages):
        raise ValueError("nearest: an open pipeline does not know its data; give the run's directory or checkpoint")
    if k < 1:
        raise ValueError(f"nearest: wanted at least 1 training image per picture, got {k}")
    data = open_shared(stages, pipeline.class_names, **request.data)
    images = data.store("train")[0]
    if k > len(images):
        raise ValueError(f"nearest: wanted {k} training images per picture, and there are {len(images):,}")
    if tuple(images.shape) != tuple(pipeline.shape):
        theirs, ours = ("x".join(map(str, shape)) for shape in (images.shape, pipeline.shape))
        raise ValueError(f"nearest: the training images are {theirs} and the model's {ours}; give its own data")
    return seen(data, pipeline.scaling)


def seen(data: "ImageData", scaling: Scaling) -> Pixels:
    """The training images of a data set, and their mirror images where training has them, see `Mirrored`.

    Other changes of `data.augment` are left out.
    """
    images, y = data.store("train")
    which = torch.arange(len(images) if data.flip else 0)
    if data.flip and data.no_flip_classes:
        which = which[~torch.isin(y.argmax(1) if data.context else y, torch.tensor(data.no_flip_classes))]
    both = Mirrored(images, which)
    return Pixels(both, torch.arange(len(both)), scaling)


def nearest_images(x0: Tensor, train: Pixels, k: int) -> Nearest:
    """The k training images nearest to each picture x0 (n, C, H, W), which is rounded as files are.

    Args:
        train: all images of `seen`.
    """
    source, x0 = train.source, train.scaling.encode(train.scaling.decode(x0))
    distances, place = neighbours(x0, train, min(2 * k if len(source) > len(source.source) else k, len(source)))
    index = source.numbers[place]
    again = (index[:, :, None] == index[:, None]).tril(-1).any(2)  # of an image and its mirror image, the nearer counts
    first = again.int().argsort(dim=1, stable=True)[:, :k]
    distances, place, index = (v.gather(1, first) for v in (distances, place, index))
    images = train[place.flatten()].tensor().unflatten(0, place.shape)
    return Nearest(images, distances, index, source.flipped(place))


def sheet(pipeline: Pipeline, x0: Tensor, found: Nearest, columns: int | None = None) -> np.ndarray:
    """A picture (H', W', C) uint8 with one column per sample: on top the sample, below it its neighbours.

    Args:
        x0: samples (n, C, H, W).
        columns: samples beside each other; further ones follow below.
    """
    columns = min(columns or COLUMNS, len(x0))
    top = pipeline.picture(x0)
    kinds = [top, *(pipeline.picture(found.images[:, j]) for j in range(found.images.shape[1]))]
    missing = -len(x0) % columns
    kinds = [np.concatenate([v, np.full((missing, *v.shape[1:]), 128, np.uint8)]) for v in kinds]
    scale = max(1, round(640 / (columns * (top.shape[2] + 1))))
    parts = []
    for first in range(0, len(kinds[0]), columns):
        sample, *others = (v[first : first + columns] for v in kinds)
        parts += [pictures.grid(part, columns, scale=scale) for part in (sample, np.concatenate(others))]
        below, band = (np.full((n * scale, *parts[-1].shape[1:]), v, np.uint8) for n, v in ((GAP, 128), (2 * GAP, 255)))
        parts[-1:] = [below, parts[-1], band]
    return np.concatenate(parts[:-1])
