"""`Streamed`: the images of a prepared folder behind an address, of which only some shards are on disk at a time."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffusion.data.remote import PART, Address, evict, keep
from diffusion.data.store import Shards
from diffusion.support.lock import lock
from diffusion.support.scaling import WORDS

if TYPE_CHECKING:
    from diffusion.data.aside import Aside

THREADS = 4  # shards that are fetched at the same time
HEADER = 128  # bytes of a .npy file before its numbers
WINDOWS = range(1, 257)  # shards in a window; a process keeps two windows open


class Streamed(Shards):
    """Images in the shards of a prepared folder behind an address.

    Shards are fetched whole, in the order in which a pass needs them, by threads that stay at most two windows ahead,
    and checked by their hash. `room` bytes of shards are kept in the local folder, which all processes of a machine
    share: each shard is fetched by one of them, and the least recently used that none of them needs is removed.

    A shuffled order is rearranged by windows:

        the shards that hold images of this store are permuted and divided into windows of `window` shards;
        the images of a window are in the order that they have in the shuffled order, and windows follow each other.

    So each order of the images of a window is equally likely, as is each set of shards in a window, but images of
    different windows are not mixed; the order is a function of (seed, epoch, window) and the data set.

    Args:
        address: of the prepared folder.
        folder: local, with its small files, see `remote.local`.
        rows: (N,) int64, the global row of each image of this store.
        window: shards in a window.
        room: bytes of shards to keep on disk; those in use may take more.
        aside: copies some images of each shard that is fetched, see `data.aside`.
    """

    sequential = True  # images are read efficiently in their own order only

    def __init__(
        self,
        address: Address,
        folder: str | Path,
        rows: np.ndarray,
        window: int,
        room: int,
        aside: Aside | None = None,
    ) -> None:
        super().__init__(folder, rows)
        self.address, self.window, self.room, self.aside = address, window, room, aside
        self.sizes = [count * self.bytes + HEADER for count in self.counts]
        self.loads = self.sizes  # bytes on disk while a shard is fetched
        self.of = (np.searchsorted(self.first, self.rows, side="right") - 1).astype(np.int32)  # the shard of each image
        self.reach = 2 * window * max(self.sizes, default=0)  # bytes of shards to have at hand
        self._begin()

    def arrange(self, order: Tensor, generator: torch.Generator) -> Tensor:
        shards = torch.from_numpy(self.of)[order]
        there = torch.bincount(shards, minlength=len(self.files)).nonzero().flatten()
        window = torch.zeros(len(self.files), dtype=torch.int32)
        window[there[torch.randperm(len(there), generator=generator)]] = torch.arange(len(there)).int() // self.window
        return order[window[shards].argsort(stable=True)]

    def follow(self, order: Tensor, then: Callable[[], Tensor]) -> None:
        now, later = self._needed(order), self._needed(then())[: self.window]
        self._fresh()
        with self._change:
            while self._open:
                self._drop(next(iter(self._open)))
            self._left, self._queue = dict(now), deque([*((shard, 0) for shard, _ in now), *later])
            self._pump()

    def ahead(self, index: Tensor) -> None:
        self._fresh()
        with self._change:
            for shard, count in reversed(self._needed(index)):
                if shard not in self._left and all(shard != other for other, _ in self._queue):
                    self._queue.appendleft((shard, count))
            self._pump()
            held = np.isin(self.of[index.numpy()], list(self._open))
        super().ahead(index[torch.from_numpy(held)])

    def take(self, index: Tensor, pin: bool = False) -> Tensor:
        self._fresh()
        needed = self._needed(index)
        if len(needed) > 2 * self.window:  # a few shards at a time
            x = torch.empty(len(index), *self.shape, dtype=self.dtype, pin_memory=pin)
            for k in range(0, len(needed), self.window):
                mine = np.isin(self.of[index.numpy()], [shard for shard, _ in needed[k : k + self.window]])
                mine = torch.from_numpy(mine)
                x.view(torch.uint8)[mine] = self.take(index[mine]).view(torch.uint8)
            return x
        x = super().take(index, pin)
        with self._change:
            for shard, count in needed:
                self._left[shard] = self._left.get(shard, 0) - count
                if self._left[shard] <= 0:
                    del self._left[shard]
                    self._drop(shard)
            self._pump()
        return x

    def _needed(self, order: Tensor) -> list[tuple[int, int]]:
        """The shards of some images, in the order of first need, and the number of images in each."""
        shards, first, counts = np.unique(self.of[order.numpy()], return_index=True, return_counts=True)
        return [(int(shards[k]), int(counts[k])) for k in first.argsort()]

    def _file(self, shard: int) -> tuple[int, int]:
        with self._change:
            self._failed.pop(shard, None)  # of an earlier attempt
            self._waiting.add(shard)
            try:
                if shard not in self._open and shard not in self._busy:
                    self._start(shard)
                while shard not in self._open:
                    if error := self._failed.pop(shard, None):
                        raise error
                    self._change.wait()
            finally:
                self._waiting.discard(shard)
            return self._open[shard]

    def _pump(self) -> None:
        """Start to fetch what is needed next, as far as there is room."""
        while self._queue and len(self._busy) < THREADS:
            shard, more = self._queue[0]
            if not (left := self._left.get(shard, 0) + more):  # taken already, before its turn
                self._queue.popleft()
                continue
            there = shard in self._open or shard in self._busy
            at_hand = sum(self.sizes[s] for s in (*self._open, *self._busy))
            if not there and at_hand + self.sizes[shard] > self.reach:
                return
            self._queue.popleft()
            self._left[shard] = left
            if not there:
                self._start(shard)

    def _start(self, shard: int) -> None:
        """Fetch and open a shard in a thread."""
        self._busy.add(shard)
        names = [Path(self.files[s]).name for s in self._busy]
        room = self.room - sum(self.loads[s] for s in self._busy)
        evict(self.folder / "shards", room, {*names, *(name + PART for name in names)})
        threading.Thread(target=self._obtain, args=(shard,), name=f"fetch-{shard}", daemon=True).start()

    def _obtain(self, shard: int) -> None:
        """In a thread: see `_start`."""
        try:
            found = self._fetched(shard)
        except Exception as error:
            found = error
        with self._change:
            self._busy.discard(shard)
            if isinstance(found, Exception):
                self._failed[shard] = found
            elif shard in self._left or shard in self._waiting:
                self._open[shard] = found
            else:  # no longer needed
                os.close(found[0])
            self._pump()
            self._change.notify_all()

    def _fetched(self, shard: int) -> tuple[int, int]:
        """A new file descriptor of a shard, locked against removal, and the place of its first image."""
        path = self.folder / self.files[shard]
        for last in (False, False, True):
            keep(self.address, self.files[shard], self.sums[shard], path)
            try:
                handle, start = self._opened(shard)
            except (FileNotFoundError, ValueError):  # another process has removed it; it was damaged on this disk
                if last:
                    raise
                path.unlink(missing_ok=True)
                continue
            lock(handle, shared=True)
            os.utime(path if os.utime not in os.supports_fd else handle)
            if self.aside:
                self.aside.keep(self, shard, handle, start)
            return handle, start

    def _drop(self, shard: int) -> None:
        """Close a shard, which allows its removal."""
        if shard in self._open:
            os.close(self._open.pop(shard)[0])

    def _begin(self) -> None:
        """The state of a process: nothing is open, needed or being fetched."""
        self._open, self._process, self._change = OrderedDict(), os.getpid(), threading.Condition()
        self._left: dict[int, int] = {}  # images still to take, by shard
        self._queue: deque[tuple[int, int]] = deque()  # shards to fetch, as needed, and images to add to `_left`
        self._busy: set[int] = set()  # being fetched
        self._waiting: set[int] = set()  # that a reader waits for
        self._failed: dict[int, Exception] = {}

    def _fresh(self) -> None:
        if self._process != os.getpid():  # after a fork, and as a copy: threads and files are a process's own
            self._begin()

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_change": None}


def room_for(facts: dict, window: int, disk: float) -> tuple[int, bool, str]:
    """Bytes of shards to keep on disk, whether copies of the test images are kept beside them, and why not.

    Shards may take two windows, or `disk` GiB less the copies. Without `disk`, copies may take two windows, too. None
    are needed where all shards are kept.

    Raises:
        ValueError: the numbers are out of range, or two windows do not fit.
    """
    if window not in WINDOWS or disk < 0:
        raise ValueError(
            f"Prepared: wanted window in {WINDOWS[0]}..{WINDOWS[-1]} and disk >= 0, got window {window}, disk {disk}"
        )
    image = int(np.prod(facts["shape"])) * np.dtype(WORDS[facts["dtype"]]).itemsize
    sizes = [shard["images"] * image + HEADER for shard in facts["shards"]]
    two = min(2 * window * max(sizes, default=0), sum(sizes))
    if disk and disk * 2**30 < two:
        raise ValueError(
            f"Prepared: two windows of {window} shards take {two / 2**30:.2f} GiB, and disk allows {disk:g}; "
            "choose a smaller window or a larger disk"
        )
    allowed, test = int(disk * 2**30), facts["images"]["test"] * image
    if sum(sizes) <= (allowed or two):
        return allowed or two, False, ""
    if test <= (allowed - two if disk else two):
        return allowed - test if disk else two, True, ""
    needed = (two + test) / 2**30
    why = (
        f"the test images take {test / 2**30:.3g} GiB, and are fetched again for each validation; --data.disk "
        f"{math.ceil(needed * 100) / 100:g} keeps a copy"
    )
    return allowed or two, False, why
