"""What needs a package of an extra: HDF5 by h5py, Parquet and zstd by pyarrow; files are opened once per process."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from diffusion.preparing.items import Refused
from diffusion.support.extras import extra


@lru_cache(maxsize=8)
def h5(path: str):
    """An open HDF5 file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return extra("h5py", "data").File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: no HDF5 file, or a damaged one: {error}") from error


@lru_cache(maxsize=8)
def parquet(path: str):
    """An open Parquet file.

    Raises:
        ValueError: it is damaged.
    """
    module = extra("pyarrow.parquet", "data")
    try:
        return module.ParquetFile(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: no Parquet file, or a damaged one: {error}") from error


def zstd(path: Path):
    """The stream of what a file compressed by zstd holds."""
    return extra("pyarrow", "data").input_stream(str(path), compression="zstd")


def h5_row(path: str, key: str, row: int) -> np.ndarray:
    """One row of an array in an HDF5 file."""
    return h5(path)[key][row]


def parquet_image(path: str, column: str, group: int, row: int) -> bytes:
    """The encoded image of a row.

    Raises:
        Refused: it has none.
    """
    value = _column(path, column, group)[row].as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise Refused("the row has no image bytes")
    return value


@lru_cache(maxsize=1)
def _column(path: str, column: str, group: int):
    return parquet(path).read_row_group(group, columns=[column]).column(0).combine_chunks()
