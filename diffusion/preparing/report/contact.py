"""The contact sheet: for each class a row of pictures as they were and as they are stored; and mirror images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diffusion.preparing.images.convert import DEEP, sixteen
from diffusion.preparing.items import Listing, Refused, plain
from diffusion.preparing.settings import Settings
from diffusion.preparing.shards.blocks import opened
from diffusion.preparing.shards.finish import Chosen
from diffusion.preparing.shards.gather import Gathered, Stored
from diffusion.preparing.sources.reading import read
from diffusion.support.files import atomic

ROWS, PAIRS, SIDE, GAP, TEXT = 12, 5, 96, 6, 14
SAMPLE = 20_000  # images whose mirror images are looked at
LARGEST = 20  # classes


def sheet(found: Gathered, chosen: Chosen, listing: Listing, stored: Stored, settings: Settings) -> Image.Image:
    """Rows of pairs, before on the left and after on the right; a label above each row."""
    rows = by_class(found, chosen, ROWS)
    width = PAIRS * (2 * SIDE + 3 * GAP) + GAP
    canvas = Image.new("RGB", (width, max(1, len(rows)) * (SIDE + TEXT + 2 * GAP) + GAP), (245, 245, 245))
    draw = ImageDraw.Draw(canvas)
    for k, (name, numbers) in enumerate(rows.items()):
        top = GAP + k * (SIDE + TEXT + 2 * GAP)
        label = plain(name).encode("latin1", "replace").decode("latin1") or "before | after"
        draw.text((GAP, top), f"{label[:60]} ({len(numbers):,})", fill=(40, 40, 40))
        for j, number in enumerate(spaced(numbers, PAIRS)):
            left = GAP + j * (2 * SIDE + 3 * GAP)
            item = listing.items(int(found.item[number]), int(found.item[number]) + 1)[0]
            _paste(canvas, before(item.place, found, settings), left, top + TEXT)
            _paste(canvas, shown(stored(int(number)), found), left + SIDE + GAP, top + TEXT)
    return canvas


def write_sheet(canvas: Image.Image, path: Path) -> None:
    """Write it as PNG."""
    with atomic(path) as temporary:
        canvas.save(temporary, format="PNG", optimize=True)


def by_class(found: Gathered, chosen: Chosen, most: int) -> dict[str, np.ndarray]:
    """The numbers of the images in use by class, of the largest classes; "" stands for all, without classes."""
    used = np.flatnonzero(chosen.used)
    if not found.classes:
        return {"": used}
    rows = {name: used[found.label[used] == k] for k, name in enumerate(found.classes)}
    large = sorted(rows, key=lambda name: -len(rows[name]))[:most]
    return {name: numbers for name, numbers in rows.items() if name in large and len(numbers)}


def spaced(numbers: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the numbers, evenly spaced."""
    return numbers if len(numbers) <= count else numbers[[i * len(numbers) // count for i in range(count)]]


def before(place: tuple, found: Gathered, settings: Settings) -> Image.Image:
    """A picture of the source, small."""
    try:
        image = opened(read(place), found.form, settings).image
        if isinstance(image, np.ndarray):
            return shown(image.transpose(2, 0, 1) if image.ndim == 3 else image[None], found)
        if image.mode in DEEP:
            return shown(sixteen(image)[None], found)
        return image.convert("RGBA").convert("RGB") if image.mode != "CMYK" else image.convert("RGB")
    except (Refused, OSError, ValueError):
        return Image.new("RGB", (SIDE, SIDE), (200, 0, 0))


def shown(planes: np.ndarray, found: Gathered) -> Image.Image:
    """Planes (C, H, W) of any type as a picture: bytes as they are, others over the range of all images."""
    planes = planes[:3] if len(planes) >= 3 else planes[:1]
    if planes.dtype != np.uint8:
        low, high = found.marks.low.min(0)[: len(planes)], found.marks.high.max(0)[: len(planes)]
        scale = 255 / np.maximum(high - low, 1e-30)
        planes = ((planes.astype(np.float64) - low[:, None, None]) * scale[:, None, None]).clip(0, 255).astype(np.uint8)
    return Image.fromarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0)).convert("RGB")


def _paste(canvas: Image.Image, picture: Image.Image, left: int, top: int) -> None:
    """A picture within a square of SIDE; small ones are enlarged by whole pixels."""
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE))
    elif times := SIDE // max(picture.size):
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    canvas.paste(picture, (left, top))


def handedness(found: Gathered, chosen: Chosen, stored: Stored) -> dict[str, float]:
    """How far the mean image m of each class is from its mirror image m', by class.

        sqrt(max(0, |m - m'|^2 - 2 V / n) / V),   V: the variance of the class, summed over pixels

    The second term is what n images without a preferred side give by chance.
    """
    return {
        name: _handed([stored(int(i)) for i in spaced(numbers, SAMPLE // LARGEST)])
        for name, numbers in by_class(found, chosen, LARGEST).items()
        if len(numbers) >= 20
    }


def _handed(images: Sequence[np.ndarray]) -> float:
    n = len(images)
    total, squares = np.zeros(images[0].shape), 0.0
    for image in images:
        values = image.astype(np.float64)
        total += values
        squares += float((values * values).sum())
    mean = total / n
    variance = max(0.0, squares / n - float((mean * mean).sum()))
    apart = float(((mean - mean[:, :, ::-1]) ** 2).sum()) - 2 * variance / n
    return float(np.sqrt(max(0.0, apart) / variance)) if variance > 0 else 0.0
