"""`Loader`: worker processes for data that do not fit into memory, in an order that can be resumed at any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion.data.order import Order


class Indices(Order):
    """The order as a batch sampler: one list of indices per batch of the next epoch."""

    def __iter__(self) -> Iterator[list[int]]:
        mine = self.draw(self.epoch)[0].tolist()
        for _, part in self.parts(self.epoch):
            yield mine[part]


class Loader(DataLoader):
    """A DataLoader over any data set with `__len__` and `__getitem__`, in an `Order` that can be resumed at any batch.

    A resumed run continues exactly, in another number of processes, too: what all processes together see of an epoch is
    a prefix of its one order. Batches that workers have prefetched but training has not used do not count. Randomness
    in an item must be a function of its index (and an epoch), not of its worker's random stream, which no checkpoint
    stores.

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
        order = Indices(len(dataset), batch_size, shuffle, drop_last, seed, rank, world)
        if not len(order):
            raise ValueError(f"Loader: {len(dataset)} items, fewer than one batch of {batch_size} on {world} processes")
        # A separate generator: DataLoader would seed its workers from the global stream, which noise may use.
        super().__init__(dataset, batch_sampler=order, generator=torch.Generator().manual_seed(seed), **options)

    def __iter__(self) -> Iterator:
        order = self.batch_sampler
        for (i, _), batch in zip(order.parts(order.epoch), super().__iter__(), strict=True):
            order.done = i + 1
            yield batch

    def indices(self, epoch: int, batch: int) -> Tensor:
        """The indices of the items in one of this process's batches of an epoch, (B,) int64."""
        return self.batch_sampler.indices(epoch, batch)

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch, see `Place`."""
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue `state["epoch"]` after the items of it that were already seen."""
        self.batch_sampler.load_state_dict(state)
