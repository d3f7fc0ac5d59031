"""The images of a race, the same for all entries."""

from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from diffusion.data import CIFAR10, MNIST, Digits, FashionMNIST, ImageData

DATA = {"digits": Digits, "mnist": MNIST, "fashionmnist": FashionMNIST, "cifar10": CIFAR10}
CONFIGS = {  # this project's configuration for a CPU
    "digits": "digits", "mnist": "mnist_cpu", "fashionmnist": "fashion_cpu", "cifar10": "cifar10_cpu",
}  # fmt: skip
SMALLER = {"mnist": 32, "fashionmnist": 32, "cifar10": 32}  # batches, where the configuration's are for an hour


def batch(name: str) -> int:
    """Images per step of this project's entries, and of the second entries of others."""
    return SMALLER.get(name, 64)


def opened(name: str) -> ImageData:
    """A data set, downloaded if necessary."""
    data = DATA[name]()
    data.prepare_data()
    return data


def scaled(images: Tensor) -> Tensor:
    """Raw images in [-1, 1]."""
    return images.float() / 127.5 - 1


def endless(images: Tensor, y: Tensor, batch: int):
    """Batches (x0, y) from memory, epoch after epoch: no other loop loses time by its data."""
    loader = DataLoader(TensorDataset(scaled(images), y), min(batch, len(images)), shuffle=True, drop_last=True)
    while True:
        yield from loader
