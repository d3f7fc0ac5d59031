"""The training images nearest to samples, in pixels."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion import pictures
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.request import Request
from diffusion.metrics.distances import neighbours
from diffusion.metrics.pixels import Pixels
from diffusion.support.scaling import Scaling, arranged

COLUMNS = 10  # samples beside each other, unless the conditions say otherwise
GAP = 1  # pixels between a sample and its neighbours, before enlarging


class Nearest(NamedTuple):
    """The K training images nearest to each of n pictures, nearest first.

    Attributes:
        images: x_0 (n, K, C, H, W).
        distances: |x_0 - x_0'|, the root of the sum over all channels and pixels, (n, K) float64.
        index: numbers in the training split, (n, K).
    """

    images: Tensor
    distances: Tensor
    index: Tensor

    def arrays(self, scaling: Scaling) -> dict[str, np.ndarray]:
        """The arrays of a file: `nearest` in the type and the units of the data, `distances` and `index`."""
        raw = arranged(scaling.decode(self.images.flatten(0, 1)))
        raw = raw.reshape(*self.index.shape, *raw.shape[1:])
        return {"nearest": raw, "distances": self.distances.numpy(), "index": self.index.numpy()}

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
    """The images that a run was trained on, as they are in the data: not augmented or mirrored.

    Of a cascade they are those of its last stage. Nothing is downloaded.

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
    images, _ = open_shared(stages, pipeline.class_names, **request.data).store("train")
    if k > len(images):
        raise ValueError(f"nearest: wanted {k} training images per picture, and there are {len(images):,}")
    if tuple(images.shape) != tuple(pipeline.shape):
        theirs, ours = ("x".join(map(str, shape)) for shape in (images.shape, pipeline.shape))
        raise ValueError(f"nearest: the training images are {theirs} and the model's {ours}; give its own data")
    return Pixels(images, torch.arange(len(images)), pipeline.scaling)


def nearest_images(x0: Tensor, train: Pixels, k: int) -> Nearest:
    """The k training images nearest to each picture x0 (n, C, H, W), which is rounded as files are."""
    distances, index = neighbours(train.scaling.encode(train.scaling.decode(x0)), train, k)
    return Nearest(train[index.flatten()].tensor().unflatten(0, index.shape), distances, index)


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
