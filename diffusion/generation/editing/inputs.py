"""Pictures to edit: picture files, images of a run's test set, and masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion.generation.conditions import array
from diffusion.generation.pipeline import Pipeline
from diffusion.support.scaling import WORDS, Scaling, channels_first
from diffusion.support.specs import suggest

if TYPE_CHECKING:
    from diffusion.data import ImageData  # needs Lightning

MASKS = {"left": 0.5, "right": 0.5, "top": 0.5, "bottom": 0.5, "center": 0.5, "random": 0.5}  # and their fractions
MODES = {1: "greyscale", 3: "RGB", 4: "RGBA"}


class Inputs(NamedTuple):
    """Pictures to edit.

    Attributes:
        images: x_0 (B, C, H, W).
        y: their labels (B,) or contexts (B, D), if known.
        source: a description of their origin.
    """

    images: Tensor
    y: Tensor | None
    source: str


def from_files(pipeline: Pipeline, paths: Sequence[str | Path]) -> Inputs:
    """Picture files, and .npy files of one or more images, of the model's size, channels and type.

    Raises:
        ValueError: a file that does not match the model's images.
    """
    read = [read_image(Path(p), pipeline.shape, pipeline.scaling) for p in paths]
    return Inputs(torch.cat(read), None, ", ".join(map(str, paths)))


def from_tests(pipeline: Pipeline, data: "ImageData", numbers: Sequence[int] | None, most: int) -> Inputs:
    """Images of the run's test set.

    Args:
        numbers: indices in the test set; None is the first of each class, `most` in total.
    Raises:
        ValueError: a number outside the test set.
    """
    try:
        images, y = data.store("test")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; or give your own pictures with --input FILE.png") from error
    firsts = range(min(len(y), most)) if pipeline.tokens else first_of_each(y, most)
    numbers = list(numbers or firsts)
    words = ",".join(map(str, numbers))
    if not all(0 <= k < len(images) for k in numbers):
        raise ValueError(f"numbers {words}: the test set has the numbers 0 .. {len(images) - 1}")
    known = y[numbers] if pipeline.conditional else None
    images = pipeline.scaling.encode(images.take(torch.tensor(numbers)))
    return Inputs(images, known, f"numbers {words} of the test set")


def first_of_each(y: Tensor, most: int) -> list[int]:
    """The indices of the first image of each class, then of the first others, `most` in total."""
    labels = y.argmax(1) if y.ndim > 1 else y
    firsts = [int((labels == c).nonzero()[0]) for c in labels.unique()]
    return (firsts + [k for k in range(min(len(y), most)) if k not in firsts])[:most]


def read_image(path: Path, shape: tuple[int, int, int], scaling: Scaling = Scaling()) -> Tensor:
    """The images of a file as x_0 (N, C, H, W): one of a PNG file, any number of a .npy file.

    Raises:
        ValueError: another size, number of channels or type than the model's.
    """
    if path.suffix != ".npy":
        if scaling.dtype != "uint8":
            raise ValueError(f"{path}: the model's images are {scaling.dtype}; give them as a .npy file")
        return scaling.encode(pixels(path, shape).permute(2, 0, 1)[None])
    read = array(str(path))
    read = channels_first(read[None] if read.ndim == 3 and read.shape[1:] != shape[1:] else read)
    if read.dtype != WORDS[scaling.dtype] or read.shape[1:] != shape or not len(read):
        wanted = f"{scaling.dtype} {shape}"
        raise ValueError(f"{path}: {read.dtype} {read.shape[1:]}, but the model's images are {wanted}")
    return scaling.encode(torch.from_numpy(np.array(read)))


def pixels(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The uint8 pixels (H, W, C) of a picture file."""
    with Image.open(path) as picture:
        array = np.array(picture.convert("RGB") if picture.mode == "P" else picture)
    C, H, W = shape
    got = array.shape[2] if array.ndim == 3 else 1
    if array.shape[:2] != (H, W):
        h, w = array.shape[:2]
        raise ValueError(f"{path}: {w}x{h} pixels, but the model's images are {W}x{H}; crop or scale it to {W}x{H}")
    if got != C or array.dtype != np.uint8:
        raise ValueError(
            f"{path}: {got} channels of {array.dtype}, but the model's images have {C} of uint8; "
            f"save it as 8-bit {MODES.get(C, f'with {C} channels')}"
        )
    return torch.from_numpy(array.reshape(H, W, C))


def given_mask(text: str, shape: tuple[int, int, int], seed: int) -> tuple[Tensor, str]:
    """The mask of pixels to regenerate, (1, H, W) bool, and its description.

    Args:
        text: left, right, top, bottom, center or random, with `:fraction` (of the width, of the height, of both for
            center, of the pixels for random); or a picture file, white where pixels are regenerated.
    Raises:
        ValueError: an unknown name, a fraction outside (0, 1], or a picture of another size.
    """
    name, _, amount = text.partition(":")
    H, W = shape[1:]
    if name not in MASKS:
        if not Path(text).suffix:
            raise ValueError(f"mask {text}: wanted {', '.join(MASKS)} or a picture file{suggest(name, list(MASKS))}")
        with Image.open(text) as picture:
            grey = torch.from_numpy(np.array(picture.convert("L")))
        if grey.shape != (H, W):
            raise ValueError(f"mask {text}: {grey.shape[1]}x{grey.shape[0]} pixels, but the images are {W}x{H}")
        mask = grey[None] > 127
    else:
        try:
            part = float(amount) if amount else MASKS[name]
        except ValueError:
            part = 0.0
        if not 0 < part <= 1:
            raise ValueError(f"mask {text}: wanted a fraction in (0, 1] after the colon, as in {name}:0.5")
        mask = named_mask(name, part, H, W, seed)
    if not mask.any():
        raise ValueError(f"mask {text}: the mask is empty; mark pixels white, or use a larger fraction")
    return mask, f"mask {text}, {float(mask.float().mean()):.0%} of the pixels regenerated"


def named_mask(name: str, part: float, H: int, W: int, seed: int) -> Tensor:
    """The mask of a name and fraction, (1, H, W) bool."""
    if name == "random":
        return torch.rand(1, H, W, generator=torch.Generator().manual_seed(seed)) < part
    h, w = round(part * H), round(part * W)
    top, left = (H - h) // 2, (W - w) // 2
    rows, columns = {
        "left": (slice(None), slice(0, w)), "right": (slice(None), slice(W - w, W)),
        "top": (slice(0, h), slice(None)), "bottom": (slice(H - h, H), slice(None)),
        "center": (slice(top, top + h), slice(left, left + w)),
    }[name]  # fmt: skip
    mask = torch.zeros(1, H, W, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask
