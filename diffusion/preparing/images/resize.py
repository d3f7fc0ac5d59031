"""From a decoded picture to the stored array (C, H, W): crop and antialiased resizing."""

import numpy as np
from PIL import Image

from diffusion.preparing.images.convert import DEEP, eight_bit, from_array, pixel, sixteen
from diffusion.preparing.images.decode import Picture
from diffusion.preparing.images.window import Window
from diffusion.preparing.items import Refused
from diffusion.preparing.settings import Form, Settings

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


def fit(picture: Picture, form: Form, settings: Settings, at: tuple[float, float]) -> np.ndarray:
    """The stored array (C, H, W) of a picture; remarks are added to `picture.notes`.

    Args:
        at: the position of a random crop, two numbers in [0, 1).
    Raises:
        Refused: too small, values that are not finite, or another number of channels.
    """
    size = picture.width, picture.height
    window = Window(size, form, settings.crop, at)
    if window.enlarged > 1:
        if not settings.enlarge:
            raise Refused(f"{size[0]}x{size[1]} is smaller than {form.width}x{form.height}; --enlarge enlarges it")
        picture.notes.append(f"enlarged {window.enlarged:.2f} times")
    if settings.crop == "none" and abs(size[0] * form.height / (size[1] * form.width) - 1) > 0.01:
        picture.notes.append("sides scaled differently")
    planes, background = _values(picture, form, settings, window)
    if window.inner == (form.width, form.height):
        return np.ascontiguousarray(planes)
    left, top = window.corner
    stored = np.empty(form.shape, form.dtype)
    stored[:] = background[:, None, None]
    stored[:, top : top + window.inner[1], left : left + window.inner[0]] = planes
    return stored


def _values(picture: Picture, form: Form, settings: Settings, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """The window's pixels (C, h, w) and the background (C,), in the form's type."""
    image = picture.image
    if isinstance(image, np.ndarray):
        planes = from_array(image, form)
        return _as_type(_planes(planes, window, settings.filter), form.dtype), np.zeros(form.channels, form.dtype)
    if image.mode in DEEP and form.dtype != "uint8":
        planes = np.repeat(sixteen(image)[None], form.channels, 0)
        deep = _as_type(_planes(planes, window, settings.filter), "uint16")
        background = np.full(form.channels, 257 * pixel(settings.background, "L"), np.uint16)
        unit = np.float32(65535)
    else:
        image = eight_bit(image, form.channels, settings, picture.notes)
        background = np.asarray(pixel(settings.background, image.mode), np.uint8).reshape(-1)
        resample = _in_linear_light if settings.linear and not window.exact else _resized
        deep = np.asarray(resample(image, window, settings.filter))
        deep = deep[None] if deep.ndim == 2 else deep.transpose(2, 0, 1)
        unit = np.float32(255)
    if form.dtype == "float32":
        return deep.astype(np.float32) / unit, background.astype(np.float32) / unit
    if form.dtype != deep.dtype.name:
        return deep.astype(np.uint16) * 257, background.astype(np.uint16) * 257
    return deep, background


def _resized(image: Image.Image, window: Window, filter: str) -> Image.Image:
    """The window of an image or an F plane, which may be a reduced copy of the picture."""
    if window.exact and image.size == window.whole:
        box = tuple(int(b) for b in window.box)
        return image if box == (0, 0, *image.size) else image.crop(box)
    return image.resize(window.inner, FILTERS[filter], box=window.within(image.size))


def _planes(planes: np.ndarray, window: Window, filter: str) -> np.ndarray:
    """The window of planes (C, H, W) of any type: resampled in float32, copied where the size is right."""
    if window.exact:
        left, top, right, bottom = (int(b) for b in window.box)
        return planes[:, top:bottom, left:right]
    planes = planes.astype(np.float32)
    return np.stack([np.asarray(_resized(Image.fromarray(plane), window, filter)) for plane in planes])


def _as_type(planes: np.ndarray, dtype: str) -> np.ndarray:
    """Resampled planes, rounded and limited to the range of an integer type."""
    if planes.dtype.name == dtype:
        return planes
    if dtype == "float32":
        return planes.astype(np.float32)
    return np.clip(np.rint(planes), 0, np.iinfo(dtype).max).astype(dtype)


def _in_linear_light(image: Image.Image, window: Window, filter: str) -> np.ndarray:
    """An 8-bit image resampled in linear light by the curve of sRGB: (h, w) or (h, w, C) uint8."""
    values = np.asarray(image)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    colours, alpha = (values[:3], values[3] / np.float32(255)) if len(values) == 4 else (values, None)
    light = LIGHT[colours]
    if alpha is None:
        light = _planes(light, window, filter)
    else:
        light, alpha = _planes(light * alpha, window, filter), _planes(alpha[None], window, filter)[0].clip(0, 1)
        light = np.divide(light, alpha, out=np.zeros_like(light), where=alpha > 1e-4)
    found = _encoded(light.clip(0, 1))
    if alpha is not None:
        found = np.concatenate([found, np.rint(alpha[None] * 255).astype(np.uint8)])
    return found[0] if len(found) == 1 else found.transpose(1, 2, 0)


def _encoded(light: np.ndarray) -> np.ndarray:
    """sRGB bytes of linear light in [0, 1]. Source: IEC 61966-2-1."""
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
    return np.rint(curve * 255).astype(np.uint8)


def _light() -> np.ndarray:
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


LIGHT = _light()  # of each sRGB byte
