"""`Loader`: worker processes for data that do not fit into memory, in an order that can be resumed at any batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diffusion.data.place import Place


class Order:
    """Lists of indices, one per batch: this process's share of f(seed, epoch) drawn for all N, from some batch on.

    Lightning sets its epoch through `loader.batch_sampler.sampler`.
    """

    def __init__(self, n: int, batch_size: int, shuffle: bool, drop_last: bool, seed: int, rank: int, world: int):
        self.n, self.batch_size, self.shuffle, self.drop_last = n, batch_size, shuffle, drop_last
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0
        self.resumed = Place()  # the place in an epoch at which this run resumed

    @property
    def sampler(self) -> Order:
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        mine = self.n // self.world if self.drop_last else len(range(self.rank, self.n, self.world))
        return mine // self.batch_size if self.drop_last else -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        order = torch.randperm(self.n, generator=generator) if self.shuffle else torch.arange(self.n)
        mine = order[self.rank :: self.world].tolist()
        for i in range(self.resumed.begin(self.epoch).batches, len(self)):
            yield mine[i * self.batch_size : (i + 1) * self.batch_size]


class Loader(DataLoader):
    """A DataLoader over any data set with `__len__` and `__getitem__` that a resumed run continues exactly.

    Batches that workers have prefetched but training has not used do not count. Randomness in an item must be a
    function of its index (and an epoch), not of its worker's random stream, which no checkpoint stores.

    Args:
        dataset: its items are (x0 in [-1, 1], y).
        batch_size: items per batch and process, >= 1.
        shuffle: a new order each epoch, a function of (seed, epoch).
        drop_last: for training: full batches only, the same number on every process.
        seed: seed of the orders, >= 0.
        rank, world: this process and how many share the data.
        options: of DataLoader: num_workers, pin_memory, persistent_workers, ...
    Raises:
        ValueError: numbers out of range, or less than one batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 128,
        shuffle: bool = True,
        drop_last: bool = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        **options,
    ) -> None:
        if batch_size < 1 or seed < 0 or not 0 <= rank < world:
            raise ValueError(
                "Loader: wanted batch_size >= 1, seed >= 0 and 0 <= rank < world, "
                f"got {batch_size}, {seed}, {rank} of {world}"
            )
        order = Order(len(dataset), batch_size, shuffle, drop_last, seed, rank, world)
        if not len(order):
            raise ValueError(f"Loader: {len(dataset)} items, fewer than one batch of {batch_size} on {world} processes")
        # A separate generator: DataLoader would seed its workers from the global stream, which noise may use.
        super().__init__(dataset, batch_sampler=order, generator=torch.Generator().manual_seed(seed), **options)
        self._done = 0

    def __iter__(self) -> Iterator:
        order = self.batch_sampler
        first = order.resumed.begin(order.epoch).batches
        for self._done, batch in enumerate(super().__iter__(), first + 1):  # noqa: B020
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch, see `Place`."""
        order = self.batch_sampler
        images = self._done * order.batch_size * order.world
        return Place(order.epoch, self._done, images).rolled(len(self))._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue `state["epoch"]` after the batches of it that were already yielded."""
        order = self.batch_sampler
        order.epoch, self._done = state["epoch"], state["batches"]
        order.resumed = Place(order.epoch, self._done, self._done * order.batch_size * order.world)
