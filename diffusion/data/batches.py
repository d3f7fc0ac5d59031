"""`Batches`: the loader of images from a store, in an order that can be resumed at any batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from diffusion.data.place import Place
from diffusion.data.store import InMemory, Store
from diffusion.support.scaling import DTYPES, Scaling

AHEAD = 4  # batches that a store is told of in advance


def fits(images: Tensor | Store, device: torch.device, *more: Store) -> bool:
    """Whether images take less than half of a GPU's free memory; on other devices they always fit."""
    return device.type != "cuda" or 2 * sum(v.nbytes for v in (images, *more)) < torch.cuda.mem_get_info(device)[0]


class Batches:
    """An iterable of (x0, y) or (x0, y, pair) over the images of stores, in an order that can be resumed at any batch.

        order, flips = f(seed, epoch)          drawn for all N images at once, the same on every process
        mine = order[rank::world]              this process's share: no two processes see the same image
        x0 = scaling.encode(images)            (B,C,H,W) float32 on `device`; 8-bit images / 127.5 - 1

    Lightning stores `state_dict()` in its checkpoints and sets the epoch through `sampler.set_epoch`, both before the
    first batch is requested, since `__iter__` is a generator. After i batches, all processes together have seen the
    first i * batch_size * world images of the order. A run that is resumed with another number of processes or another
    batch size therefore divides the rest among them, and no image is repeated or skipped.

    Args:
        images: (N,C,H,W) uint8, uint16 or float32, or a store of N images.
        y: (N,) int64 labels or (N,D) float32 context vectors.
        batch_size: images per batch and process, >= 1. With `drop_last` it is clipped to the process's share, so that
            a small set gives one batch per epoch rather than none.
        shuffle: a new order each epoch; False keeps the order of `images`.
        drop_last: for training: full batches only, the same number on every process. False: every image is used.
        flip: mirror each image left to right with probability 1/2. A (N,) bool tensor restricts it to some images.
        seed: seed of the orders and the flips, >= 0.
        rank: this process, 0..world-1.
        world: number of processes that share the images, >= 1.
        device: of the batches and of the images, which are moved there once; images that take too much of a GPU's
            memory remain where they are, and each batch is copied asynchronously from pinned memory.
        scaling: of raw values to x_0; by default that of 8-bit images.
        pairs: a store of N images of another kind, which are mirrored with the images.
        pair_scaling: of their raw values.

    Raises:
        ValueError: tensors of a wrong type or shape, or fewer images than processes.
    """

    batch_sampler = None  # Lightning reads it if there is a sampler

    def __init__(
        self,
        images: Tensor | Store,
        y: Tensor,
        batch_size: int = 128,
        shuffle: bool = False,
        drop_last: bool = False,
        flip: bool | Tensor = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        scaling: Scaling = Scaling(),
        pairs: Store | None = None,
        pair_scaling: Scaling = Scaling(),
    ) -> None:
        images = InMemory(images) if isinstance(images, Tensor) else images
        scaling.check(images.shape[0])
        if images.dtype != DTYPES[scaling.dtype]:
            raise ValueError(f"Batches: images must be {scaling.dtype}, got {images.dtype}; give their scaling")
        if len(y) != len(images):
            raise ValueError(f"Batches: {len(images)} images but {len(y)} targets; wanted one target per image")
        if batch_size < 1 or seed < 0 or not 0 <= rank < world:
            raise ValueError(
                "Batches: wanted batch_size >= 1, seed >= 0 and 0 <= rank < world, "
                f"got batch_size {batch_size}, seed {seed}, rank {rank}, world {world}"
            )
        if len(images) < (world if drop_last else 1):
            raise ValueError(
                f"Batches: {len(images)} images for {world} process(es); use fewer processes or more images"
            )
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.rank, self.world, self.device = rank, world, torch.device(device)
        self.batch_size = min(batch_size, self._share(len(images))) if drop_last else batch_size
        more = () if pairs is None else (pairs,)
        self.home = self.device if fits(images, self.device, *more) else torch.device("cpu")
        self.store = images.to(self.home)
        self.y, self.flip, self.scaling = y.to(self.device), flip, scaling
        self.pairs, self.pair_scaling = None if pairs is None else pairs.to(self.home), pair_scaling
        self.epoch = 0
        self._done = 0  # batches yielded in the current epoch
        self._resumed = Place()  # the place in an epoch at which this run resumed

    def __len__(self) -> int:
        return self._batches(len(self.store))

    def _share(self, n: int) -> int:
        """The number of this process's images out of n."""
        return n // self.world if self.drop_last else len(range(self.rank, n, self.world))

    def _batches(self, n: int) -> int:
        """The number of batches in this process's share of n images."""
        full, rest = divmod(self._share(n), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def sampler(self) -> Batches:
        """Itself: Lightning calls `loader.sampler.set_epoch(epoch)` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the order and flips of the next pass; a pass in progress keeps its own."""
        self.epoch = epoch

    def plan(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Indices of this process's images in an epoch, (M,) int64, and which of them are mirrored, (M,) bool.

        In a resumed epoch, only the remaining images.
        """
        n = len(self.store)
        seen = self._resumed.begin(epoch).images
        state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        mine = order[seen + self.rank :: self.world][: self._share(n - seen)]
        if self.flip is False:
            return mine, None
        mirrored = torch.rand(n, generator=generator) < 0.5  # by image, so it does not depend on world
        if isinstance(self.flip, Tensor):
            mirrored &= self.flip.cpu()
        return mine, mirrored[mine]

    def indices(self, epoch: int, batch: int) -> Tensor:
        """The indices of the images in one of this process's batches of an epoch, (B,) int64."""
        return self.plan(epoch)[0][self._part(epoch, batch)]

    def _part(self, epoch: int, batch: int) -> slice:
        batch -= self._resumed.begin(epoch).batches
        return slice(batch * self.batch_size, (batch + 1) * self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch = self.epoch
        order, mirrored = self.plan(epoch)
        home, order = order.to(self.home), order.to(self.device)
        stores = [(self.store, self.scaling), *([] if self.pairs is None else [(self.pairs, self.pair_scaling)])]
        mirrored = None if mirrored is None else mirrored.to(self.device)
        for store, _ in stores:
            store.ahead(home[: AHEAD * self.batch_size])
        for i in range(self._resumed.begin(epoch).batches, len(self)):
            part = self._part(epoch, i)
            found = []
            for store, scaling in stores:
                store.ahead(home[self._part(epoch, i + AHEAD)])
                x = store.take(home[part], pin=self.home != self.device)  # (B,C,H,W) raw
                x = scaling.encode(x.to(self.device, non_blocking=True))
                found.append(x if mirrored is None else torch.where(mirrored[part, None, None, None], x.flip(-1), x))
            self._done = i + 1
            yield found[0], self.y[order[part]], *found[1:]

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch, see `Place`."""
        begin = self._resumed.begin(self.epoch)
        images = begin.images + (self._done - begin.batches) * self.batch_size * self.world
        return Place(self.epoch, self._done, images).rolled(len(self))._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue `state["epoch"]` after the images of it that were already seen."""
        images = state.get("images", state["batches"] * self.batch_size * self.world)
        self.epoch, self._done = state["epoch"], len(self) - self._batches(len(self.store) - images)
        self._resumed = Place(self.epoch, self._done, images)
