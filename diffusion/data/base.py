"""`ImageData`: the basis of every data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.data.augment import Augmentation
from diffusion.data.batches import Batches
from diffusion.data.latents import encoded
from diffusion.data.order import class_weights
from diffusion.data.reduced import Reduced, reduced_shape
from diffusion.data.store import InMemory, Store, everything
from diffusion.support.paths import data_root
from diffusion.support.scaling import Scaling

Split = Literal["train", "test"]
Latents = Literal["fly", "cache"]


class ImageData(pl.LightningDataModule, ABC):
    """Images of one shape and type, provided as (x0, y) by `Batches`; x0 of 8-bit images lies in [-1, 1].

    Data with an image for each image, that models are conditioned on, provide (x0, y, pair).

    A data set declares its properties as class attributes, known before any file is read (the command line passes them
    to the network), and implements the reading of a split into memory in `load`; `open` for images that remain in
    files.

    Args:
        batch_size: images per batch and process, >= 1. A smaller training set gives one smaller batch.
        seed: seed of the order and the flips, >= 0.
        root: folder of the data; default $SM_CHANNEL_TRAINING, $DIFFUSION_DATA, or `data` (from a wheel: here).
        labels: False declares no classes and no context (an unconditional model); the batches still carry y.
        limit: use the first n training images only; 0 uses all.
        augment: further random changes of the training images, see `data.augment`.
        balance: 0 draws every training image once per epoch; 1 draws every class equally often; between, and above,
            a class of frequency f is drawn in proportion to f^(1 - balance).
        latents: of a model with a codec: fly encodes the images of each batch, after their augmentation; cache encodes
            all training images once, before training.
        reduce: side of the blocks of pixels that images are reduced to the mean of; 1 leaves them as they are.

    Raises:
        ValueError: batch_size < 1, seed < 0, limit < 0, balance < 0 or reduce < 1, or an unknown `latents`.
    """

    channels: ClassVar[int]
    size: ClassVar[int]  # height and width, pixels
    class_names: ClassVar[tuple[str, ...]]
    flip: ClassVar[bool] = False  # mirror training images left to right
    no_flip_classes: ClassVar[tuple[int, ...]] = ()  # classes that a flip would change
    changed_by: ClassVar[tuple[str, ...]] = ()  # changes of `loss.augment` that may turn an image into another class's
    variant: str = ""  # which images of several kinds; each has its own judge
    context: ClassVar[bool] = False  # y is a float32 vector (N, len(class_names)) rather than a label
    conditions: ClassVar[str] = "classes"  # what class_names are: classes, clusters, targets, words; or text

    def __init__(
        self,
        batch_size: int = 128,
        seed: int = 0,
        root: str | None = None,
        labels: bool = True,
        limit: int = 0,
        augment: Sequence[Augmentation] = (),
        balance: float = 0.0,
        latents: Latents = "fly",
        reduce: int = 1,
    ) -> None:
        super().__init__()
        if batch_size < 1 or min(seed, limit, balance) < 0:
            raise ValueError(
                f"{type(self).__name__}: wanted batch_size >= 1, and seed, limit and balance >= 0, "
                f"got batch_size {batch_size}, seed {seed}, limit {limit}, balance {balance}"
            )
        if latents not in ("fly", "cache"):
            raise ValueError(f"{type(self).__name__}: wanted latents fly or cache, got {latents!r}")
        if reduce < 1:
            raise ValueError(f"data.reduce: wanted the side of a block in pixels, at least 1, got {reduce}")
        self.augment, self.balance, self.latents, self.reduce = tuple(augment), balance, latents, reduce
        self.batch_size, self.seed, self.root, self.labels, self.limit = batch_size, seed, root, labels, limit
        self._stores: dict[str, tuple[Store, Tensor]] = {}
        self._pairs: dict[str, Store | None] = {}
        self._latents: dict[str, Any] = {}

    @abstractmethod
    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        """Read a split: raw images (N,C,H,W) and int64 labels (N,), float32 contexts (N,D) or int64 tokens (N,L)."""

    def open(self, split: Split) -> tuple[Store, Tensor]:
        """Open a split: a store of its raw images, in memory by default, and their labels or context vectors."""
        images, y = self.load(split)
        if split == "train" and self.limit:
            images, y = images[: self.limit], y[: self.limit]
        return InMemory(images.contiguous()), y.contiguous()

    def open_pairs(self, split: Split) -> Store | None:
        """Open the paired images of a split, one for each image and in the same order; None if there are none."""
        return None

    @property
    def paired(self) -> dict[str, Any] | None:
        """The arguments of the hint `Paired` for models of these data; None without paired images."""
        return None

    @property
    def scaling(self) -> Scaling:
        """From raw values to x0, the same for both splits; that of 8-bit images by default."""
        return Scaling()

    @property
    def whole(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as it is read."""
        return self.channels, self.size, self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image, reduced if so chosen."""
        return reduced_shape(self.whole, self.reduce)

    @property
    def num_classes(self) -> int:
        """Number of classes for the network; 0 without labels or with context vectors."""
        return len(self.class_names) if self.labels and not self.context else 0

    @property
    def context_dim(self) -> int:
        """Width of the context vector for the network; 0 without labels or with class labels."""
        return len(self.class_names) if self.labels and self.context else 0

    @property
    def tokens(self) -> dict[str, Any] | None:
        """The vocabulary of captions for the network, `Tokens.plain`; None if y are no tokens of captions."""
        return None

    def texts(self, split: Split) -> list[str]:
        """The captions of a split, in the order of its images.

        Raises:
            ValueError: the data have none.
        """
        raise ValueError(f"{type(self).__name__}: the images have no captions")

    @property
    def labelled(self) -> bool:
        """Whether y are classes: labels, or vectors whose largest entry is the class."""
        return bool(self.class_names) and self.conditions == "classes"

    @property
    def folder(self) -> Path:
        """The folder in which files are searched for."""
        return data_root(self.root)

    def store(self, split: Split) -> tuple[Store, Tensor]:
        """The raw images of a split, where they are, and all its targets; opened on the first call and kept; no flips.

        Raises:
            DataNotFound: the files do not exist; `prepare_data()` downloads what is available.
        """
        if split not in self._stores:
            images, y = self.open(split)
            images = Reduced.of(images, self.reduce)
            if images.shape != self.shape or not len(images):
                raise ValueError(
                    f"{type(self).__name__}: wanted (N,{','.join(map(str, self.shape))}) with N >= 1 in split "
                    f"{split!r}, got {(len(images), *images.shape)}; check the files in {self.folder}"
                )
            self._stores[split] = images, y
        return self._stores[split]

    def pairs(self, split: Split) -> Store | None:
        """The raw paired images of a split; opened on the first call and kept."""
        if split not in self._pairs:
            self._pairs[split] = self.open_pairs(split)
        return self._pairs[split]

    def arrays(self, split: Split) -> tuple[Tensor, Tensor]:
        """All raw images (N,C,H,W) of a split in memory, and their targets; see `store`."""
        images, y = self.store(split)
        return everything(images), y

    def some(self, split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
        """The raw images (B,C,H,W) of a split with the numbers `index` (B,), and their targets."""
        images, y = self.store(split)
        return images.take(index), y[index]

    def encode_once(self, encode: Callable[[Tensor], Tensor], mark: str, measure: Callable[[Store], Scaling]) -> None:
        """Encode all training images, so that training batches have latents; images that are mirrored, both ways.

        Args:
            encode: from images x0 (B,C,H,W) to codes (B,c,h,w).
            mark: identifies `encode`.
            measure: called with the codes; returns the scaling from codes to latents.
        Raises:
            ValueError: other changes of the images, which would have to be encoded anew in each epoch.
        """
        if self.augment:
            raise ValueError(
                f"data.latents cache: {type(self.augment[0]).__name__} changes the images in each epoch, and latents "
                "are encoded once; use data.latents fly, or leave data.augment out"
            )
        (images, _), scaling, mark = self.store("train"), self.scaling, f"{mark} {self.scaling.plain}"
        codes = encoded(images, lambda raw: encode(scaling.encode(raw)), mark)
        self._latents = {"images": codes, "scaling": measure(codes)}
        if self.flip:
            mirrored = encoded(images, lambda raw: encode(scaling.encode(raw).flip(-1)), f"{mark} mirrored")
            self._latents["mirrored"] = mirrored

    def encoded_once(self, index: Tensor) -> Tensor | None:
        """The latents (B,c,h,w) of training images that `encode_once` has encoded; None if it was not called."""
        if not self._latents:
            return None
        return self._latents["scaling"].encode(self._latents["images"].take(index))

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that a stage needs, once."""
        if stage in (None, "fit"):
            self.store("train")
        self.store("test")

    def train_dataloader(self) -> Batches:
        """Shuffled full batches; in the given order and unchanged under `overfit_batches`."""
        images, y = self.store("train")
        still = bool(self.trainer and self.trainer.overfit_batches)
        flip: bool | Tensor = self.flip and not still
        if flip and self.no_flip_classes:
            flip = ~torch.isin(y.argmax(1) if self.context else y, torch.tensor(self.no_flip_classes))
        order = {"shuffle": not still, "drop_last": True, "flip": flip, "seed": self.seed}
        if not still:
            weights = class_weights(y, self.balance) if self.balance and (self.num_classes or self.context) else None
            order |= {"augment": self.augment, "weights": weights}
        given = {"images": images, **order, **self._values("train"), **self._process()} | self._latents
        return Batches(y=y, batch_size=self.batch_size, **given)

    def val_dataloader(self) -> Batches:
        """The test split in its fixed order, every image once."""
        return Batches(*self.store("test"), self.batch_size, **self._values("test"), **self._process())

    def test_dataloader(self) -> Batches:
        """The same as `val_dataloader`."""
        return self.val_dataloader()

    def _values(self, split: Split) -> dict:
        """How raw values become x0, and the paired images of a split if there are any."""
        if not self.paired:
            return {"scaling": self.scaling}
        scaling = Scaling.of(self.paired["scaling"])
        return {"scaling": self.scaling, "pairs": self.pairs(split), "pair_scaling": scaling}

    def _process(self) -> dict:
        """Device and share of this process; `distributed_sampler_kwargs` knows of tensor-parallel groups."""
        if self.trainer is None:
            return {}
        share = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return {"device": self.trainer.strategy.root_device, "rank": share["rank"], "world": share["num_replicas"]}
