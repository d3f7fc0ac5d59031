"""Conditions of sampling: classes, mixtures of classes, vectors, and input images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion.denoiser.hints import Paired
from diffusion.generation.conditioning import repeated
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.sheets import Given, columns_of, examples
from diffusion.support.scaling import WORDS, Scaling, channels_first

EACH = 8  # pictures per row of `each`, unless a number is given
FEW = 16  # pictures of a model with a hint, unless a number is given
Mix = str | Mapping[str, float] | Sequence[float] | Tensor


class Wanted(NamedTuple):
    """n pictures, their conditions, and the columns of their grid; None is a square."""

    n: int
    given: Given
    columns: int | None


@dataclass(frozen=True)
class Asked:
    """Conditions by name and value.

    Attributes:
        label: class of all pictures, by number or name.
        labels: several classes, cycled through; "0,1,2" or a sequence.
        context: several mixes, cycled through: "hero=1,food=0.6", a mapping, a vector, or a .npy file of vectors.
        prompt: one text or several, cycled through, for a model that was trained with captions.
        between: pictures from each prompt to the next, all from the same noise; 0 for the prompts alone.
        each: n pictures for each class, label, mix or prompt.
        image: the model's input image: a .png, .npy or .npz file, or "test" for test images.
    """

    label: int | str | None = None
    labels: str | Sequence[int | str] | None = None
    context: Mix | Sequence[Mix] = ()
    prompt: str | Sequence[str] = ()
    between: int = 0
    each: bool = False
    image: str | None = None

    def resolve(self, pipeline: Pipeline, n: int | None, default: int, seed: int = 0, data: object = None) -> Wanted:
        """The pictures requested, with their conditions.

        Args:
            n: pictures; with `each`, per row. None: the number of labels or mixes, else `default`.
            seed: seed of the hints.
            data: an `ImageData`, for the image "test".
        Raises:
            ValueError: conditions that contradict each other, or that the model does not take.
        """
        if self.each and (self.image or pipeline.hint):
            raise ValueError("each: not for models that take an image; give labels and n")
        if self.each and self.label is not None:
            raise ValueError("each makes one row per label; give several as labels, or omit label")
        rows = self.rows(pipeline)
        if self.between:
            if self.each or self.image or pipeline.hint or n not in (None, len(rows)):
                raise ValueError(f"between: makes {len(rows)} pictures; leave out n, each and image")
            return Wanted(len(rows), Given(rows, same=True), self.between)
        if self.each:
            if rows is None and pipeline.tokens:
                raise ValueError("each: give prompts, e.g. prompt='a red cat'")
            if rows is None:
                rows = pipeline.in_turn(pipeline.num_classes or pipeline.context_dim or 1)
            if rows is None:
                raise ValueError("each: this model has no classes; give contexts, e.g. context FILE.npy")
            each = n or EACH
            return Wanted(each * len(rows), Given(rows.repeat_interleave(each, dim=0)), each)
        hinted = bool(pipeline.hint or self.image)
        several = rows is not None and len(rows) > 1
        n = n or (len(rows) if several else min(default, FEW) if hinted else default)
        y = None if rows is None else rows[torch.arange(n) % len(rows)]
        if hinted:
            given = hints(pipeline, self.image, n, seed, data)
            columns = columns_of(pipeline, 3 if self.image == "test" else 2)
            return Wanted(n, given if y is None else given._replace(y=y), columns)
        kinds = len(rows) if rows is not None else columns_of(pipeline)
        columns = kinds if kinds and 2 <= kinds <= 20 else None
        return Wanted(n, Given(pipeline.in_turn(n) if y is None else y), columns)

    def rows(self, pipeline: Pipeline) -> Tensor | None:
        """The requested labels (R,) or contexts (R, D), in order; None if there are none.

        Raises:
            ValueError: conditions that contradict each other, or that the model does not take.
        """
        mixes = [self.context] if isinstance(self.context, (str, Mapping)) else list(self.context)
        given = {"label": self.label is not None, "labels": self.labels is not None, "context": len(mixes) > 0}
        given["prompt"] = len(self.prompt) > 0 or self.prompt == ""
        names = [name for name, there in given.items() if there]
        if len(names) > 1:
            raise ValueError(f"{names[0]} and {names[1]} contradict each other; give one of them")
        if self.between and not given["prompt"]:
            raise ValueError("between: is between prompts; give two or more")
        if given["prompt"]:
            return pipeline.prompts(self.prompt, self.between)
        if mixes:
            if not pipeline.context_dim:
                takes = "takes labels, not mixes; use label" if pipeline.num_classes else "was trained without labels"
                takes = "takes text, not mixes; use prompt" if pipeline.tokens else takes
                raise ValueError(f"context: this model {takes}")
            return torch.cat([contexts(pipeline, mix) for mix in mixes])
        labels = self.labels.split(",") if isinstance(self.labels, str) else self.labels or ()
        labels = [self.label] if self.label is not None else labels
        labels = [label.strip() if isinstance(label, str) else label for label in labels]
        return torch.cat([pipeline.in_turn(1, label) for label in labels]) if labels else None


def contexts(pipeline: Pipeline, mix: Mix) -> Tensor:
    """Context vectors (N, D): of a mix such as "hero=1,food=0.6", of a mapping, a vector, or a .npy file.

    Raises:
        ValueError: not numbers, of another width, or a name unknown to the model.
    """
    if isinstance(mix, str) and mix.endswith(".npy"):
        return vectors(mix, array(mix), pipeline.context_dim)
    if not isinstance(mix, (str, Mapping)):
        return vectors(str(mix), np.asarray(mix), pipeline.context_dim)
    parts = [part.partition("=") for part in mix.split(",")] if isinstance(mix, str) else []
    amounts = mix.items() if isinstance(mix, Mapping) else [(name.strip(), value or 1) for name, _, value in parts]
    vector, seen = torch.zeros(1, pipeline.context_dim), set()
    for name, value in amounts:
        k = pipeline.number(name)
        try:
            vector[0, k] = amount = float(value)
        except ValueError:
            amount = math.nan
        if not math.isfinite(amount):
            raise ValueError(f"context {mix}: wanted a number after {name}=, got {value!r}")
        if k in seen:
            raise ValueError(f"context {mix}: {name} is given twice; give it once")
        seen.add(k)
    return vector


def vectors(name: str, found: np.ndarray, width: int) -> Tensor:
    """An array as context vectors (N, D) float32.

    Raises:
        ValueError: not finite numbers (N, D) or (D,).
    """
    found = np.atleast_2d(found)
    if found.dtype.kind not in "buif" or found.ndim != 2 or found.shape[1] != width:
        raise ValueError(f"context {name}: wanted numbers (N, {width}), got {found.dtype} {found.shape}")
    if not len(found) or not np.isfinite(found).all():
        raise ValueError(f"context {name}: wanted at least one vector, of finite numbers")
    return torch.from_numpy(found.astype(np.float32))


def array(file: str) -> np.ndarray:
    """The array of a .npy file; of a .npz file the array `images`, or the first one.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    try:
        read = np.load(file, allow_pickle=False)
        return read if isinstance(read, np.ndarray) else read["images" if "images" in read else read.files[0]]
    except (ValueError, EOFError, IndexError) as error:
        raise ValueError(f"{file}: wanted an array of numbers: {error}") from error


def hints(pipeline: Pipeline, image: str | None, n: int, seed: int, data: object) -> Given:
    """Hints for n pictures: of test images with their labels, or of a file's pictures, cycled through.

    Raises:
        ValueError: the model requires an image and none was given, takes none, or the file's images do not fit.
    """
    if pipeline.hint is None:
        raise ValueError("image: this model was trained without a hint, so it takes no image")
    kind, (C, H, W) = type(pipeline.hint).__name__, pipeline.shape
    if not image:
        raise ValueError(
            f"this model makes {H}x{W} pictures from an input image ({kind}): give one with --image FILE, "
            "or --image test for the run's test images"
        )
    if image == "test":
        return examples(pipeline, data, n, seed)
    try:
        paired = isinstance(pipeline.hint, Paired)
        read = read_pairs(image, pipeline.hint) if paired else read_pictures(image, C, pipeline.scaling)
        hint = pipeline.hint.read(read, pipeline.shape)
    except ValueError as error:
        raise ValueError(f"image {image}: {error}") from error
    return Given(image=repeated(hint, n))


def read_pairs(file: str, hint: Paired) -> Tensor:
    """Raw pictures (N, K, h, w) of an array file, for a model of paired images; one picture may lack N, grey K.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is of another kind.
    """
    if Path(file).suffix not in (".npy", ".npz"):
        raise ValueError("wanted a .npy or .npz file, or the word test")
    images, (K, h, w) = array(file), hint.size
    if images.shape in ((K, h, w), (h, w, K), (h, w)):
        images = images[None]
    if images.ndim not in (3, 4) or not len(images):
        raise ValueError(f"expected {K}x{h}x{w}, one or more, got {images.dtype} {images.shape}")
    images = images if images.shape[1:] == hint.size else channels_first(images, "HWC")
    return torch.from_numpy(np.array(images))


def read_pictures(file: str, channels: int, scaling: Scaling = Scaling()) -> Tensor:
    """Pictures (N, C or C + 1, H, W) of a file as x_0; the alpha channel of a PNG comes last, above 0 if opaque.

    Only 8-bit pictures are read from a PNG; others from arrays of the data's type, with a mask as an additional channel
    that is above 0 where the picture is known.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has other contents.
    """
    if Path(file).suffix == ".png" and scaling.dtype == "uint8":
        with Image.open(file) as picture:
            alpha = "A" if picture.has_transparency_data else ""
            images = np.asarray(picture.convert(("L" if channels == 1 else "RGB") + alpha))[None]
        images = images.reshape(*images.shape[:3], -1)
    elif Path(file).suffix in (".npy", ".npz"):
        images = array(file)
        images = images[None] if images.ndim == 3 else images
    else:
        files = ".png, .npy or .npz" if scaling.dtype == "uint8" else f".npy or .npz (of {scaling.dtype})"
        raise ValueError(f"wanted a {files} file, or the word test")
    if images.dtype != WORDS[scaling.dtype] or images.ndim != 4 or not len(images):
        raise ValueError(f"wanted {scaling.dtype} (N, H, W, C), got {images.dtype} {images.shape}")
    raw = torch.from_numpy(np.array(channels_first(images)))
    if scaling.dtype == "uint8":
        return scaling.encode(raw)
    return torch.cat([scaling.encode(raw[:, :channels]), raw[:, channels:].float().sign() * 2 - 1], dim=1)
