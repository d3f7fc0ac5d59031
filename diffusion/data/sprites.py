"""Sprites of 16x16 pixels with a context vector, from a pair of .npy files or drawn by the package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from diffusion.data.augment import Augmentation
from diffusion.data.base import ImageData, Latents, Split
from diffusion.data.files import not_found
from diffusion.data.scenes import attributes, draw_scenes, held_out
from diffusion.data.sentences import captions as sentences
from diffusion.data.sprite_art import draw_sprites
from diffusion.support.pretrained import vocabulary_of
from diffusion.support.tokens import Tokens

PAIRS = (  # in the root or in its folder `sprites`; the second pair is named as in the short course
    ("sprites_16x16.npy", "sprite_labels_16x16.npy"),
    ("sprites_1788_16x16.npy", "sprite_labels_nc_1788_16x16.npy"),
)
TEST = 0.05
CAPTIONED = {"train": range(24_000), "test": range(24_000, 25_200)}  # numbers of the drawn pictures with captions


class Sprites(ImageData):
    """Sprites, 3x16x16 on white, y a one-hot float32 context vector of five classes; 95 % training, 5 % test.

    Read from a pair of files, images uint8 (N,16,16,3) and labels one-hot (N,5); without one under the root, 7,500 are
    drawn by `draw_sprites`. Copies of one picture all fall in the same split, so the test part is never trained on.
    Nothing is flipped: shadows fall to the right, and weapons are in the same hand.

    With captions, y are tokens of a sentence for each picture, which is drawn (`data.scenes`). Training leaves out the
    held-out combinations (about 17 %); the test split has all in their proportions.

    Args:
        batch_size: images per batch and process, >= 1.
        seed: seed of the order, >= 0.
        root: folder of the data; default $SM_CHANNEL_TRAINING, $DIFFUSION_DATA, or `data` (from a wheel: here).
        labels: False declares no context (an unconditional model).
        limit: use the first n training images only; 0 uses all.
        images: file of the images; requires `labels_file`.
        labels_file: file of the labels.
        drawn: draw the sprites even if there are files under the root.
        captions: draw sprites with a sentence for each; no files are read.
        text_encoder: of captions: folder of a pretrained CLIP or T5 as transformers saves it, which stays frozen;
            by default the network learns its own.
        augment: further random changes of the training images, see `data.augment`.
        balance: 0 draws every training image once per epoch; 1 draws every class equally often; between, and above,
            a class of frequency f is drawn in proportion to f^(1 - balance).
        latents: of a model with a codec: fly encodes the images of each batch, after their augmentation; cache encodes
            all training images once, before training.
        reduce: side of the blocks of pixels that images are reduced to the mean of; 1 leaves them as they are.

    Raises:
        DataNotFound: a given file does not exist.
        ValueError: arrays of a wrong shape or type or of different lengths, or labels that are not one-hot.
    """

    channels, size = 3, 16
    class_names = ("hero", "non-hero", "food", "spell", "side-facing")
    changed_by = ("x_flip",)  # side-facing
    context = True

    def __init__(
        self,
        batch_size: int = 128,
        seed: int = 0,
        root: str | None = None,
        labels: bool = True,
        limit: int = 0,
        images: str | None = None,
        labels_file: str | None = None,
        drawn: bool = False,
        augment: Sequence[Augmentation] = (),
        balance: float = 0.0,
        latents: Latents = "fly",
        reduce: int = 1,
        captions: bool = False,
        text_encoder: str = "",
    ) -> None:
        super().__init__(batch_size, seed, root, labels, limit, augment, balance, latents, reduce)
        if captions and (images is not None or balance):
            raise ValueError("Sprites: captions are of drawn sprites, without classes; leave images and balance out")
        if text_encoder and not captions:
            raise ValueError("Sprites: a text_encoder reads captions; give captions: true as well")
        if (images is None) != (labels_file is None):
            raise ValueError(f"Sprites: give both images and labels_file or neither, got {images!r}, {labels_file!r}")
        if drawn and images is not None:
            raise ValueError("Sprites: drawn and images exclude each other; leave one out")
        self.images, self.labels_file, self.drawn = images, labels_file, drawn
        self.captions, self.text_encoder = captions, text_encoder
        if captions:
            self.class_names, self.context, self.conditions = (), False, "text"
        self._read: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def variant(self) -> str:
        return "text" if self.captions else "" if self._files() else "drawn"

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._read = None  # both splits have been copied

    @cached_property
    def vocabulary(self) -> Tokens | None:
        """The tokens of the training captions, whatever the `limit`; None without captions."""
        return vocabulary_of(self.texts("train"), self.text_encoder) if self.captions else None

    @property
    def tokens(self) -> dict[str, Any] | None:
        return self.vocabulary.plain if self.captions and self.labels else None

    def texts(self, split: Split) -> list[str]:
        return sentences(self.attributes(split), self._numbers(split)) if self.captions else super().texts(split)

    def attributes(self, split: Split) -> np.ndarray:
        """The attributes (N, 7) int64 of the captioned pictures of a split, see `scenes.ATTRIBUTES`."""
        return attributes(self._numbers(split))

    def _numbers(self, split: Split) -> np.ndarray:
        """The numbers of the captioned pictures of a split."""
        index = np.array(CAPTIONED[split])
        return index if split == "test" else index[~held_out(attributes(index))]

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        if self.captions:
            images = draw_scenes(self.attributes(split), self._numbers(split))
            return torch.from_numpy(images.transpose(0, 3, 1, 2)), self.vocabulary.encode(self.texts(split))
        if self._read is None:
            self._read = self._open()
        images, labels = self._read
        index = split_by_picture(images)[split]
        return torch.from_numpy(images[index].transpose(0, 3, 1, 2)), torch.from_numpy(labels[index])

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        pair = self._files()
        if pair is None:
            if not self.drawn:
                rank_zero_info(f"Sprites: no files in {self.folder}; using sprites drawn by the package")
            images, classes = draw_sprites()
            return images, np.eye(5, dtype=np.float32)[classes]
        for file in pair:
            if not file.is_file():
                raise not_found("Sprites", file.parent, [file.name], f"no file {file}")
        return read_pair(*pair)

    def _files(self) -> tuple[Path, Path] | None:
        if self.drawn:
            return None
        if self.images is not None and self.labels_file is not None:
            return Path(self.images).expanduser(), Path(self.labels_file).expanduser()
        pairs = [(place / a, place / b) for place in (self.folder / "sprites", self.folder) for a, b in PAIRS]
        return next((pair for pair in pairs if all(file.is_file() for file in pair)), None)


def read_pair(images_file: Path, labels_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read and check a pair of files.

    Returns:
        (N,16,16,3) uint8 images and (N,5) float32 one-hot labels.

    Raises:
        ValueError: a wrong shape, type or number of rows.
    """
    images, labels = _load(images_file), _load(labels_file)
    if images.shape[1:] != (16, 16, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"{images_file}: wanted uint8 (N,16,16,3), got {images.dtype} {images.shape}; convert it first"
        )
    if labels.shape[1:] != (5,) or labels.dtype.kind not in "buif":
        raise ValueError(f"{labels_file}: wanted numbers (N,5), got {labels.dtype} {labels.shape}; one row per image")
    if len(images) != len(labels) or len(images) < 2:
        raise ValueError(
            f"{images_file} has {len(images)} images and {labels_file} {len(labels)} labels; "
            "wanted the same number, 2 or more; use a matching pair"
        )
    bad = np.flatnonzero(((labels != 0) & (labels != 1)).any(1) | (labels.sum(1) != 1))
    if len(bad):
        raise ValueError(
            f"{labels_file}: wanted one-hot rows, got {labels[bad[0]].tolist()} in row {bad[0]} "
            f"({len(bad)} such rows); make each row one 1 and four 0"
        )
    return images, labels.astype(np.float32)


def split_by_picture(images: np.ndarray, share: float = TEST) -> dict[str, np.ndarray]:
    """A fixed split of (N,...) images in which equal images stay together; about `share` of them in "test".

    The training part is in a mixed order, so its first n images are of all classes. Images in a file that is mapped are
    not copied.
    """
    which = pictures_of(images)
    random = np.random.RandomState(0)  # RandomState: its stream never changes
    kinds = int(which.max()) + 1
    in_test = (random.permutation(kinds) < max(1, round(kinds * share)))[which]
    order = random.permutation(len(images))
    return {"train": order[~in_test[order]], "test": order[in_test[order]]}


def pictures_of(images: np.ndarray, block: int = 1024) -> np.ndarray:
    """The number of the picture that each image (N,...) is: its rank among the different ones, by their bytes, (N,).

    As `np.unique` over the rows gives it, without its copies of them: rows are sorted by their place and compared with
    their neighbours a block at a time.
    """
    rows = np.ascontiguousarray(images.reshape(len(images), -1)).view(np.uint8)
    order = np.argsort(rows.view(f"V{rows.shape[1]}").ravel(), kind="stable")
    new = np.ones(len(rows), bool)
    for at in range(1, len(rows), block):
        part = rows[order[at - 1 : at + block]]
        new[at : at + block] = (part[1:] != part[:-1]).any(1)
    which = np.empty(len(rows), np.int64)
    which[order] = np.cumsum(new) - 1
    return which


def _load(file: Path) -> np.ndarray:
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file}: wanted a .npy array of numbers: {error}") from error
