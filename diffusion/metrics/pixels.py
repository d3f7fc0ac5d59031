"""Images of a data set for metrics: read from where they are when they are needed, some at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from diffusion.support.scaling import Scaling

BLOCK = 256  # images that are read at a time
GATHERED = 2**30  # bytes of images that are read in the order of their places, if their store asks for it


class Source(Protocol):
    """Raw images of one shape and type, read by index; a `Store` of `diffusion.data` is one.

    A source with `sequential` is read efficiently in the order of its images only. One with `fingerprint` knows a text
    that identifies its images and their order.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor: ...

    def ahead(self, index: Tensor) -> None: ...


class Pixels:
    """Scaled images (N,C,H,W) float32 of a source, in any order; as a tensor it has a length, a shape, parts, `split`.

    Args:
        source: of the raw images.
        index: (N,) int64, the number of each image in the source.
        scaling: of raw values.
    """

    def __init__(self, source: Source, index: Tensor, scaling: Scaling) -> None:
        self.source, self.index, self.scaling = source, index, scaling

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return len(self.index), *self.source.shape

    @property
    def sequential(self) -> bool:
        """Whether the source is read efficiently in the order of its images only."""
        return getattr(self.source, "sequential", False)

    def in_order(self) -> tuple[Pixels, Tensor]:
        """The images in the order in which they are best read, and the number of each of them in this order."""
        order = self.index.argsort(stable=True) if self.sequential else torch.arange(len(self))
        return self[order], order

    def __getitem__(self, part: slice | Tensor) -> Pixels:
        return Pixels(self.source, self.index[part], self.scaling)

    def split(self, size: int) -> Iterator[Tensor]:
        """The images, `size` at a time."""
        return (self.scaling.encode(raw) for raw in self.raw(size))

    def tensor(self) -> Tensor:
        """All images in memory."""
        return torch.cat(list(self.split(BLOCK)))

    def raw(self, size: int = BLOCK) -> Iterator[Tensor]:
        """The raw images (B,C,H,W), `size` at a time."""
        index = self.index
        few = math.prod(self.shape) * self.source.dtype.itemsize <= GATHERED
        if self.sequential and few and not bool((index.diff() > 0).all()):
            gathered = torch.empty(self.shape, dtype=self.source.dtype)
            for part in index.argsort(stable=True).split(size):
                gathered.view(torch.uint8)[part] = self.source.take(index[part]).view(torch.uint8)
            yield from gathered.split(size)
            return
        parts = index.split(size)
        for part, following in zip(parts, [*parts[1:], index[:0]], strict=True):
            self.source.ahead(following)
            yield self.source.take(part)
