"""Reduced images: the mean of each block of pixels, e.g. for the base of a cascade on the data of its later stages."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.data.store import InMemory, Store, blocks


class Reduced(Store):
    """The images of another store, reduced when they are taken.

    Args:
        source: of the images (C, H, W).
        factor: side of a block, in pixels; it divides H and W.
    """

    def __init__(self, source: Store, factor: int) -> None:
        self.source, self.factor = source, factor
        self.shape, self.dtype = reduced_shape(source.shape, factor), source.dtype

    @classmethod
    def of(cls, store: Store, factor: int) -> Store:
        """The store with its images reduced: at once if they are in memory, unchanged by a factor of 1."""
        if factor == 1:
            return store
        found = cls(store, factor)
        return (
            InMemory(torch.cat([found.take(part) for part in blocks(store)])) if isinstance(store, InMemory) else found
        )

    def __len__(self) -> int:
        return len(self.source)

    def __copy__(self) -> Reduced:
        return Reduced(copy(self.source), self.factor)

    @property
    def nbytes(self) -> int:
        return self.source.nbytes // self.factor**2

    @property
    def sequential(self) -> bool:
        """Whether the images are read efficiently in their own order only."""
        return getattr(self.source, "sequential", False)

    @property
    def fingerprint(self) -> str:
        """Identifies the images and their order, if the source has such a text."""
        known = getattr(self.source, "fingerprint", "")
        return known and f"{known} reduced by {self.factor}"

    def take(self, index: Tensor, pin: bool = False) -> Tensor:
        x = reduced(self.source.take(index), self.factor)
        return x.pin_memory() if pin else x

    def ahead(self, index: Tensor) -> None:
        self.source.ahead(index)

    def arrange(self, order: Tensor, generator: torch.Generator) -> Tensor:
        return self.source.arrange(order, generator)

    def follow(self, order: Tensor, then: Callable[[], Tensor]) -> None:
        self.source.follow(order, then)

    def to(self, device: torch.device) -> Store:
        if device.type == "cpu":
            return self
        return InMemory(torch.cat([self.take(part).to(device) for part in blocks(self)]))


def reduced(raw: Tensor, factor: int) -> Tensor:
    """Raw images (B, C, H, W) as the means of their blocks, (B, C, H / factor, W / factor); integers are rounded."""
    mean = F.avg_pool2d(raw.float(), factor)
    return mean if raw.dtype == torch.float32 else mean.round().to(torch.int32).to(raw.dtype)


def reduced_shape(shape: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    """(C, H / factor, W / factor).

    Raises:
        ValueError: the factor does not divide the sides.
    """
    C, H, W = shape
    if H % factor or W % factor:
        raise ValueError(f"data.reduce: {factor} does not divide images of {H}x{W}; give a divisor of both sides")
    return C, H // factor, W // factor
