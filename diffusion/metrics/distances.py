"""Distances between many images, computed in blocks of rows."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion.metrics.pixels import Pixels

ROWS = 512
NUMBERS = 2**24  # of the rows that are in memory at a time
Rows = Tensor | Pixels


def rows(x: Rows, y: Rows, size: int = ROWS) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances (size, M) of x (N, D) to y (M, D) in float64, block by block.

    Not computed by a matrix product, so that the distance between equal rows is exactly 0 and ties are exact.
    """
    x, y = (held(x),) * 2 if x is y else (held(x), held(y))
    first = 0
    for part in x.split(size):
        part = part.double().flatten(1)
        found = [
            torch.cdist(part, block.double().flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
            for block in y.split(many(y))
        ]
        yield slice(first, first + len(part)), torch.cat(found, 1)
        first += len(part)


def held(x: Rows) -> Rows:
    """Rows in memory if they have at most `NUMBERS` numbers, so that they are read once."""
    return x.tensor() if isinstance(x, Pixels) and len(x) <= many(x) else x


def many(x: Rows) -> int:
    """How many rows of x have `NUMBERS` numbers."""
    return max(NUMBERS // max(math.prod(x.shape[1:]), 1), 1)


def radii(x: Rows, k: int) -> Tensor:
    """The distance of each row of x (N, D) to its k-th nearest other row: (N,)."""
    return torch.cat([d.kthvalue(k + 1, dim=1).values for _, d in rows(x, x)])


def nearest(x: Rows, y: Rows, size: int = ROWS) -> tuple[Tensor, Tensor]:
    """The distance of each row of x (N, ...) to the nearest row of y (M, ...), float64, and its index: (N,), (N,).

    The nearest row is found by fast float32 products; its distance is then computed exactly.
    """
    found, index = [], []
    x, y = held(x), held(y)
    y, order = y.in_order() if isinstance(y, Pixels) else (y, None)
    for some in x.split(max(4 * many(x), size)):
        parts = some.float().flatten(1).split(size)
        best = [
            (part.new_full((len(part),), torch.inf), part.new_zeros(len(part), dtype=torch.int64)) for part in parts
        ]
        first = 0
        for block in y.split(many(y)):
            block = block.float().flatten(1)
            half = block.square().sum(1) / 2
            for k, part in enumerate(parts):
                least, place = (half - part @ block.T).min(1)
                nearer = least < best[k][0]
                best[k] = torch.where(nearer, least, best[k][0]), torch.where(nearer, place + first, best[k][1])
            first += len(block)
        for part, (_, place) in zip(parts, best, strict=True):
            near = y[place]
            near = near.tensor() if isinstance(near, Pixels) else near
            found.append((part.double() - near.double().flatten(1)).norm(dim=1))
            index.append(place if order is None else order[place])
    return torch.cat(found), torch.cat(index)
