"""CIFAR-10 and CIFAR-100; CIFAR-10 also from a folder or archive of JPEG files."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from diffusion.data.base import ImageData, Split
from diffusion.data.files import fetch, not_found


class CIFAR10(ImageData):
    """50,000 training and 10,000 test photographs of ten classes, 3x32x32, with flips.

    Reads `cifar-10-batches-py/` below the root (verified by md5). Without it, `cifar10-jpeg/{train,test}/<class>/*.jpg`
    or `cifar10-jpeg/cifar10-jpeg.tar.gz`: JPEG is lossy, so figures on it are not comparable with published FIDs (a
    notice is printed). Without either, `prepare_data` downloads the original, or unpacks `cifar-10-python.tar.gz`.

    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.

    Raises:
        DataNotFound: when the files are absent and cannot be downloaded.
        ValueError: for a file that is truncated or altered; the message names it.
    """

    channels, size = 3, 32
    class_names: ClassVar[tuple[str, ...]] = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    flip = True
    source: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10
    jpeg: ClassVar[str | None] = "cifar10-jpeg"

    def prepare_data(self) -> None:
        if self._original.is_dir() or self._jpeg() is not None:
            return
        archive = self.folder / self.source.filename
        try:
            fetch(self.folder, lambda folder: _download(self.source, folder, archive), [self.source.base_folder])
        except (RuntimeError, OSError) as error:
            raise self._absent("tried to download from torchvision's mirror", error) from error

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        if self._original.is_dir():
            return self._load_original(split)
        place = self._jpeg()
        if place is None:
            raise self._absent("prepare_data() downloads it")
        rank_zero_info(f"{type(self).__name__}: JPEG copies from {place}; not comparable with published FIDs")
        return read_image_folder(place, split, self.class_names)

    @property
    def _original(self) -> Path:
        return self.folder / self.source.base_folder

    def _jpeg(self) -> Path | None:
        if self.jpeg is None:
            return None
        unpacked = self.folder / self.jpeg
        archive = unpacked / f"{self.jpeg}.tar.gz"
        if (unpacked / "train").is_dir() and (unpacked / "test").is_dir():
            return unpacked
        return archive if archive.is_file() else None

    def _absent(self, tried: str, cause: object = None) -> FileNotFoundError:
        files = [f"{self.source.base_folder}/ (from {self.source.filename})"]
        files += [f"or {self.jpeg}/{self.jpeg}.tar.gz"] if self.jpeg else []
        return not_found(type(self).__name__, self.folder, files, tried, cause)

    def _load_original(self, split: Split) -> tuple[Tensor, Tensor]:
        for name, md5 in [*self.source.train_list, *self.source.test_list]:
            if not check_integrity(os.fspath(self._original / name), md5):
                raise ValueError(
                    f"{self._original / name}: absent, truncated or altered (md5 {md5} wanted); "
                    f"delete {self._original} and download it again"
                )
        data = self.source(os.fspath(self.folder), train=split == "train")
        return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)


class CIFAR100(CIFAR10):
    """50,000 training and 10,000 test photographs of a hundred classes, 3x32x32, with flips.

    Reads `cifar-100-python/` below the root, or downloads it; otherwise as `CIFAR10`, without JPEG.
    """

    class_names = tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
    )
    source = datasets.CIFAR100
    jpeg = None


def read_image_folder(place: Path, split: str, class_names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Read `<split>/<class>/*.jpg` in a folder or .tar.gz, ordered by file name and then class, so classes alternate.

    Args:
        place: folder or archive.
        split: name of its first level.
        class_names: names of its second level; the label is the index.

    Returns:
        (N,3,H,W) uint8 images of one size and (N,) int64 labels.

    Raises:
        ValueError: for a damaged archive or image, a class not in `class_names`, or no images.
    """
    found: list[tuple[str, int]] = []
    images: list[np.ndarray] = []
    name = ""
    try:
        for name, data in _files(place, split):
            kind, file = Path(name).parts[-2:]
            if kind not in class_names:
                raise ValueError(f"{place}: class {kind!r} in {name}, wanted one of {', '.join(class_names)}")
            found.append((file, class_names.index(kind)))
            images.append(np.asarray(Image.open(io.BytesIO(data), formats=["JPEG"]).convert("RGB")))
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"{place}: {error} (after {name or 'its start'}): truncated or altered; download it again"
        ) from error
    if not images:
        raise ValueError(f"{place}: no {split}/<class>/*.jpg in it")
    order = sorted(range(len(found)), key=found.__getitem__)
    labels = torch.tensor([found[i][1] for i in order])
    return torch.from_numpy(np.stack([images[i] for i in order])).permute(0, 3, 1, 2), labels


def _files(place: Path, split: str) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        for path in sorted((place / split).glob("*/*.jpg")):
            yield path.relative_to(place).as_posix(), path.read_bytes()
        return
    with tarfile.open(place, "r|gz") as archive:  # read as a stream, nothing is unpacked to disk
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and member.name.endswith(".jpg") and parts[-3:-2] == (split,):
                yield member.name, archive.extractfile(member).read()


def _download(source: type[datasets.CIFAR10], folder: Path, archive: Path) -> None:
    if archive.is_file():  # torchvision checks its md5 and downloads only if it differs
        shutil.copy(archive, folder / archive.name)
    source(os.fspath(folder), download=True)
