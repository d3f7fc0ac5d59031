"""The form of the stored images, from what was asked for and a look at items spread evenly over the source."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from diffusion.preparing.images.convert import DEEP
from diffusion.preparing.images.decode import decode, header, of_array, size_of
from diffusion.preparing.items import Item, Listing, Refused, plain
from diffusion.preparing.settings import Form, Settings
from diffusion.preparing.sources.reading import read

LOOK = 256  # items


class Seen(NamedTuple):
    """What is known of an image before it is decoded."""

    width: int
    height: int
    channels: int
    dtype: str
    alpha: bool


def survey(listing: Listing, settings: Settings) -> Form:
    """The form of the stored images.

    Raises:
        ValueError: no image can be read, or sizes, channels or types differ and none was asked for.
    """
    if not len(listing):
        left = "; ".join(f"{plain(name)}: {reason}" for name, reason in listing.skipped[:3])
        raise ValueError(f"{settings.source}: no images found{f' ({left}, ...)' if left else ''}")
    seen, reasons = [], []
    for item in listing.spread(LOOK):
        try:
            seen.append(look(item))
        except Refused as reason:
            reasons.append(f"{plain(item.name)}: {reason}")
    if not seen:
        raise ValueError(f"{settings.source}: no readable image among {len(reasons)} looked at, e.g. {reasons[0]}")
    height, width = settings.size or _size(seen, settings)
    dtype = settings.dtype if settings.dtype != "auto" else _dtype(seen)
    return Form(settings.channels or _channels(seen, settings), height, width, dtype)


def look(item: Item) -> Seen:
    """What an item is, from its header.

    Raises:
        Refused: it cannot be read.
    """
    if item.problem:
        raise Refused(item.problem)
    data = read(item.place)
    if isinstance(data, bytes) and data[:6] == b"\x93NUMPY":
        data = decode(data).image
    if not isinstance(data, np.ndarray):
        image = header(data) if isinstance(data, bytes) else data
        if image.mode == "F":
            raise Refused("float TIFF")
        width, height = size_of(image)
        channels = 1 if image.mode in ("1", "L", "LA", *DEEP) else 3
        return Seen(width, height, channels, "uint16" if image.mode in DEEP else "uint8", image.has_transparency_data)
    array = of_array(data).image
    kind = {"b": "uint8", "f": "float32"}.get(array.dtype.kind, array.dtype.newbyteorder("=").name)
    if kind not in ("uint8", "uint16", "float32"):
        raise Refused(f"{kind} values: wanted uint8, uint16 or floats; convert them with array.astype")
    return Seen(array.shape[1], array.shape[0], 1 if array.ndim == 2 else array.shape[2], kind, False)


def _size(seen: list[Seen], settings: Settings) -> tuple[int, int]:
    sizes = Counter((s.height, s.width) for s in seen)
    if len(sizes) > 1:
        low, high = min(sizes, key=np.prod), max(sizes, key=np.prod)
        raise ValueError(
            f"{settings.source}: the images have {len(sizes)} sizes, from {low[0]}x{low[1]} to {high[0]}x{high[1]} "
            "(height x width); choose one, e.g. --size 64"
        )
    return next(iter(sizes))


def _channels(seen: list[Seen], settings: Settings) -> int:
    if settings.alpha == "keep" and any(s.alpha for s in seen):
        return 4
    kinds = Counter(s.channels for s in seen)
    return 3 if kinds.keys() == {1, 3} else kinds.most_common(1)[0][0]


def _dtype(seen: list[Seen]) -> str:
    """The type that most have; 16 bits if one of many grey images has them."""
    kinds = Counter(s.dtype for s in seen)
    usual = kinds.most_common(1)[0][0]
    return "uint16" if usual == "uint8" and kinds["uint16"] and all(s.channels == 1 for s in seen) else usual
