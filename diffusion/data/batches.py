"""`Batches`: the loader of images from a store, in an order that can be resumed at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffusion.data.augment import Augmentation
from diffusion.data.order import Order, seeded
from diffusion.data.store import InMemory, Store
from diffusion.support.scaling import DTYPES, Scaling

AHEAD = 4  # batches that a store is told of in advance


def fits(images: Tensor | Store, device: torch.device, *more: Store) -> bool:
    """Whether images take less than half of a GPU's free memory; on other devices they always fit."""
    return device.type != "cuda" or 2 * sum(v.nbytes for v in (images, *more)) < torch.cuda.mem_get_info(device)[0]


class Batches(Order):
    """An iterable of (x0, y) or (x0, y, pair) over the images of stores, in an `Order` that a run can resume.

        x0 = scaling.encode(images)            (B,C,H,W) float32 on `device`; 8-bit images / 127.5 - 1
        flips, draws = f(seed, epoch)          for all N images at once, the same on every process

    Lightning stores `state_dict()` in its checkpoints and sets the epoch through `sampler.set_epoch`, both before the
    first batch is requested, since `__iter__` is a generator.

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
        augment: further changes of the images, in this order, after the flips; not with `pairs`.
        weights: (N,) int64, how often images are drawn in relation to each other, see `balanced`; requires `shuffle`.
            None draws every image once per epoch.
        pairs: a store of N images of another kind, which are mirrored with the images.
        pair_scaling: of their raw values.
        mirrored: a store of what N mirrored images are, where that is not the mirrored x_0 (latents).

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
        augment: Sequence[Augmentation] = (),
        weights: Tensor | None = None,
        pairs: Store | None = None,
        pair_scaling: Scaling = Scaling(),
        mirrored: Store | None = None,
    ) -> None:
        images = InMemory(images) if isinstance(images, Tensor) else images
        scaling.check(images.shape[0])
        if images.dtype != DTYPES[scaling.dtype]:
            raise ValueError(f"Batches: images must be {scaling.dtype}, got {images.dtype}; give their scaling")
        if len(y) != len(images):
            raise ValueError(f"Batches: {len(images)} images but {len(y)} targets; wanted one target per image")
        super().__init__(len(images), batch_size, shuffle, drop_last, seed, rank, world, weights, images.arrange)
        if len(images) < (world if drop_last else 1):
            raise ValueError(
                f"Batches: {len(images)} images for {world} process(es); use fewer processes or more images"
            )
        if unbounded := [type(a).__name__ for a in augment if a.needs_bounds and not scaling.bounded]:
            raise ValueError(f"Batches: {unbounded[0]} is for images of a limited range, not for {scaling.dtype}")
        if pairs is not None and augment:
            raise ValueError("Batches: augmentations would move the images and not their pairs; use one of the two")
        if drop_last:
            self.batch_size = min(batch_size, self._share(len(images)))
        self.device = torch.device(device)
        more = [store for store in (pairs, mirrored) if store is not None]
        self.home = self.device if fits(images, self.device, *more) else torch.device("cpu")
        self.store = images.to(self.home)
        self.pairs, self.pair_scaling = None if pairs is None else pairs.to(self.home), pair_scaling
        self.mirrored = None if mirrored is None else mirrored.to(self.home)
        self.y, self.flip, self.scaling, self.augment = y.to(self.device), flip, scaling, tuple(augment)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Indices of this process's images in an epoch, (M,) int64, and which of them are mirrored, (M,) bool.

        In a resumed epoch, only the remaining images.
        """
        mine, generator = self.draw(epoch)
        if self.flip is False:
            return mine, None
        mirrored = torch.rand(self.n, generator=generator) < 0.5  # by image, so it does not depend on world
        if isinstance(self.flip, Tensor):
            mirrored &= self.flip.cpu()
        return mine, mirrored[mine]

    def draws(self, epoch: int) -> list[Tensor]:
        """The uniform numbers (M, numbers) of each augmentation for this process's images in an epoch."""
        mine = self.places(epoch)
        generators = (seeded(self.seed, epoch, 1 + k) for k in range(len(self.augment)))
        return [
            torch.rand(self.n, change.numbers, generator=generator)[mine]
            for change, generator in zip(self.augment, generators, strict=True)
        ]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch = self.epoch
        order, mirrored = self.plan(epoch)
        home, order = order.to(self.home), order.to(self.device)
        stores = [(self.store, self.scaling), *([] if self.pairs is None else [(self.pairs, self.pair_scaling)])]
        mirrored = None if mirrored is None else mirrored.to(self.device)
        draws = [u.to(self.device) for u in self.draws(epoch)]
        for store, _ in stores:
            store.follow(home, lambda: self.draw(epoch + 1)[0] if self.shuffle else home)
            store.ahead(home[: AHEAD * self.batch_size])
        for i, part in self.parts(epoch):
            found = []
            for store, scaling in stores:
                store.ahead(home[self._part(epoch, i + AHEAD)])
                x = self._read(store, scaling, home[part])
                if mirrored is not None:
                    other = self.mirrored if store is self.store else None
                    flipped = self._read(other, scaling, home[part]) if other is not None else x.flip(-1)
                    x = torch.where(mirrored[part, None, None, None], flipped, x)
                found.append(x)
            for change, u in zip(self.augment, draws, strict=True):
                found[0] = change(found[0], u[part])
            self.done = i + 1
            yield found[0], self.y[order[part]], *found[1:]

    def _read(self, store: Store, scaling: Scaling, index: Tensor) -> Tensor:
        """The scaled images (B,C,H,W) of a store, on the device."""
        raw = store.take(index, pin=self.home != self.device)
        return scaling.encode(raw.to(self.device, non_blocking=True))
