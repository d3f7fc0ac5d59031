"""Where sampling stops: n times from noise to almost clean; the clean level itself follows the last one."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffusion.noise.schedule import Schedule

Grid = Literal["trailing", "leading", "linspace"]


def trailing(schedule: Schedule, n: int) -> Tensor:
    """1, 1 - 1/n, ..., 1/n: starts at pure noise. Source: Lin et al. 2023, arXiv:2305.08891, tab. 2."""
    return _snap(1 - torch.arange(n, dtype=torch.float64) / n, schedule)


def leading(schedule: Schedule, n: int) -> Tensor:
    """Indices floor(k T / n), k = n-1 .. 0: ends at index 0, starts short of noise; what DDIM's code does.

    That code steps by floor(T / n), which leaves most of the noisy half out when n does not divide T (T = 500,
    n = 300 would start at index 299); here the n indices always span the schedule. Equal where n divides T.
    """
    T = schedule.T or 1000
    k = torch.arange(n - 1, -1, -1, dtype=torch.float64)
    return ((k * T / n).floor() + 1) / T


def linspace(schedule: Schedule, n: int) -> Tensor:
    """Even steps from 1 to t_min, both included."""
    return _snap(torch.linspace(1, schedule.t_min, n, dtype=torch.float64), schedule)


def _snap(t: Tensor, schedule: Schedule) -> Tensor:
    """The nearest levels that a discrete network was trained on; a continuous schedule takes any time."""
    return (t * schedule.T).round().clamp(min=1) / schedule.T if schedule.T else t


GRIDS: dict[str, Callable[[Schedule, int], Tensor]] = {g.__name__: g for g in (trailing, leading, linspace)}


def times(grid: Grid, schedule: Schedule, n: int) -> Tensor:
    """The n times (n,) of a grid, float64, falling from (about) 1.

    Raises:
        ValueError: n < 1, n above T, or an unknown grid.
    """
    if grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}; there are {', '.join(GRIDS)}")
    if n < 1 or (schedule.T and n > schedule.T):
        limit = f"1 .. {schedule.T}, the schedule's levels" if schedule.T else "at least 1"
        raise ValueError(f"sampling steps must be {limit}; got {n}")
    return GRIDS[grid](schedule, n)
