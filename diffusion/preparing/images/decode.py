"""An encoded image as a Pillow image or an array, upright, its first frame, with remarks on what was changed."""

import io
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, WebPImagePlugin

from diffusion.preparing.items import Refused

Image.preinit()  # registers the usual formats; TIFF and WebP register themselves on import
LATER = (TiffImagePlugin, WebPImagePlugin)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ORIENTATION = 0x0112
SIGNS = (  # of files that are often taken for images
    (b"<svg", "SVG"), (b"%pdf", "PDF"), (b"<!doctype html", "a web page"), (b"<html", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer; run git lfs pull"), (b"pk\x03\x04", "a zip archive"),
    (b"\x00\x00\x00\x0cjxl ", "JPEG XL"), (b"\xff\x0a", "JPEG XL"), (b"8bps", "Photoshop"), (b"\x1f\x8b", "gzip"),
    (b"\x00\x00\x00\x0cjp  ", "JPEG 2000"), (b"<?xml", "XML"), (b"{", "JSON"), (b"\x93numpy", "a .npy array"),
)  # fmt: skip


class Picture(NamedTuple):
    """A decoded image: of Pillow, or an array (H, W) or (H, W, C); its upright size before any reduction."""

    image: Image.Image | np.ndarray
    width: int
    height: int
    mode: str
    notes: list[str]


def header(data: bytes) -> Image.Image:
    """The image with its header read and nothing decoded.

    Raises:
        Refused: no image of a known kind, or too large to decode.
    """
    if not data:
        raise Refused("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise Refused(f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels") from None
        except Image.UnidentifiedImageError:
            raise Refused(f"no image of a known kind{_what(data)}") from None
        except Exception as error:  # decoders raise whatever the damage leads to
            raise Refused(_reason(error)) from None
    if math.prod(image.size) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Refused(f"{image.width}x{image.height}: more than {Image.MAX_IMAGE_PIXELS:,} pixels")
    return image


def size_of(image: Image.Image) -> tuple[int, int]:
    """The upright (width, height) of an image whose header is read."""
    turned = image.format != "TIFF" and _turn(image, []) >= 5  # TIFF has its upright size already
    return image.size[::-1] if turned else image.size


def decode(data: bytes, of: Callable[[int, int], tuple[float, float]] | None = None) -> Picture:
    """The image of a file.

    Args:
        data: the file.
        of: a function of the upright (width, height) that returns the (width, height) to which the image will be
            reduced; a JPEG is then decoded at a half, a quarter or an eighth of its size if that is at least twice
            as large. None decodes it in full.
    Raises:
        Refused: damaged, too large, or of a kind that is not read.
    """
    if data[:6] == b"\x93NUMPY":
        return _array(data)
    image = header(data)
    notes, mode, kind = [], image.mode, image.format
    if mode == "F":
        raise Refused("float TIFF: Pillow saturates such values silently; store them as a float32 .npy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if kind in ("GIF", "WEBP", "PNG", "TIFF") and getattr(image, "is_animated", False):
                notes.append("several frames: the first is used")
                image.seek(0)
            size = image.size
            turn = _turn(image, notes) if kind in ("JPEG", "MPO") else 1
            if of is not None and kind in ("JPEG", "MPO"):
                upright = size[::-1] if turn >= 5 else size
                w, h = of(*upright)
                w, h = (h, w) if turn >= 5 else (w, h)
                image.draft(None, (max(1, math.ceil(2 * w)), max(1, math.ceil(2 * h))))
            image.load()
            if kind not in ("JPEG", "MPO"):  # Pillow itself turns TIFF while it loads; PNG may have EXIF at the end
                size, turn = image.size, _turn(image, notes)
            if turn in TURNS:
                image = image.transpose(TURNS[turn])
                size = size[::-1] if turn >= 5 else size
                notes.append("turned upright by EXIF")
        except Refused:
            raise
        except MemoryError:
            raise Refused("too large for the memory of this machine") from None
        except Exception as error:  # decoders raise whatever the damage leads to
            raise Refused(_reason(error)) from None
    if "icc_profile" in image.info:
        notes.append("colour profile ignored")
    if _deep(data, kind, image):
        notes.append("16-bit colour read as 8 bits")
    return Picture(image, *size, mode, notes)


def _array(data: bytes) -> Picture:
    """The array of a .npy file."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise Refused(f"damaged .npy: {error}") from None
    return of_array(array)


def of_array(array: np.ndarray) -> Picture:
    """An array as a picture."""
    if array.ndim not in (2, 3) or not array.size:
        raise Refused(f"array of shape {array.shape}: wanted (H, W) or (H, W, C)")
    height, width = array.shape[:2]
    return Picture(array, width, height, str(array.dtype), [])


def _turn(image: Image.Image, notes: list[str]) -> int:
    """The EXIF orientation, 1 to 8."""
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF raises as variously as damaged images
        notes.append("EXIF unreadable: orientation unknown")
        return 1
    return turn if turn in TURNS else 1


def _deep(data: bytes, kind: str, image: Image.Image) -> bool:
    """Whether a file has colours of 16 bits, of which Pillow keeps 8."""
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK"):
        return False
    if kind == "PNG":
        return data[24:25] == b"\x10"
    return kind == "TIFF" and 16 in (getattr(image, "tag_v2", {}).get(258) or ())


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"damaged: {text}" if text else f"damaged: {type(error).__name__}"


def _what(data: bytes) -> str:
    """What a file is, as far as its first bytes tell."""
    head = data[:64].lstrip().lower()
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        kind = "AVIF" if brand in (b"avif", b"avis") else "HEIC" if brand[:2] in (b"he", b"mi") else "a film"
        return f": {kind}; convert it to JPEG or PNG" if kind != "a film" else ": a film"
    return next((f": {name}" for sign, name in SIGNS if head.startswith(sign)), "")
