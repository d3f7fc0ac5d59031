"""Grids of images, and PNG files."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.support.files import atomic


def grid(
    images: np.ndarray, columns: int | None = None, pad: int = 1, scale: int | None = None, width: int = 640
) -> np.ndarray:
    """One picture of many, row by row: uint8 (N, H, W, C) -> (H', W', C).

    Args:
        columns: images a row; the square root of N, rounded up, by default.
        pad: mid-grey pixels between images, before enlarging.
        scale: whole factor of enlargement by nearest neighbour; by default what makes the picture about `width` wide.
        width: pixels.
    """
    N, H, W, C = images.shape
    columns = min(columns or math.ceil(math.sqrt(N)), N)
    rows = math.ceil(N / columns)
    sheet = np.full((rows * (H + pad) + pad, columns * (W + pad) + pad, C), 128, np.uint8)
    for k, image in enumerate(images):
        top, left = pad + k // columns * (H + pad), pad + k % columns * (W + pad)
        sheet[top : top + H, left : left + W] = image
    return enlarge(sheet, scale or max(1, round(width / sheet.shape[1])))


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Nearest-neighbour enlargement of (H, W, C) by a whole factor."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def pillow(image: np.ndarray) -> Image.Image:
    """(H, W, C) uint8 with 1, 3 or 4 channels as a Pillow image; of any other number the first is shown."""
    return Image.fromarray(image if image.shape[-1] in (3, 4) else image[..., 0])


def save_png(image: np.ndarray, path: str | Path) -> Path:
    """Write (H, W, C) uint8 as a PNG, whole or not at all."""
    picture = pillow(image)
    with atomic(Path(path)) as temporary:
        picture.save(temporary, format="PNG")
    return Path(path)
