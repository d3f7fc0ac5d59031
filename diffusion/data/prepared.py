"""A folder written by `diffusion prepare`: images of any number and type, read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.data.aside import Aside, SetAside
from diffusion.data.augment import Augmentation
from diffusion.data.base import ImageData, Latents, Split
from diffusion.data.facts import found, read_facts
from diffusion.data.remote import Address, is_address, local, small
from diffusion.data.store import Shards, Store, everything
from diffusion.data.streamed import Streamed, room_for
from diffusion.data.words import captions, multi_hot, vocabulary
from diffusion.support.paths import data_root
from diffusion.support.pretrained import vocabulary_of
from diffusion.support.scaling import Scaling
from diffusion.support.tokens import Tokens

NUMBERS = {"train": 0, "test": 1}  # of the splits in split.npy
CAPTIONS = "captions.jsonl"
FEWEST = 2  # words to be conditioned on
IN_ORDER = 2  # shards in a window of the test split, whose order is fixed


class Prepared(ImageData):
    """The images of a prepared folder, with its split, its classes or targets, and its statistics.

    Images are read from the folder's shards batch by batch, or once into a GPU's memory if they take less than half of
    what is free there; main memory holds none of them. Shards behind an address are fetched ahead of need, and only
    some are kept on disk; the order then mixes the images of `window` shards at a time. 16-bit images are scaled by
    their range, float images to mean 0 and standard deviation 0.5 per channel, both as measured on the training split.

    Args:
        folder: written by `diffusion prepare`; a path, or relative to the root, or an address, such as
            s3://bucket/photos or https://host/photos.
        flip: mirror training images left to right.
        no_flip: names of classes whose images are never mirrored.
        y: what the images are conditioned on: classes (or the clusters that replace them), targets (vectors), words
            (vectors of 0 and 1, one entry per word of the captions' vocabulary, see `data.words`), or auto: the first
            of these that the folder has; or text (tokens of the captions).
        batch_size: images per batch and process, >= 1.
        seed: seed of the order and the flips, >= 0.
        root: folder of the data; default $SM_CHANNEL_TRAINING, $DIFFUSION_DATA, or `data` (from a wheel: here).
        labels: False declares no classes, targets or words (an unconditional model).
        limit: use the first n training images only; 0 uses all.
        augment: further random changes of the training images, see `data.augment`.
        balance: 0 draws every training image once per epoch; 1 draws every class equally often; between, and above,
            a class of frequency f is drawn in proportion to f^(1 - balance).
        latents: of a model with a codec: fly encodes the images of each batch, after their augmentation; cache encodes
            all training images once, before training.
        reduce: side of the blocks of pixels that images are reduced to the mean of; 1 leaves them as they are.
        window: of a folder behind an address: shards whose images are mixed with each other, 1..256. It determines the
            order, so a run is resumed with the same.
        disk: of a folder behind an address: GiB of shards and test images that are kept on disk, at least two windows;
            0 for two windows of shards, and test images up to as much again.
        text_encoder: with y text: folder of a pretrained CLIP or T5 as transformers saves it, which stays frozen; by
            default the network learns its own.

    Raises:
        DataNotFound: there is no complete prepared folder at the path or address.
        ConnectionError: the address cannot be reached.
        ValueError: files that do not match, an unknown class in `no_flip`, a `y` that the folder does not have, or
            `balance` without classes.
    """

    folder: str = ""  # as given; `path` is where it is

    def __init__(
        self,
        folder: str,
        flip: bool = False,
        no_flip: Sequence[str] = (),
        y: Literal["auto", "classes", "targets", "words", "text"] = "auto",
        batch_size: int = 128,
        seed: int = 0,
        root: str | None = None,
        labels: bool = True,
        limit: int = 0,
        augment: Sequence[Augmentation] = (),
        balance: float = 0.0,
        window: int = 32,
        disk: float = 0.0,
        latents: Latents = "fly",
        reduce: int = 1,
        text_encoder: str = "",
    ) -> None:
        super().__init__(batch_size, seed, root, labels, limit, augment, balance, latents, reduce)
        self.folder, self.window, self.disk = folder, window, disk
        self.address = Address(folder) if is_address(folder) else None
        self.path = local(self.address) if self.address else found(Path(folder).expanduser(), data_root(root))
        self.facts = read_facts(self.path)
        self._room, self._aside, self._why = room_for(self.facts, window, disk) if self.address else (0, False, "")
        has = {"classes": tuple(self.facts["classes"])}
        has["targets"] = tuple(self.facts["targets"]) if (self.path / "targets.npy").is_file() else ()
        if y == "words" or y == "auto" and labels and not any(has.values()):
            has["words"] = self._vocabulary()
        self.text_encoder = text_encoder
        if text_encoder and y != "text":
            raise ValueError("Prepared: a text_encoder reads captions; give y: text as well")
        if y == "text":
            told = bool(self.facts.get("captions"))
            has["text"] = told and ((text_encoder,) if text_encoder else self.vocabulary.words)
        if y not in ("auto", *has) or y != "auto" and not has[y]:
            there = " and ".join(name for name, it in has.items() if it) or "neither classes nor targets"
            few = f" and captions with fewer than {FEWEST} usable words" if self.facts.get("captions") else ""
            raise ValueError(f"Prepared: y {y!r}, but {folder} has {there}{few}; prepare it with them, or leave y out")
        self.flip, self.no_flip, self.y = flip, tuple(no_flip), y
        self.channels = self.facts["shape"][0]
        self.conditions = next((kind for kind, names in has.items() if names), "classes") if y == "auto" else y
        self.context = self.conditions in ("targets", "words")
        self.class_names = () if y == "text" else has[self.conditions]
        if self.conditions == "classes" and self.facts.get("clusters"):
            self.conditions = "clusters"  # classes for a network, but not for a judge
        if unknown := [name for name in self.no_flip if self.context or name not in self.class_names]:
            there = "the images have none" if self.context else f"there are: {', '.join(self.class_names)}"
            raise ValueError(f"Prepared: no_flip {unknown[0]!r} is no class; {there}")
        if balance and self.conditions != "classes":
            raise ValueError(
                f"Prepared: balance is between classes, and the images have {self.conditions}; leave it out"
            )
        self.no_flip_classes = tuple(map(self.class_names.index, self.no_flip))

    @property
    def whole(self) -> tuple[int, int, int]:
        return tuple(self.facts["shape"])

    @property
    def scaling(self) -> Scaling:
        return Scaling.measured(self.facts["dtype"], **self.facts["statistics"])

    @property
    def name(self) -> str:
        """The name that the folder was given."""
        return self.facts["name"]

    def open(self, split: Split) -> tuple[Store, Tensor]:
        mine = self._of(split)
        if len(mine) != self.facts["images"][split]:
            raise ValueError(
                f"{self.path}: split.npy has {len(mine):,} images in {split!r} and dataset.json "
                f"{self.facts['images'][split]:,}; prepare the folder again"
            )
        mine = mine[: self.limit or None] if split == "train" else mine
        rows = self._read("rows.npy")[mine]
        if self.address is None:
            return Shards(self.path, rows), self._targets(mine)
        return self._streamed(split, rows), self._targets(mine)

    def _streamed(self, split: Split, rows: np.ndarray) -> Streamed:
        """A store of images behind the address."""
        if split == "test":
            if self._why:
                pl.utilities.rank_zero_warn(f"{self.folder}: {self._why}")
            if self._aside:
                return SetAside(self.address, self.path, rows, self._room)
            return Streamed(self.address, self.path, rows, min(self.window, IN_ORDER), self._room)
        store = Streamed(self.address, self.path, rows, self.window, self._room)
        if self._aside:
            store.aside = Aside(self._read("rows.npy")[self._of("test")], store.first)
        return store

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        images, y = self.open(split)
        return everything(images), y

    def _targets(self, mine: np.ndarray) -> Tensor:
        """Labels (N,) int64, targets or words (N, D) float32, or tokens (N, L) int64, of images; zeros without any."""
        if self.conditions == "text":
            return self.vocabulary.encode(self._captions(mine))
        if self.conditions == "words":
            return multi_hot(self._captions(mine), self.class_names, len(mine))
        if self.context:
            return torch.from_numpy(self._read("targets.npy")[mine].astype(np.float32))
        if not self.class_names:
            return torch.zeros(len(mine), dtype=torch.int64)
        return torch.from_numpy(self._read("labels.npy")[mine].astype(np.int64))

    @cached_property
    def vocabulary(self) -> Tokens:
        """The tokens of the training split's captions, whatever its `limit`."""
        return vocabulary_of(self._captions(self._of("train")), self.text_encoder)

    @property
    def tokens(self) -> dict[str, Any] | None:
        return self.vocabulary.plain if self.conditions == "text" and self.labels else None

    def texts(self, split: Split) -> list[str]:
        if not self.facts.get("captions"):
            return super().texts(split)
        mine = self._of(split)
        found = self._captions(mine[: self.limit or None] if split == "train" else mine)
        return [text or "" for text in found]

    def _of(self, split: Split) -> np.ndarray:
        """The numbers of a split's images in the folder."""
        return np.flatnonzero(self._read("split.npy") == NUMBERS[split])

    def _vocabulary(self) -> tuple[str, ...]:
        """The words of the training split's captions, whatever its `limit`; () if they are fewer than two."""
        if not self.facts.get("captions"):
            return ()
        words = vocabulary(self._captions(self._of("train")))
        return words if len(words) >= FEWEST else ()

    def _captions(self, mine: np.ndarray) -> Iterator[str | None]:
        """The captions of images, in the folder's order."""
        if self.address:
            small(self.address, self.path, CAPTIONS)
        chosen = np.zeros(sum(self.facts["images"].values()), bool)
        chosen[mine] = True
        return captions(self.path / CAPTIONS, chosen)

    def _read(self, name: str) -> np.ndarray:
        """A file with a row for each image of the folder.

        Raises:
            ValueError: it is damaged, or of another length than the folder's splits together.
        """
        total = sum(self.facts["images"].values())
        try:
            read = np.load(self.path / name, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{self.path / name}: {error}; prepare the folder again") from error
        if len(read) != total:
            raise ValueError(f"{self.path / name}: {len(read):,} rows for {total:,} images; prepare the folder again")
        return read
