"""The data sets of the race with clusters of the training images in place of labels."""

import time
from functools import cache
from typing import ClassVar, NamedTuple

from torch import Tensor

from diffusion.data import CIFAR10, MNIST, Digits, FashionMNIST
from diffusion.data.base import Split
from diffusion.data.clusters import kmeans, nearest, reduced

PASSES = 10  # of k-means; after so many the sum of squares of Fashion-MNIST is within 1 % of its last value


class Clustered:
    """For a data set, whose labels it replaces: y is the nearest of K clusters of the training images, by its seed."""

    count: ClassVar[int] = 100  # K
    class_names = tuple(map(str, range(100)))
    changed_by = ()

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        images, _ = super().load(split)
        found = clusters(type(self), self.root, self.seed)
        return images, found.y if split == "train" else nearest(reduced(images), found.centres)


class Found(NamedTuple):
    """Clusters: their centres, those of the training images (N,), and the seconds of this process and on the wall."""

    centres: Tensor
    y: Tensor
    cpu: float
    wall: float


@cache
def clusters(kind: type[Clustered], root: str | None, seed: int) -> Found:
    """The clusters of a data set, found once per process."""
    images, _ = super(Clustered, kind(root=root)).load("train")
    cpu, wall = time.process_time(), time.perf_counter()
    small = reduced(images)
    centres = kmeans(small, kind.count, seed, PASSES)
    return Found(centres, nearest(small, centres), time.process_time() - cpu, time.perf_counter() - wall)


class ClusteredDigits(Clustered, Digits):
    """`Digits` with 60 clusters."""

    count, class_names = 60, tuple(map(str, range(60)))


class ClusteredMNIST(Clustered, MNIST):
    """`MNIST` with 100 clusters."""


class ClusteredFashionMNIST(Clustered, FashionMNIST):
    """`FashionMNIST` with 100 clusters."""


class ClusteredCIFAR10(Clustered, CIFAR10):
    """`CIFAR10` with 100 clusters."""


KINDS = {
    "digits": ClusteredDigits, "mnist": ClusteredMNIST, "fashionmnist": ClusteredFashionMNIST,
    "cifar10": ClusteredCIFAR10,
}  # fmt: skip
