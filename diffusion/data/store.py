"""Stores: where the raw images of a split are, and how the images of a batch are read from there."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffusion.support.scaling import DTYPES, WORDS

FILES = 128  # shards that a process keeps open
BLOCK = 1024  # images that are read at a time when a whole store is


class Store(Protocol):
    """Raw images of one shape and type, read by index."""

    shape: tuple[int, int, int]  # (C, H, W) of an image
    dtype: torch.dtype

    def __len__(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""

    def take(self, index: Tensor, pin: bool = False) -> Tensor:
        """Images (B,C,H,W) of the store's dtype, on its device.

        Args:
            index: (B,) int64, in [0, len).
            pin: into pinned memory, from which a GPU copies asynchronously.
        """

    def ahead(self, index: Tensor) -> None:
        """A hint that these images are taken soon."""

    def arrange(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """A shuffled order of images (N,), rearranged so that the store can read it efficiently; unchanged by default.

        It is a function of the order, the generator and the data set alone, not of the machine.
        """
        return order

    def follow(self, order: Tensor, then: Callable[[], Tensor]) -> None:
        """A hint that a pass takes these images (M,) in this order, and the next pass probably those of `then`."""

    def to(self, device: torch.device) -> Store:
        """The same images in the memory of a device; a store in files has its home on the CPU."""


class InMemory(Store):
    """Images (N,C,H,W) in memory."""

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4 or images.dtype not in DTYPES.values():
            raise ValueError(
                f"images must be {', '.join(DTYPES)} (N,C,H,W), got {images.dtype} {tuple(images.shape)}; convert them"
            )
        self.images = images
        self.shape, self.dtype = tuple(images.shape[1:]), images.dtype

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        return self.images.nbytes

    def take(self, index: Tensor, pin: bool = False) -> Tensor:
        wide = self.dtype == torch.uint16  # few kernels know it
        x = self.images.view(torch.int16)[index].view(torch.uint16) if wide else self.images[index]
        return x.pin_memory() if pin else x

    def ahead(self, index: Tensor) -> None:
        pass

    def to(self, device: torch.device) -> InMemory:
        return InMemory(self.images.to(device))


class Shards(Store):
    """Images in the shards of a prepared folder, read from the files batch by batch.

    Each image is a read of its own at its place in the file, neighbours together; the kernel is told of the images of
    coming batches, so that it reads many at a time. Memory does not grow with the number of images. A process opens
    the files that it needs, also after a fork.

    Args:
        folder: with `dataset.json` and the shards that it names.
        rows: (N,) int64, the global row of each image of this store.
    Raises:
        ValueError: rows that the shards do not have.
    """

    def __init__(self, folder: str | Path, rows: np.ndarray) -> None:
        self.folder = Path(folder)
        facts = json.loads((self.folder / "dataset.json").read_text())
        self.files = [shard["file"] for shard in facts["shards"]]
        self.counts = [shard["images"] for shard in facts["shards"]]
        self.sums = [shard["sha256"] for shard in facts["shards"]]
        self.first = np.cumsum([0, *self.counts])  # the global row of each shard's first image, then their number
        self.shape, self.kind = tuple(facts["shape"]), WORDS[facts["dtype"]]
        self.dtype = DTYPES[facts["dtype"]]
        self.rows = np.ascontiguousarray(rows, dtype=np.int64)
        self.bytes = int(np.prod(self.shape)) * np.dtype(self.kind).itemsize  # of an image
        if len(rows) and not 0 <= self.rows.min() <= self.rows.max() < self.first[-1]:
            raise ValueError(
                f"{folder}: rows {self.rows.min()} .. {self.rows.max()} of {self.first[-1]} images; prepare it again"
            )
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()  # shard -> file descriptor, start of its images
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        return len(self.rows) * self.bytes

    @property
    def fingerprint(self) -> str:
        """Identifies the images and their order, without reading them: by the hashes of the shards, and the rows."""
        return hashlib.sha256(" ".join(self.sums).encode() + self.rows.tobytes()).hexdigest()

    def take(self, index: Tensor, pin: bool = False) -> Tensor:
        x = torch.empty(len(index), *self.shape, dtype=self.dtype, pin_memory=pin)
        into = memoryview(x.view(torch.uint8).numpy()).cast("B") if x.numel() else memoryview(b"")
        for shard, row, at, n in self._runs(index):
            handle, start = self._file(shard)
            self._read(handle, into[at * self.bytes : (at + n) * self.bytes], start + row * self.bytes, shard)
        return x

    def ahead(self, index: Tensor) -> None:
        if not hasattr(os, "posix_fadvise"):  # macOS, Windows
            return
        for shard, row, _, n in self._runs(index):
            handle, start = self._file(shard)
            os.posix_fadvise(handle, start + row * self.bytes, n * self.bytes, os.POSIX_FADV_WILLNEED)

    def to(self, device: torch.device) -> Store:
        if device.type == "cpu":
            return self
        images = torch.empty(len(self), *self.shape, dtype=self.dtype, device=device)
        for part in blocks(self):
            images[part[0] : part[-1] + 1].copy_(self.take(part, pin=device.type == "cuda"), non_blocking=True)
        return InMemory(images)

    def _runs(self, index: Tensor) -> list[tuple[int, int, int, int]]:
        """(shard, row in it, place in the batch, number) of images that lie one after another in a shard."""
        rows = self.rows[index.numpy()]
        shards = np.searchsorted(self.first, rows, side="right") - 1
        new = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (np.diff(shards, prepend=-1) != 0))
        ends = np.append(new[1:], len(rows))
        inner = rows - self.first[shards]
        return list(zip(shards[new].tolist(), inner[new].tolist(), new.tolist(), (ends - new).tolist(), strict=True))

    def _file(self, shard: int) -> tuple[int, int]:
        """An open file descriptor of a shard, and the place of its first image in the file."""
        if self._process != os.getpid():  # a fork's copies are its parent's to close
            self._open, self._process = OrderedDict(), os.getpid()
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        self._open[shard] = self._opened(shard)
        if len(self._open) > FILES:
            os.close(self._open.popitem(last=False)[1][0])
        return self._open[shard]

    def _opened(self, shard: int) -> tuple[int, int]:
        """A new file descriptor of a shard, and the place of its first image.

        Raises:
            ValueError: the file does not hold what dataset.json says.
        """
        path, wanted = self.folder / self.files[shard], (self.counts[shard], *self.shape)
        with open(path, "rb") as file:
            try:
                header = np.lib.format.read_array_header_1_0 if np.lib.format.read_magic(file) == (1, 0) else None
                shape, fortran, kind = (header or np.lib.format.read_array_header_2_0)(file)
            except ValueError as error:
                raise ValueError(f"{path}: not a .npy file: {error}; prepare the folder again") from error
            start, length = file.tell(), os.fstat(file.fileno()).st_size
            if shape != wanted or fortran or kind != self.kind or length < start + shape[0] * self.bytes:
                raise ValueError(
                    f"{path}: wanted {np.dtype(self.kind)} {wanted}, got {kind} {shape} in {length:,} bytes; "
                    "prepare the folder again"
                )
            return os.dup(file.fileno()), start

    def _read(self, handle: int, into: memoryview, offset: int, shard: int) -> None:
        """Fill a buffer from a place in a file; a read may return less than was asked for."""
        while len(into):
            if hasattr(os, "preadv"):
                n = os.preadv(handle, [into], offset)
            else:  # Windows, old macOS
                os.lseek(handle, offset, os.SEEK_SET)
                part = os.read(handle, len(into))
                n = len(part)
                into[:n] = part
            if not n:
                raise OSError(f"{self.folder / self.files[shard]}: it ends before its images do; prepare it again")
            into, offset = into[n:], offset + n

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": OrderedDict(), "_process": -1}  # files are a process's own

    def __del__(self) -> None:
        if getattr(self, "_process", -1) == os.getpid():
            for handle, _ in self._open.values():
                os.close(handle)


def blocks(store: Store) -> Iterator[Tensor]:
    """The numbers of all images of a store, some at a time; the store is told of those that follow."""
    parts = torch.arange(len(store)).split(BLOCK)
    for part, following in zip(parts, [*parts[1:], parts[0][:0]], strict=True):
        store.ahead(following)
        yield part


def everything(store: Store) -> Tensor:
    """All images of a store (N,C,H,W), in memory."""
    if isinstance(store, InMemory):
        return store.images
    images = torch.empty(len(store), *store.shape, dtype=store.dtype)
    for part in blocks(store):
        images[part[0] : part[-1] + 1] = store.take(part)
    return images


def statistics(store: Store) -> dict[str, list[float]]:
    """Mean, standard deviation, smallest and largest value of each channel, in float64."""
    C, H, W = store.shape
    n, total, squares = len(store) * H * W, np.zeros(C), np.zeros(C)
    low, high = np.full(C, np.inf), np.full(C, -np.inf)
    for part in blocks(store):
        x = store.take(part).numpy()
        low, high = np.minimum(low, x.min((0, 2, 3))), np.maximum(high, x.max((0, 2, 3)))
        total += x.sum((0, 2, 3), dtype=np.float64)
    mean = total / n
    for part in blocks(store):
        x = store.take(part).numpy().astype(np.float64)
        squares += np.square(x - mean[:, None, None]).sum((0, 2, 3))
    found = {"mean": mean, "std": np.sqrt(squares / n), "low": low, "high": high}
    return {name: values.tolist() for name, values in found.items()}
