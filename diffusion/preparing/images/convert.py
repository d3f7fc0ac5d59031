"""Conversion of decoded pictures to the channels and the type that are stored."""

import numpy as np
from PIL import Image

from diffusion.preparing.items import Refused
from diffusion.preparing.settings import Form, Settings, colour

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def pixel(background: str, mode: str) -> int | tuple[int, ...]:
    """A colour as a pixel of a mode."""
    rgb = colour(background)
    return {"L": round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]), "RGB": rgb, "RGBA": (*rgb, 0)}[mode]


def eight_bit(image: Image.Image, channels: int, settings: Settings, notes: list[str]) -> Image.Image:
    """A Pillow image in mode L, RGB or RGBA."""
    mode = MODES[channels]
    if image.mode in DEEP:
        notes.append("16-bit grey reduced to 8 bits")
        image = Image.fromarray(((sixteen(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            if image.getextrema()[3][0] < 255:
                notes.append(f"transparency composited on {settings.background}")
            ground = Image.new("RGBA", image.size, (*colour(settings.background), 255))
            image = Image.alpha_composite(ground, image).convert("RGB")
    if image.mode == "CMYK":
        notes.append("CMYK converted without its profile")
    try:
        if mode == "L" and image.mode not in ("L", "1", "LA"):
            rgb = image.convert("RGB")
            if rgb.getextrema()[0] != rgb.getextrema()[1] or rgb.getextrema()[1] != rgb.getextrema()[2]:
                notes.append("colour reduced to grey")
            image = rgb
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise Refused(f"mode {image.mode} cannot be converted: {error}") from None


def sixteen(image: Image.Image) -> np.ndarray:
    """A grey image of 16 bits as uint16 (H, W).

    Raises:
        Refused: values beyond 16 bits.
    """
    values = np.asarray(image)
    if values.dtype.itemsize > 2:
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise Refused(f"values {values.min()} .. {values.max()} do not fit 16 bits; store them as a float32 .npy")
    return values.astype(np.uint16)


def from_array(array: np.ndarray, form: Form) -> np.ndarray:
    """An array (H, W) or (H, W, C) as planes (C, H, W) of the form's type.

    Raises:
        Refused: another number of channels or another type, or values that are not finite.
    """
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if len(planes) != form.channels:
        raise Refused(f"{len(planes)} channels, the others have {form.channels}")
    kind = planes.dtype
    if kind.kind == "b":
        planes, kind = planes * np.uint8(255), np.dtype("uint8")
    if kind.kind == "f":
        if form.dtype != "float32":
            raise Refused(f"{kind} values, the others are {form.dtype}")
        if not np.isfinite(planes).all():
            raise Refused(f"{np.count_nonzero(~np.isfinite(planes)):,} values are nan or infinite")
        if np.abs(planes).max() > np.finfo(np.float32).max:
            raise Refused("values beyond the range of float32")
    elif kind.newbyteorder("=") != np.dtype(form.dtype):
        raise Refused(f"{kind} values, the others are {form.dtype}")
    return planes.astype(form.dtype)
