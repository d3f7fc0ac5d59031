"""`Order`: which images each process receives in which batch of an epoch, from any point of it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from diffusion.data.place import Place

ARRANGED = 2**31  # key of the generator that rearranges an order; augmentations have the keys from 1


def seeded(*key: int) -> torch.Generator:
    """A generator that is a function of integers >= 0."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Order:
    """The order of n images in each epoch, shared by `world` processes, which a run can resume at any batch.

        order = f(seed, epoch)                 drawn for all n images at once, the same on every process
        mine = order[seen + rank :: world]     this process's share: no two processes see the same image

    After i batches, all processes together have seen the first i * batch_size * world images of the order. A run that
    is resumed with another number of processes or another batch size therefore divides the rest among them, and no
    image is repeated or skipped. With `drop_last`, what makes no full batch at the end of an epoch is left out.

    Lightning sets the epoch through `sampler.set_epoch` before it requests the first batch.

    Args:
        n: number of images.
        batch_size: images per batch and process, >= 1.
        shuffle: a new order each epoch; False keeps the order of the images.
        drop_last: full batches only, the same number on every process. False: every image is used.
        seed: seed of the orders, >= 0.
        rank: this process, 0..world-1.
        world: number of processes that share the images, >= 1.
        weights: (n,) int64, how often images are drawn in relation to each other, see `balanced`; requires `shuffle`.
            None draws every image once per epoch.
        arrange: a function of a shuffled order (n,) and a generator that returns the order to use, a permutation of
            the given one; None uses the shuffled order.

    Attributes:
        epoch: of the next pass.
        done: batches of the current epoch that the training has received; set by the loader.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        weights: Tensor | None = None,
        arrange: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        if batch_size < 1 or seed < 0 or not 0 <= rank < world:
            raise ValueError(
                "loader: wanted batch_size >= 1, seed >= 0 and 0 <= rank < world, "
                f"got batch_size {batch_size}, seed {seed}, rank {rank}, world {world}"
            )
        if weights is not None and (not shuffle or len(weights) != n):
            raise ValueError(f"loader: weights need shuffle, and one weight for each of {n} images, got {len(weights)}")
        self.weights, self.arrange = weights, arrange
        self.n, self.batch_size, self.shuffle, self.drop_last = n, batch_size, shuffle, drop_last
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = self.done = 0
        self._resumed = Place()  # the place in an epoch at which this run resumed

    def __len__(self) -> int:
        """Batches of a whole epoch, on this process."""
        return self._batches(self.n)

    def _share(self, n: int) -> int:
        """The number of this process's images out of n."""
        return n // self.world if self.drop_last else len(range(self.rank, n, self.world))

    def _batches(self, n: int) -> int:
        """The number of batches in this process's share of n images."""
        full, rest = divmod(self._share(n), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def sampler(self) -> Order:
        """Itself: Lightning calls `loader.sampler.set_epoch(epoch)` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the order of the next pass; a pass in progress keeps its own."""
        self.epoch = epoch

    def draw(self, epoch: int) -> tuple[Tensor, torch.Generator]:
        """This process's images in an epoch, (M,) int64, and the generator that drew their order, for further draws.

        In a resumed epoch, only the remaining images.
        """
        generator = seeded(self.seed, epoch)
        order = torch.randperm(self.n, generator=generator) if self.shuffle else torch.arange(self.n)
        if self.weights is not None:
            offset = float(torch.rand((), generator=generator, dtype=torch.float64))
            order = torch.arange(self.n).repeat_interleave(balanced(self.weights, offset))[order]
        if self.shuffle and self.arrange is not None:
            order = self.arrange(order, seeded(self.seed, epoch, ARRANGED))
        return order[self.places(epoch)], generator

    def places(self, epoch: int) -> Tensor:
        """The places of this process's images in the order of an epoch, (M,) int64; see `draw`."""
        seen = self._resumed.begin(epoch).images
        return torch.arange(seen + self.rank, max(self.n, seen + self.rank), self.world)[: self._share(self.n - seen)]

    def parts(self, epoch: int) -> Iterator[tuple[int, slice]]:
        """The number of each remaining batch of an epoch, and its part of the images that `draw` returns."""
        for batch in range(self._resumed.begin(epoch).batches, len(self)):
            yield batch, self._part(epoch, batch)

    def _part(self, epoch: int, batch: int) -> slice:
        batch -= self._resumed.begin(epoch).batches
        return slice(batch * self.batch_size, (batch + 1) * self.batch_size)

    def indices(self, epoch: int, batch: int) -> Tensor:
        """The indices of the images in one of this process's batches of an epoch, (B,) int64."""
        return self.draw(epoch)[0][self._part(epoch, batch)]

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch, see `Place`."""
        begin = self._resumed.begin(self.epoch)
        images = begin.images + (self.done - begin.batches) * self.batch_size * self.world
        return Place(self.epoch, self.done, images).rolled(len(self))._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue `state["epoch"]` after the images of it that were already seen."""
        images = state.get("images", state["batches"] * self.batch_size * self.world)
        self.epoch, self.done = state["epoch"], len(self) - self._batches(max(0, self.n - images))
        self._resumed = Place(self.epoch, self.done, images)


def balanced(weights: Tensor, u: float) -> Tensor:
    """How often each image is drawn in an epoch of N draws: N w_i / sum(w), rounded up or down; systematic sampling.

        n_i = floor(c_i + u) - floor(c_(i-1) + u),   c_i = N (w_1 + ... + w_i) / (w_1 + ... + w_N)

    The mean over u uniform in [0, 1) is exact. Source: Madow 1949, Annals of Mathematical Statistics 20(3).

    Args:
        weights: (N,) int64, >= 0; integers, so that their sums are the same on every processor.
        u: in [0, 1).
    Returns:
        (N,) int64 with the sum N.
    """
    n, sums = len(weights), weights.cumsum(0)
    reached = (sums.double() * (n / float(sums[-1])) + u).floor().long()
    reached[-1] = n
    return reached.clamp(max=n).diff(prepend=torch.zeros(1, dtype=torch.long))


def class_weights(y: Tensor, power: float) -> Tensor:
    """Integer weights (N,) proportional to frequency^-power of each image's class, the rarest class 2^16.

    Args:
        y: (N,) labels, or (N, D) context vectors, of which the largest entry is the class.
        power: 0 draws every image once, 1 every class equally often.
    """
    labels = y.argmax(1) if y.ndim == 2 else y
    counts = torch.bincount(labels).double()
    rarest = counts[counts > 0].min()
    return ((rarest / counts.clamp(min=1)) ** power * 2**16).round().clamp(min=1).long()[labels]
