"""Custom images with labels or vectors, such as text embeddings, from two .npy files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.data.base import ImageData, Split
from diffusion.data.files import not_found
from diffusion.data.sprites import split_by_picture


class Arrays(ImageData):
    """Images from one .npy file, with a label or a vector for each from another.

    A label is an integer in [0, number of classes). A vector may have any meaning: presence of features (multi-hot),
    measurements, a text embedding. The network receives it through one linear map, so its features should be of order
    1; "no condition" is a learned row, not a vector of zeros.
    Copies of one picture all fall into the same split.

    Args:
        images: file of uint8 (N, H, W, C) or (N, H, W); a path, or relative to the root.
        y: file of integers (N,), the labels, or of floats (N, D), the vectors; None for images without labels.
        names: of the classes, or of the D features of a vector; by default numbers for labels.
        flip: mirror training images left to right.
        test: fraction of the images in the test split, in (0, 1).
        batch_size: images per batch and process, >= 1.
        seed: seed of the order and the flips, >= 0.
        root: folder of the data; default $SM_CHANNEL_TRAINING, then $DIFFUSION_DATA, then `data` in the repository.
        labels: False declares no labels and no vectors (an unconditional model).
        limit: use the first n training images only; 0 uses all.

    Raises:
        DataNotFound: a file does not exist.
        ValueError: arrays of a wrong shape or type or of different lengths, or names that do not match.
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
    ) -> None:
        super().__init__(batch_size, seed, root, labels, limit)
        if not 0 < test < 1:
            raise ValueError(f"Arrays: test must be a fraction in (0, 1), got {test}")
        self.images, self.y, self.names, self.flip, self.test = images, y, tuple(names), flip, test
        self._images = self._open(images)
        if self._images.dtype != np.uint8 or self._images.ndim not in (3, 4) or len(self._images) < 2:
            raise ValueError(
                f"{images}: wanted uint8 (N, H, W, C) or (N, H, W) with N >= 2, "
                f"got {self._images.dtype} {self._images.shape}; convert it first"
            )
        if self._images.ndim == 3:
            self._images = self._images[..., None]
        self.channels = self._images.shape[-1]
        self._y = self._targets()
        self.context = self._y.ndim == 2
        kinds = 0 if y is None else self._y.shape[1] if self.context else int(self._y.max()) + 1
        if self.names and (len(self.names) != kinds if self.context else len(self.names) < kinds or y is None):
            raise ValueError(f"Arrays: {len(self.names)} names for {kinds} of {y}; give one for each")
        self.class_names = self.names if self.names or self.context else tuple(map(str, range(kinds)))

    @property
    def shape(self) -> tuple[int, int, int]:
        _, H, W, C = self._images.shape
        return C, H, W

    @property
    def context_dim(self) -> int:
        return self._y.shape[1] if self.labels and self.context else 0

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        images = np.ascontiguousarray(self._images)
        index = split_by_picture(images, self.test)[split]
        return torch.from_numpy(images[index].transpose(0, 3, 1, 2)), torch.from_numpy(self._y[index])

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
