"""MNIST and Fashion-MNIST, padded from 28 to 32 pixels with black."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets

from diffusion.data.base import ImageData, Split
from diffusion.data.files import check_md5, fetch, not_found

PARTS = {"train": "train", "test": "t10k"}


class MNIST(ImageData):
    """60,000 training and 10,000 test images of handwritten digits, 1x32x32, without flips.

    Reads `MNIST/raw/train-images-idx3-ubyte` and its three counterparts below the root, unpacked or `.gz`, also from a
    folder that cannot be written; `prepare_data` downloads them when they are absent. Every file is checked.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition.

    Raises:
        DataNotFound: when the files are absent and cannot be downloaded.
        ValueError: for a file that is truncated or altered; the message names it.
    """

    channels, size = 1, 32
    class_names = tuple("0123456789")
    changed_by = ("x_flip", "y_flip", "rotate")  # 6 and 9
    source: ClassVar[type[datasets.MNIST]] = datasets.MNIST
    md5: ClassVar[Mapping[str, str]] = {  # of the unpacked files
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }

    @property
    def raw(self) -> Path:
        """Folder of the four files."""
        return self.folder / self.source.__name__ / "raw"

    def prepare_data(self) -> None:
        if all(self._find(name) for name in self.md5):
            return
        place = Path(self.source.__name__, "raw")
        try:
            fetch(
                self.folder,
                lambda folder: _download(self.source, folder),
                [str(place / name) for name in self.md5],
            )
        except (RuntimeError, OSError) as error:
            raise self._absent("tried to download from torchvision's mirrors", error) from error

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        images = self._read(f"{PARTS[split]}-images-idx3-ubyte")[:, None]  # (N,1,28,28)
        labels = self._read(f"{PARTS[split]}-labels-idx1-ubyte")
        return F.pad(images, (2, 2, 2, 2)), labels.long()

    def _find(self, name: str) -> Path | None:
        files = (self.raw / name, self.raw / f"{name}.gz")
        return next((file for file in files if file.is_file()), None)

    def _absent(self, tried: str, cause: object = None) -> FileNotFoundError:
        place = f"{self.source.__name__}/raw"
        files = [f"{place}/{name}[.gz]" for name in self.md5]
        return not_found(type(self).__name__, self.folder, files, tried, cause)

    def _read(self, name: str) -> Tensor:
        """An idx file of bytes: 0, 0, 8, number of axes, each length as a big-endian int32, then the data."""
        path = self._find(name)
        if path is None:
            raise self._absent("prepare_data() downloads it")
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: {error}: the file is truncated or altered; download it again") from error
        data = check_md5(path, data, self.md5[name])
        shape = np.frombuffer(data, ">i4", data[3], 4)
        return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy())


class FashionMNIST(MNIST):
    """60,000 training and 10,000 test images of ten classes of clothing, 1x32x32, without flips: shoes all point left.

    Reads `FashionMNIST/raw/` below the root; otherwise as `MNIST`.

    Source: Xiao et al. 2017, arXiv:1708.07747.
    """

    class_names = tuple(datasets.FashionMNIST.classes)
    changed_by = ()
    source = datasets.FashionMNIST
    md5 = {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }


def _download(source: type[datasets.MNIST], folder: Path) -> None:
    source(os.fspath(folder), download=True)
