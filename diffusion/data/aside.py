"""The test images of a folder behind an address, set aside on disk as the shards that hold them come by."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from diffusion.data.remote import Address
from diffusion.data.streamed import HEADER, Streamed

ASIDE = "test"  # folder of the copies, beside that of the shards
AT_ONCE = 8  # copies in a window


class Aside:
    """Copies of some images of each shard, one file per shard with the same name in a folder of their own.

    A copy is written once, by whichever process has the shard first, and appears as a whole; it is never removed.

    Args:
        rows: (N,) int64, the global rows of the images.
        first: (shards + 1,), the global row of each shard's first image, then their number.
    """

    def __init__(self, rows: np.ndarray, first: np.ndarray) -> None:
        self.order = np.sort(rows)
        shards = np.searchsorted(first, self.order, side="right") - 1
        self.counts = np.bincount(shards, minlength=len(first) - 1).tolist()
        self.starts = np.cumsum([0, *self.counts])
        self.inner = self.order - first[shards]  # the row of each image in its shard

    def keep(self, store: Streamed, shard: int, handle: int, start: int) -> None:
        """Copy the images of a shard, of which a file descriptor is given, unless there is a copy."""
        path = store.folder / ASIDE / Path(store.files[shard]).name
        if not self.counts[shard] or path.exists():
            return
        images = np.empty((self.counts[shard], store.bytes), np.uint8)
        for image, row in zip(images, self.inner[self.starts[shard] : self.starts[shard + 1]], strict=True):
            store._read(handle, memoryview(image), start + int(row) * store.bytes, shard)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.stem}-{os.getpid()}-{threading.get_ident()}.npy")
        try:
            with open(temporary, "wb") as file:
                np.save(file, images.view(store.kind).reshape(-1, *store.shape))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class SetAside(Streamed):
    """Test images in the copies of `Aside`; shards whose copy is missing are fetched, which makes it.

    Args:
        address, folder, room: see `Streamed`.
        rows: (N,) int64, the global row of each test image.
    """

    def __init__(self, address: Address, folder: str | Path, rows: np.ndarray, room: int) -> None:
        super().__init__(address, folder, rows, AT_ONCE, room)
        aside = Aside(self.rows, self.first)
        self.whole = Streamed(address, folder, rows, AT_ONCE, room, aside)
        self.loads, self.counts, self.first = self.sizes, aside.counts, aside.starts
        self.files = [f"{ASIDE}/{Path(file).name}" for file in self.files]
        self.rows = np.searchsorted(aside.order, self.rows)
        self.sizes = [count * self.bytes + HEADER for count in self.counts]
        self.reach = 2 * self.window * max(self.sizes, default=0)

    @property
    def fingerprint(self) -> str:
        return self.whole.fingerprint

    def _fetched(self, shard: int) -> tuple[int, int]:
        path = self.folder / self.files[shard]
        for tries_left in (2, 1, 0):
            if not path.exists():
                os.close(self.whole._fetched(shard)[0])
            try:
                return self._opened(shard)
            except (FileNotFoundError, ValueError):  # it was damaged on this disk
                if not tries_left:
                    raise
                path.unlink(missing_ok=True)
