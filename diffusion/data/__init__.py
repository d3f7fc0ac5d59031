"""Data sets, independent of models. A batch is (x0, y), or (x0, y, pair) with paired images."""

from diffusion.data.arrays import Arrays
from diffusion.data.base import ImageData
from diffusion.data.batches import Batches
from diffusion.data.cifar import CIFAR10, CIFAR100
from diffusion.data.digits import Digits
from diffusion.data.files import DataNotFound
from diffusion.data.mnist import MNIST, FashionMNIST
from diffusion.data.prepared import Prepared
from diffusion.data.sprites import Sprites

__all__ = [
    "CIFAR10", "CIFAR100", "MNIST", "Arrays", "Batches", "DataNotFound", "Digits", "FashionMNIST", "ImageData",
    "Prepared", "Sprites",
]  # fmt: skip
