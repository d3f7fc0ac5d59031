"""Grids of images, and PNG files."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.support.files import atomic


def grid(
    images: np.ndarray, columns: int | None = None, pad: int = 1, scale: int | None = None, width: int = 640
) -> np.ndarray:
    """A grid of images, row by row: uint8 (N, H, W, C) -> (H', W', C).

    Args:
        columns: images per row; the square root of N, rounded up, by default.
        pad: mid-grey pixels between images, before enlarging.
        scale: integer factor of nearest-neighbour enlargement; by default the grid is made about `width` wide.
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
    """Nearest-neighbour enlargement of (H, W, C) by an integer factor."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def pillow(image: np.ndarray) -> Image.Image:
    """(H, W, C) uint8 as a Pillow image; the first channel is used unless there are 1, 3 or 4."""
    return Image.fromarray(image if image.shape[-1] in (3, 4) else image[..., 0])


def save_png(image: np.ndarray, path: str | Path) -> Path:
    """Write (H, W, C) uint8 as a PNG, atomically."""
    picture = pillow(image)
    with atomic(Path(path)) as temporary:
        picture.save(temporary, format="PNG")
    return Path(path)
