"""Custom images with labels or vectors, and with paired images, from .npy files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffusion.data.augment import Augmentation
from diffusion.data.base import ImageData, Latents, Split
from diffusion.data.files import not_found
from diffusion.data.sprites import split_by_picture
from diffusion.data.store import BLOCK, InMemory, Store, statistics
from diffusion.support.scaling import DTYPES, WORDS, Scaling, channels_first

Layout = Literal["auto", "HWC", "CHW"]


class Arrays(ImageData):
    """Images from one .npy file, with a label or a vector for each from another, and an image for each from a third.

    Images may have any number of channels and any size. 16-bit images are scaled by the range of the training images,
    float images to mean 0 and standard deviation 0.5 per channel. A label is an integer in [0, number of classes). A
    vector may have any meaning: presence of features (multi-hot), measurements, a text embedding. The network receives
    it through one linear map, so its features should be of order 1; "no condition" is a learned row, not a vector of
    zeros. Copies of one picture all fall into the same split.

    Args:
        images: file of uint8, uint16 or float32 (N, H, W, C), (N, C, H, W) or (N, H, W); a path, or relative to the
            root.
        y: file of integers (N,), the labels, or of floats (N, D), the vectors; None for images without labels.
        names: of the classes, or of the D features of a vector; by default numbers for labels.
        flip: mirror training images left to right.
        test: fraction of the images in the test split, in (0, 1).
        batch_size: images per batch and process, >= 1.
        seed: seed of the order and the flips, >= 0.
        root: folder of the data; default $SM_CHANNEL_TRAINING, $DIFFUSION_DATA, or `data` (from a wheel: here).
        labels: False declares no labels and no vectors (an unconditional model).
        limit: use the first n training images only; 0 uses all.
        layout: of the files: HWC, channels last, or CHW; auto takes the last axis for the channels if it is at most 4
            long or shorter than the first, else the first.
        condition: file of an image for each image, of any type, size and channels, that the model is conditioned on
            (image to image); its scaling is its own.
        resize: resize the condition bilinearly to the size of the images; otherwise each of its pixels is repeated.
        augment: further random changes of the training images, see `data.augment`.
        balance: 0 draws every training image once per epoch; 1 draws every class equally often; between, and above,
            a class of frequency f is drawn in proportion to f^(1 - balance).
        latents: of a model with a codec: fly encodes the images of each batch, after their augmentation; cache encodes
            all training images once, before training.
        reduce: side of the blocks of pixels that images are reduced to the mean of; 1 leaves them as they are.

    Raises:
        DataNotFound: a file does not exist.
        ValueError: arrays of a wrong shape or type or of different lengths, numbers that are not finite, or names that
            do not match.
    """

    def __init__(
        self,
        images: str,
        y: str | None = None,
        names: Sequence[str] = (),
        flip: bool = False,
        test: float = 0.05,
        batch_size: int = 128,
        seed: int = 0,
        root: str | None = None,
        labels: bool = True,
        limit: int = 0,
        layout: Layout = "auto",
        condition: str | None = None,
        resize: bool = False,
        augment: Sequence[Augmentation] = (),
        balance: float = 0.0,
        latents: Latents = "fly",
        reduce: int = 1,
    ) -> None:
        super().__init__(batch_size, seed, root, labels, limit, augment, balance, latents, reduce)
        if not 0 < test < 1:
            raise ValueError(f"Arrays: test must be a fraction in (0, 1), got {test}")
        if layout not in ("auto", "HWC", "CHW"):
            raise ValueError(f"Arrays: layout must be auto, HWC or CHW, got {layout!r}")
        self.images, self.y, self.names, self.flip, self.test = images, y, tuple(names), flip, test
        self.layout, self.condition, self.resize = layout, condition, resize
        self._images = self._pictures(images)
        self._condition = None if condition is None else self._pictures(condition)
        if condition is not None and len(self._condition) != len(self._images):
            raise ValueError(f"{condition}: {len(self._condition)} images for {len(self._images)} of {images}")
        self.channels = self.shape[0]
        self._y = self._targets()
        self.context = self._y.ndim == 2
        kinds = 0 if y is None else self._y.shape[1] if self.context else int(self._y.max()) + 1
        if self.names and (len(self.names) != kinds if self.context else len(self.names) < kinds or y is None):
            raise ValueError(f"Arrays: {len(self.names)} names for {kinds} of {y}; give one for each")
        self.class_names = self.names if self.names or self.context else tuple(map(str, range(kinds)))

    @property
    def whole(self) -> tuple[int, int, int]:
        return channels_first(self._images[:1], self.layout).shape[1:]

    @property
    def context_dim(self) -> int:
        return self._y.shape[1] if self.labels and self.context else 0

    @cached_property
    def scaling(self) -> Scaling:
        return measured(self.store("train")[0])

    @cached_property
    def paired(self) -> dict[str, Any] | None:
        if self._condition is None:
            return None
        store = self.pairs("train")
        return {"size": list(store.shape), "scaling": measured(store).plain, "resize": self.resize}

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        index = self._split[split]
        return self._read(self.images, self._images, index), torch.from_numpy(self._y[index])

    def open_pairs(self, split: Split) -> Store | None:
        if self._condition is None:
            return None
        index = self._split[split][: self.limit or None] if split == "train" else self._split[split]
        return InMemory(self._read(self.condition, self._condition, index))

    @cached_property
    def _split(self) -> dict[str, np.ndarray]:
        """The numbers of the images of each split."""
        return split_by_picture(self._images, self.test)

    def _read(self, file: str, images: np.ndarray, index: np.ndarray) -> Tensor:
        """Some images of a file (M, C, H, W) in memory.

        Raises:
            ValueError: numbers that are not finite.
        """
        shape = channels_first(images[:1], self.layout).shape[1:]
        read = torch.empty(len(index), *shape, dtype=DTYPES[images.dtype.name])
        for at in range(0, len(index), BLOCK):
            part = channels_first(images[index[at : at + BLOCK]], self.layout)
            if part.dtype.kind == "f" and not (sound := np.isfinite(part).all((1, 2, 3))).all():
                bad = index[at : at + BLOCK][~sound]
                raise ValueError(f"{file}: wanted finite numbers, got nan or infinity in image {bad[0]}; leave it out")
            read.numpy()[at : at + BLOCK] = part
        return read

    def _pictures(self, file: str) -> np.ndarray:
        """The images of a file as they lie in it, memory-mapped.

        Raises:
            ValueError: another type or shape than that of images.
        """
        images = self._open(file)
        if images.dtype.name not in WORDS or images.ndim not in (3, 4) or len(images) < 2 or 0 in images.shape:
            raise ValueError(
                f"{file}: wanted {', '.join(WORDS)} (N, H, W, C), (N, C, H, W) or (N, H, W) with N >= 2, "
                f"got {images.dtype} {images.shape}; convert it first"
            )
        return images

    def _targets(self) -> np.ndarray:
        """Labels (N,) int64 or vectors (N, D) float32; zeros without a file."""
        if self.y is None:
            return np.zeros(len(self._images), np.int64)
        y = np.array(self._open(self.y))
        if y.dtype.kind not in "buif" or len(y) != len(self._images) or y.ndim not in (1, 2) or not y[0].size:
            raise ValueError(
                f"{self.y}: wanted integers ({len(self._images)},) or numbers ({len(self._images)}, D), one row per "
                f"image of {self.images}; got {y.dtype} {y.shape}"
            )
        if y.ndim == 2 or y.dtype.kind == "f":
            if not np.isfinite(y).all():
                raise ValueError(f"{self.y}: wanted finite numbers, got nan or infinity")
            return y.reshape(len(y), -1).astype(np.float32)
        if y.min() < 0:
            raise ValueError(f"{self.y}: labels are 0, 1, 2, ...; got {y.min()}")
        return y.astype(np.int64)

    def _open(self, file: str) -> np.ndarray:
        """The array of a file, memory-mapped."""
        path = next((p for p in (Path(file).expanduser(), self.folder / file) if p.is_file()), None)
        if path is None:
            raise not_found("Arrays", self.folder, [file], f"no file {file}")
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: wanted a .npy array of numbers: {error}") from error


def measured(store: Store) -> Scaling:
    """The scaling of a store's images, by their statistics."""
    name = next(name for name, dtype in DTYPES.items() if dtype == store.dtype)
    return Scaling() if name == "uint8" else Scaling.measured(name, **statistics(store))
