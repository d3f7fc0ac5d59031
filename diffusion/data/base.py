"""The basis of every data set: the loader `Batches` and the data module `ImageData`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.data.place import Place
from diffusion.support.paths import data_root

Split = Literal["train", "test"]


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether images take less than half of a GPU's free memory; on other devices they always fit."""
    return device.type != "cuda" or 2 * images.nbytes < torch.cuda.mem_get_info(device)[0]


class Batches:
    """An iterable of (x0, y) over images held in memory, in an order that can be resumed at any batch.

        order, flips = f(seed, epoch)          drawn for all N images at once, the same on every process
        mine = order[rank::world]              this process's share: no two processes see the same image
        x0 = images / 127.5 - 1                (B,C,H,W) float32 in [-1, 1], on `device`

    Lightning stores `state_dict()` in its checkpoints and sets the epoch through `sampler.set_epoch`, both before the
    first batch is requested, since `__iter__` is a generator. After i batches, all processes together have seen the
    first i * batch_size * world images of the order. A run that is resumed with another number of processes or another
    batch size therefore divides the rest among them, and no image is repeated or skipped.

    Args:
        images: (N,C,H,W) uint8.
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
            memory remain in main memory, and each batch is copied asynchronously from pinned memory.

    Raises:
        ValueError: tensors of a wrong type or shape, or fewer images than processes.
    """

    batch_sampler = None  # Lightning reads it if there is a sampler

    def __init__(
        self,
        images: Tensor,
        y: Tensor,
        batch_size: int = 128,
        shuffle: bool = False,
        drop_last: bool = False,
        flip: bool | Tensor = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(f"Batches: images must be uint8 (N,C,H,W), got {images.dtype} {tuple(images.shape)}")
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
        self.home = self.device if fits(images, self.device) else torch.device("cpu")
        self.images, self.y = images.to(self.home), y.to(self.device)
        self.flip = flip
        self.epoch = 0
        self._done = 0  # batches yielded in the current epoch
        self._resumed = Place()  # the place in an epoch at which this run resumed

    def __len__(self) -> int:
        return self._batches(len(self.images))

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
        n = len(self.images)
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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch
        order, mirrored = self.plan(epoch)
        home, order = order.to(self.home), order.to(self.device)
        mirrored = None if mirrored is None else mirrored.to(self.device)
        for i in range(self._resumed.begin(epoch).batches, len(self)):
            part = self._part(epoch, i)
            x = self.images[home[part]]  # (B,C,H,W) uint8
            if self.home != self.device:
                x = x.pin_memory().to(self.device, non_blocking=True)
            if mirrored is not None:
                x = torch.where(mirrored[part, None, None, None], x.flip(-1), x)
            self._done = i + 1
            yield x.float() / 127.5 - 1, self.y[order[part]]

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch, see `Place`."""
        begin = self._resumed.begin(self.epoch)
        images = begin.images + (self._done - begin.batches) * self.batch_size * self.world
        return Place(self.epoch, self._done, images).rolled(len(self))._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue `state["epoch"]` after the images of it that were already seen."""
        images = state.get("images", state["batches"] * self.batch_size * self.world)
        self.epoch, self._done = state["epoch"], len(self) - self._batches(len(self.images) - images)
        self._resumed = Place(self.epoch, self._done, images)


class ImageData(pl.LightningDataModule, ABC):
    """Images in memory as uint8, provided as (x0 in [-1, 1], y) by `Batches`.

    A data set declares its properties as class attributes, known before any file is read (the command line passes them
    to the network), and implements the reading of a split in `load`.

    Args:
        batch_size: images per batch and process, >= 1. A smaller training set gives one smaller batch.
        seed: seed of the order and the flips, >= 0.
        root: folder of the data; default $SM_CHANNEL_TRAINING, then $DIFFUSION_DATA, then `data` in the repository.
        labels: False declares no classes and no context (an unconditional model); the batches still carry y.
        limit: use the first n training images only; 0 uses all.

    Raises:
        ValueError: batch_size < 1, seed < 0 or limit < 0.
    """

    channels: ClassVar[int]
    size: ClassVar[int]  # height and width, pixels
    class_names: ClassVar[tuple[str, ...]]
    flip: ClassVar[bool] = False  # mirror training images left to right
    no_flip_classes: ClassVar[tuple[int, ...]] = ()  # classes that a flip would change
    context: ClassVar[bool] = False  # y is a float32 vector (N, len(class_names)) rather than a label

    def __init__(
        self, batch_size: int = 128, seed: int = 0, root: str | None = None, labels: bool = True, limit: int = 0
    ) -> None:
        super().__init__()
        if batch_size < 1 or seed < 0 or limit < 0:
            raise ValueError(
                f"{type(self).__name__}: wanted batch_size >= 1, seed >= 0 and limit >= 0, "
                f"got batch_size {batch_size}, seed {seed}, limit {limit}"
            )
        self.batch_size, self.seed, self.root, self.labels, self.limit = batch_size, seed, root, labels, limit
        self._arrays: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        """Read a split: (N,C,H,W) uint8 images and their (N,) int64 labels or (N,D) float32 context vectors."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, self.size, self.size

    @property
    def num_classes(self) -> int:
        """Number of classes for the network; 0 without labels or with context vectors."""
        return len(self.class_names) if self.labels and not self.context else 0

    @property
    def context_dim(self) -> int:
        """Width of the context vector for the network; 0 without labels or with class labels."""
        return len(self.class_names) if self.labels and self.context else 0

    @property
    def folder(self) -> Path:
        """The folder in which files are searched for."""
        return data_root(self.root)

    def arrays(self, split: Split) -> tuple[Tensor, Tensor]:
        """The images (N,C,H,W) uint8 and targets of a split, read on the first call and kept; no flips.

        Raises:
            DataNotFound: the files do not exist; `prepare_data()` downloads what is available.
        """
        if split not in self._arrays:
            images, y = self.load(split)
            if split == "train" and self.limit:
                images, y = images[: self.limit], y[: self.limit]
            if tuple(images.shape[1:]) != self.shape or not len(images):
                raise ValueError(
                    f"{type(self).__name__}: wanted (N,{','.join(map(str, self.shape))}) with N >= 1 in split "
                    f"{split!r}, got {tuple(images.shape)}; check the files in {self.folder}"
                )
            self._arrays[split] = images.contiguous(), y.contiguous()
        return self._arrays[split]

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that a stage needs, once."""
        if stage in (None, "fit"):
            self.arrays("train")
        self.arrays("test")

    def train_dataloader(self) -> Batches:
        """Shuffled full batches; in the given order and without flips under `overfit_batches`."""
        images, y = self.arrays("train")
        still = bool(self.trainer and self.trainer.overfit_batches)
        flip: bool | Tensor = self.flip and not still
        if flip and self.no_flip_classes:
            flip = ~torch.isin(y.argmax(1) if self.context else y, torch.tensor(self.no_flip_classes))
        return Batches(
            images, y, self.batch_size, shuffle=not still, drop_last=True, flip=flip, seed=self.seed, **self._process()
        )

    def val_dataloader(self) -> Batches:
        """The test split in its fixed order, every image once."""
        return Batches(*self.arrays("test"), self.batch_size, **self._process())

    def test_dataloader(self) -> Batches:
        """The same as `val_dataloader`."""
        return self.val_dataloader()

    def _process(self) -> dict:
        """Device and share of this process; `distributed_sampler_kwargs` knows of tensor-parallel groups."""
        if self.trainer is None:
            return {}
        share = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return {"device": self.trainer.strategy.root_device, "rank": share["rank"], "world": share["num_replicas"]}
