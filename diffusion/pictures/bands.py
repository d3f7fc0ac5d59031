"""Pictures of images with any channels and any type: chosen bands, or one band in colours."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from diffusion.pictures.eight_bit import to_uint8

# Nine of the 256 colours of viridis, evenly spaced; the others lie between them, to within 3 of 255.
# Source: Smith & van der Walt, https://bids.github.io/colormap (CC0).
VIRIDIS = (
    (68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140), (40, 174, 128), (94, 201, 98),
    (173, 220, 48), (253, 231, 37),
)  # fmt: skip


def bands_of(text: str | Sequence[int], channels: int) -> tuple[int, ...]:
    """Band numbers, from 1, as text such as "3,2,1" or a sequence; () is the usual choice.

    Raises:
        ValueError: not one or three bands, or a band that the images do not have.
    """
    try:
        words = text.split(",") if isinstance(text, str) else text
        bands = tuple(int(word) for word in words) if text else ()
    except ValueError:
        bands = (0,)
    if len(bands) not in (0, 1, 3) or not all(1 <= band <= channels for band in bands):
        raise ValueError(f"bands {text}: wanted one or three of 1 .. {channels}, e.g. {','.join('321'[-channels:])}")
    return bands


def visible(x: Tensor, bands: Sequence[int] = (), dtype: str = "uint8") -> np.ndarray:
    """Images (N, C, H, W) as pictures uint8 (N, H, W, 1, 3 or 4), [-1, 1] becoming 0 .. 255.

    Three bands are red, green and blue; one band is grey or has the colours of viridis. By default 1, 3 and 4 channels
    of integer images are shown as they are; of others the first three, or the first alone if there are fewer.

    Args:
        bands: one or three, from 1; () is the default.
        dtype: of the data; a single band of "float32" has the colours of viridis, and four channels of it are not RGBA.
    """
    C, grey = x.shape[1], dtype != "float32"
    if not bands and grey and C in (1, 3, 4):
        return to_uint8(x)
    bands = bands or ((1, 2, 3) if C >= 3 else (1,))
    shown = to_uint8(x[:, [band - 1 for band in bands]])
    return shown if grey or len(bands) == 3 else colours()[shown[..., 0]]


def colours() -> np.ndarray:
    """The colours of viridis, (256, 3) uint8."""
    known = np.linspace(0, 255, len(VIRIDIS))
    return np.stack([np.interp(np.arange(256), known, c) for c in zip(*VIRIDIS, strict=True)], 1).round().astype("u1")


def alike(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures (N, H, W, 1, 3 or 4) with the channels of the one that has most: grey as RGB, opaque alpha."""
    most = max(image.shape[-1] for image in images)
    found = []
    for image in images:
        if image.shape[-1] == 1 and most > 1:
            image = image.repeat(3, axis=-1)
        if image.shape[-1] == 3 and most == 4:
            image = np.concatenate([image, np.full_like(image[..., :1], 255)], axis=-1)
        found.append(image)
    return found
