"""The basis of every data set: the loader `Batches` and the data module `ImageData`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.data.order import Order
from diffusion.support.paths import data_root

Split = Literal["train", "test"]


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether images take less than half of a GPU's free memory; on other devices they always fit."""
    return device.type != "cuda" or 2 * images.nbytes < torch.cuda.mem_get_info(device)[0]


class Batches(Order):
    """An iterable of (x0, y) over images held in memory, in an `Order` that can be resumed at any batch.

        x0 = images / 127.5 - 1                (B,C,H,W) float32 in [-1, 1], on `device`
        flips = f(seed, epoch)                 drawn for all N images at once, the same on every process

    Lightning stores `state_dict()` in its checkpoints and sets the epoch through `sampler.set_epoch`, both before the
    first batch is requested, since `__iter__` is a generator.

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
        super().__init__(len(images), batch_size, shuffle, drop_last, seed, rank, world)
        if len(images) < (world if drop_last else 1):
            raise ValueError(
                f"Batches: {len(images)} images for {world} process(es); use fewer processes or more images"
            )
        if drop_last:
            self.batch_size = min(batch_size, self._share(len(images)))
        self.device = torch.device(device)
        self.home = self.device if fits(images, self.device) else torch.device("cpu")
        self.images, self.y = images.to(self.home), y.to(self.device)
        self.flip = flip

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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch
        order, mirrored = self.plan(epoch)
        home, order = order.to(self.home), order.to(self.device)
        mirrored = None if mirrored is None else mirrored.to(self.device)
        for i, part in self.parts(epoch):
            x = self.images[home[part]]  # (B,C,H,W) uint8
            if self.home != self.device:
                x = x.pin_memory().to(self.device, non_blocking=True)
            if mirrored is not None:
                x = torch.where(mirrored[part, None, None, None], x.flip(-1), x)
            self.done = i + 1
            yield x.float() / 127.5 - 1, self.y[order[part]]


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
