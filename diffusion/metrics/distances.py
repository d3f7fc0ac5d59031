"""Distances between many images, computed in blocks of rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 512


def rows(x: Tensor, y: Tensor, size: int = ROWS) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances (size, M) of x (N, D) to y (M, D) in float64, block by block.

    Not computed by a matrix product, so that the distance between equal rows is exactly 0 and ties are exact.
    """
    x, y = x.double().flatten(1), y.double().flatten(1)
    for first in range(0, len(x), size):
        part = slice(first, min(first + size, len(x)))
        yield part, torch.cdist(x[part], y, compute_mode="donot_use_mm_for_euclid_dist")


def radii(x: Tensor, k: int) -> Tensor:
    """The distance of each row of x (N, D) to its k-th nearest other row: (N,)."""
    return torch.cat([d.kthvalue(k + 1, dim=1).values for _, d in rows(x, x)])


def nearest(x: Tensor, y: Tensor, size: int = ROWS) -> tuple[Tensor, Tensor]:
    """The distance of each row of x (N, ...) to the nearest row of y (M, ...), float64, and its index: (N,), (N,).

    The nearest row is found by fast float32 products; its distance is then computed exactly.
    """
    x, y = x.float().flatten(1), y.float().flatten(1)
    half = y.square().sum(1) / 2
    index = torch.cat([(half - part @ y.T).argmin(1) for part in x.split(size)])
    pairs = zip(x.split(size), index.split(size), strict=True)
    return torch.cat([(a.double() - y[i].double()).norm(dim=1) for a, i in pairs]), index
