"""The bytes or the array at a place, with open files kept per process."""

import math
import os
import zipfile
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image

from diffusion.preparing.items import Refused
from diffusion.preparing.sources.extras import h5_row, parquet_image
from diffusion.preparing.sources.named import sample
from diffusion.preparing.sources.samples import Shard, image_of

LARGEST = 2**30  # bytes of one encoded image


def read(place: tuple) -> bytes | np.ndarray | Image.Image:
    """What lies at a place: an encoded image, an array (H, W) or (H, W, C), or a decoded image.

    Raises:
        Refused: it cannot be read.
    """
    kind, *where = place
    try:
        return READERS[kind](*where)
    except Refused:
        raise
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror or error}") from None


def head(place: tuple, count: int = 32) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        if place[0] == "file":
            with open(place[1], "rb") as file:
                return file.read(count)
        if place[0] == "part":
            return _part(place[1], place[2], min(count, place[3]))
        return read(place)[:count]
    except (OSError, Refused):
        return b""


def _file(path: str) -> bytes:
    with open(path, "rb") as file:
        return _limited(file.read(LARGEST + 1))


def _part(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file, as of an uncompressed member of an archive."""
    if size > LARGEST:
        _limited(size)
    found = os.pread(_handle(path), size, offset)
    if len(found) < size:
        raise Refused(f"cannot be read: the archive ends {size - len(found):,} bytes too early")
    return found


def _zipped(path: str, index: int) -> bytes:
    """A member of a zip archive, by its number."""
    archive, members = _zip(path)
    member = members[index]
    if member.file_size > LARGEST:
        _limited(member.file_size)
    try:
        return archive.read(member)
    except (RuntimeError, NotImplementedError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise Refused(f"cannot be unpacked: {error}") from None
    except zlib.error as error:
        raise Refused(f"cannot be unpacked: {error}") from None


def _limited(data: bytes | int) -> bytes:
    size = data if isinstance(data, int) else len(data)
    if size > LARGEST:
        raise Refused(f"larger than {LARGEST >> 20} MiB")
    return data


@lru_cache(maxsize=16)
def _handle(path: str) -> int:
    return os.open(path, os.O_RDONLY)


@lru_cache(maxsize=16)
def _zip(path: str) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    archive = zipfile.ZipFile(path)
    return archive, archive.infolist()


def _row(path: str, row: int, layout: str) -> np.ndarray:
    """One image of a .npy, (H, W) or (H, W, C)."""
    return _laid(_mapped(path)[row], layout)


def _h5(path: str, key: str, row: int, layout: str) -> np.ndarray:
    """One image of an HDF5 file, (H, W) or (H, W, C)."""
    return _laid(h5_row(path, key, row), layout)


def _laid(row: np.ndarray, layout: str) -> np.ndarray:
    if layout == "planes":
        side = math.isqrt(len(row) // 3)
        row, layout = row.reshape(3, side, side), "CHW"
    return np.array(row.transpose(1, 2, 0) if layout == "CHW" else row)


def _sample(shard: Shard, number: int, column: str, layout: str) -> bytes | np.ndarray | Image.Image:
    """The image of a sample in a shard of MDS or litdata."""
    found = image_of(shard, number, column)
    return _laid(found, layout if found.ndim == 3 else "HW") if isinstance(found, np.ndarray) else found


@lru_cache(maxsize=16)
def _mapped(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


READERS = {
    "file": _file, "part": _part, "zip": _zipped, "row": _row, "h5": _h5, "parquet": parquet_image,
    "sample": _sample, "torchvision": lambda *where: sample(*where)[0],
}  # fmt: skip
