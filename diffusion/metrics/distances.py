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
    """The distance of each row of x (N, ...) to the nearest row of y (M, ...), float64, and its index: (N,), (N,)."""
    distances, index = neighbours(x, y, 1, size)
    return distances[:, 0], index[:, 0]


def neighbours(x: Rows, y: Rows, k: int, size: int = ROWS) -> tuple[Tensor, Tensor]:
    """The distances of each row of x (N, ...) to its k nearest rows of y (M, ...), nearest first, and their indices.

    The nearest rows are found by fast float32 products; their distances are then computed exactly, in float64.

    Args:
        k: 1 .. M.
    Returns:
        Distances (N, k) float64, ascending, and indices (N, k).
    """
    found, index = [], []
    x, y = held(x), held(y)
    y, order = y.in_order() if isinstance(y, Pixels) else (y, None)
    for some in x.split(max(4 * many(x), size)):
        parts = some.float().flatten(1).split(size)
        best = [
            (part.new_full((len(part), k), torch.inf), part.new_zeros((len(part), k), dtype=torch.int64))
            for part in parts
        ]
        first = 0
        for block in y.split(many(y)):
            block = block.float().flatten(1)
            half = block.square().sum(1) / 2
            for n, part in enumerate(parts):
                best[n] = least(best[n], half - part @ block.T, first)
            first += len(block)
        for part, (_, places) in zip(parts, best, strict=True):
            columns = []
            for place in places.unbind(1):
                near = y[place]
                near = near.tensor() if isinstance(near, Pixels) else near
                columns.append((part.double() - near.double().flatten(1)).norm(dim=1))
            distances, by = torch.stack(columns, 1).sort(dim=1, stable=True)
            places = places.gather(1, by)
            found.append(distances)
            index.append(places if order is None else order[places])
    return torch.cat(found), torch.cat(index)


def least(best: tuple[Tensor, Tensor], values: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The k least values of each row and their places: of those found before, and of further ones.

    Args:
        best: values (N, k), ascending, and places (N, k).
        values: (N, M), in the places from `first` on.
    """
    k = best[0].shape[1]
    if k == 1:  # faster than topk
        more, place = values.min(1, keepdim=True)
    else:
        more, place = values.topk(min(k, values.shape[1]), largest=False)
    values, places = torch.cat([best[0], more], 1), torch.cat([best[1], place + first], 1)
    by = values.argsort(dim=1, stable=True)[:, :k]  # of equal values, those found first
    return values.gather(1, by), places.gather(1, by)
