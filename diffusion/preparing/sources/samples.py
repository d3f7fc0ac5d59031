"""Samples in the shards of MosaicML's streaming (MDS) and of litdata, which share one layout.

A shard holds the number of its samples n (uint32), n + 1 offsets (uint32) and, from the first offset on, the samples.
A sample holds the size (uint32) of each value whose column has no fixed size, then the values in the order of columns.
litdata 0.2.76 writes samples without media objects as an Arrow file at the end of the shard instead.
"""

import hashlib
import io
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffusion.preparing.items import Refused
from diffusion.support.extras import extra

PIXELS = ("ndarray", "numpy", "tensor")  # encodings of arrays
ENCODED = ("jpeg", "png", "image", "tiff", "tifffile", "bytes")
PICTURES = ("pil", *ENCODED, *PIXELS)
WORDS = ("str", "text")
WHOLE = {"int": "<i8", "bool": "?", **{f"{u}int{b}": f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)}}
FLOATS = {"float": "<f8", "float16": "<f2", "float32": "<f4", "float64": "<f8"}
NUMBERS = (*WHOLE, *FLOATS, "str_int", "str_float", "str_decimal")
LABELS = (*WHOLE, *WORDS, "str_int")

ARROW = b"LDARW01\0"
MDS_TYPES = {
    8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 18: "<f2", 32: "<u4", 33: "<i4", 34: "<f4", 64: "<u8", 65: "<i8", 66: "<f8"
}  # fmt: skip
NUMPY_TYPES = dict(enumerate(("i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")))
NUMPY_TYPES[13] = "?"
TORCH_TYPES = {
    0: "<f4", 1: "<f4", 2: "<f8", 3: "<f8", 8: "<f2", 9: "<f2", 11: "u1", 12: "i1", 13: "<i2", 14: "<i2", 15: "<i4",
    16: "<i4", 17: "<i8", 18: "<i8", 19: "?", 20: "<u2",
}  # fmt: skip


class Shard(NamedTuple):
    """A file of samples, as its index describes it.

    Args:
        path: of the file.
        name: of the file within the source.
        samples: their number.
        bytes: its size.
        columns: (name, encoding, fixed size in bytes or 0) of each.
        hashes: (algorithm, hexadecimal digest) of those that hashlib knows.
    """

    path: str
    name: str
    samples: int
    bytes: int
    columns: tuple[tuple[str, str, int], ...]
    hashes: tuple[tuple[str, str], ...] = ()

    def encoding(self, column: str) -> str:
        """The encoding of a column, without its parameters; empty if there is no such column."""
        return next((e.partition(":")[0] for name, e, _ in self.columns if name == column), "")


def image_of(shard: Shard, number: int, column: str) -> bytes | np.ndarray | Image.Image:
    """The image of a sample: encoded, an array as it was stored, or decoded.

    Raises:
        Refused: the shard or the sample is damaged.
    """
    found = _values(shard, number, (column,))[column]
    if not isinstance(found, bytes | np.ndarray | Image.Image):
        raise Refused("the row has no image bytes")
    return found


def fields(shard: Shard, number: int, label: str, caption: str, targets: tuple[str, ...]) -> dict:
    """Label, caption and targets of a sample, those whose columns are named.

    Raises:
        Refused: the shard or the sample is damaged.
    """
    found = _values(shard, number, (label, caption, *targets))
    words = {"label": label, "caption": caption}
    given = {name: str(found[c]) for name, c in words.items() if c and found[c] not in (None, "")}
    return given | (
        {"targets": tuple(math.nan if found[t] is None else float(found[t]) for t in targets)} if targets else {}
    )


def _values(shard: Shard, number: int, wanted: tuple[str, ...]) -> dict:
    """Values of a sample by the names of their columns."""
    file, offsets, table, problem = _opened(shard)
    if problem:
        raise Refused(problem)
    if table is not None:
        return {name: _cell(table, number, name) for name in wanted if name}
    sample = file[int(offsets[number]) : int(offsets[number + 1])].tobytes()
    try:
        free = sum(not size for _, _, size in shard.columns)
        sizes = iter(np.frombuffer(sample, "<u4", free).tolist())
        start, found = 4 * free, {}
        for name, encoding, size in shard.columns:
            end = start + (size or next(sizes))
            if name in wanted:
                found[name] = _decoded(encoding, sample[start:end])
            start = end
        if start != len(sample):
            raise ValueError(f"sample of {len(sample)} bytes, its columns have {start}")
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise Refused(f"damaged: {error}") from None
    return found


class Opened(NamedTuple):
    """The bytes of a shard, the offsets of its samples or its Arrow table, and what is wrong with it if anything is."""

    file: np.ndarray
    offsets: np.ndarray
    table: object = None
    problem: str = ""


@lru_cache(maxsize=8)
def _opened(shard: Shard) -> Opened:
    none = np.zeros(0, np.uint8)
    try:
        file = np.memmap(shard.path, np.uint8, "r") if shard.bytes else none
    except (OSError, ValueError) as error:
        return Opened(none, none, problem=f"cannot be read: {getattr(error, 'strerror', None) or error}")
    for algorithm, digest in shard.hashes:
        if hashlib.new(algorithm, file).hexdigest() != digest:
            said = f"{shard.name} does not have the {algorithm} that its index names; copy it again"
            return Opened(none, none, problem=said)
    first = 4 * (shard.samples + 2)
    count = int(file[:4].view("<u4")[0]) if len(file) >= 4 else 0
    if count != shard.samples or len(file) < first:
        said = f"{shard.name} holds {count} samples, its index says {shard.samples}; copy it again"
        return Opened(none, none, problem=said)
    if file[-8:].tobytes() == ARROW:
        return _arrow(shard, file)
    offsets = file[4:first].view("<u4").astype(np.int64)
    if offsets[0] < first or offsets[-1] != len(file) or (np.diff(offsets) < 0).any():
        said = f"{shard.name} is damaged: its offsets do not lead from sample to sample; copy it again"
        return Opened(none, none, problem=said)
    return Opened(file, offsets)


def _arrow(shard: Shard, file: np.ndarray) -> Opened:
    """The table of an Arrow file, whose length (uint32) and `ARROW` follow it.

    Raises:
        ImportError: pyarrow is not installed.
    """
    arrow, length = extra("pyarrow", "data"), int(file[-12:-8].copy().view("<u4")[0])
    try:
        table = (
            extra("pyarrow.ipc", "data")
            .open_file(arrow.py_buffer(file[-12 - length : -12]))
            .read_all()
            .combine_chunks()
        )
        if table.num_rows != shard.samples:
            raise ValueError(f"{table.num_rows} rows for {shard.samples} samples")
    except (ValueError, OSError) as error:
        return Opened(file, file, problem=f"{shard.name} is damaged: {error}; copy it again")
    return Opened(file, file, table)


def _cell(table, number: int, name: str) -> object:
    """A value of a row, None if there is none; the name has a dot before the key of a nested value."""
    first = next((c for c in table.column_names if name == c or name.startswith(f"{c}.")), None)
    value = None if first is None else table.column(first)[number].as_py()
    for key in name.removeprefix(first or "").split(".")[1:]:
        value = value.get(key) if isinstance(value, dict) else value[int(key)] if isinstance(value, list) else None
    return value


def _decoded(encoding: str, data: bytes) -> object:
    """A value from its bytes.

    Raises:
        ValueError, KeyError, IndexError: it is damaged.
    """
    kind, _, detail = encoding.partition(":")
    if kind in WHOLE or kind in FLOATS:
        return np.frombuffer(data, {**WHOLE, **FLOATS}[kind])[0].item()
    if kind in WORDS:
        return data.decode()
    if kind.startswith("str_"):
        return int(data) if kind == "str_int" else float(data)
    if kind in ENCODED:
        return data
    return {"pil": _pil, "ndarray": _ndarray, "numpy": _numpy, "tensor": _tensor}[kind](data, detail)


def _pil(data: bytes, detail: str) -> Image.Image:
    """[width, height, length of the mode] as uint32, the mode, the pixels."""
    width, height, length = np.frombuffer(data, "<u4", 3).tolist()
    mode, pixels = data[12 : 12 + length].decode(), data[12 + length :]
    if mode in ("P", "PA"):
        raise Refused("a palette image without its palette; MDS and litdata do not store it")
    if width * height > 8 * len(pixels) or width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{width}x{height} pixels in {len(pixels)} bytes")
    return Image.frombytes(mode, (width, height), pixels)


def _ndarray(data: bytes, detail: str) -> np.ndarray:
    """MDS: [type] [number of dimensions and their type, dimensions] values; what `detail` names is left out."""
    file = io.BytesIO(data)
    given, _, sides = detail.partition(":")
    dtype = np.dtype(given).newbyteorder("<") if given else np.dtype(MDS_TYPES[file.read(1)[0]])
    if sides:
        shape = tuple(map(int, sides.split(",")))
    else:
        head = file.read(1)[0]
        width = 2 ** (head % 4)
        shape = tuple(np.frombuffer(file.read((head >> 2) * width), f"<u{width}").tolist())
    return np.frombuffer(file.read(), dtype).reshape(shape)


def _numpy(data: bytes, detail: str) -> np.ndarray:
    """litdata: type, number of dimensions and dimensions as uint32, values."""
    kind, rank = np.frombuffer(data, "<u4", 2).tolist()
    shape = np.frombuffer(data, "<u4", rank, 8).tolist()
    return np.frombuffer(data[8 + 4 * rank :], NUMPY_TYPES[kind]).reshape(shape)


def _tensor(data: bytes, detail: str) -> np.ndarray:
    """litdata: as `_numpy`, with the numbers in the header big-endian and torch's types."""
    kind, rank = np.frombuffer(data, ">u4", 2).tolist()
    shape = np.frombuffer(data, ">u4", rank, 8).tolist()
    return np.frombuffer(data[8 + 4 * rank :], TORCH_TYPES[kind]).reshape(shape)
