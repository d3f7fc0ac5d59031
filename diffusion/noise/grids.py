"""Sampling grids: n times from noise to almost clean; the clean level itself follows the last one."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffusion.noise.schedule import Schedule

Grid = Literal["trailing", "leading", "linspace", "quadratic", "karras", "log_snr"]

RHO = 7  # EDM's spacing of sigma
NEARLY = 0.999  # replaces t = 1 where no signal remains and log-SNR is -inf


def trailing(schedule: Schedule, n: int) -> Tensor:
    """1, 1 - 1/n, ..., 1/n: starts at pure noise. Source: Lin et al. 2023, arXiv:2305.08891, tab. 2."""
    return _snap(1 - torch.arange(n, dtype=torch.float64) / n, schedule)


def leading(schedule: Schedule, n: int) -> Tensor:
    """Indices floor(k T / n), k = n-1 .. 0: ends at index 0, starts short of pure noise; as in DDIM's code.

    That code uses a stride of floor(T / n), which skips much of the noisy half when n does not divide T (T = 500,
    n = 300 would start at index 299); here the n indices always span the schedule. Identical where n divides T.
    """
    T = schedule.T or 1000
    k = torch.arange(n - 1, -1, -1, dtype=torch.float64)
    return ((k * T / n).floor() + 1) / T


def linspace(schedule: Schedule, n: int) -> Tensor:
    """Even steps from 1 to t_min, both included."""
    return _snap(torch.linspace(1, schedule.t_min, n, dtype=torch.float64), schedule)


def quadratic(schedule: Schedule, n: int) -> Tensor:
    """(k / n)^2, k = n .. 1: most steps at low noise. Source: Song et al. 2021, arXiv:2010.02502, app. D.2.

    On a table of T levels, the k-th time from the end is at least k levels up, so that no level is repeated.
    """
    k = torch.arange(n, 0, -1, dtype=torch.float64)
    t = (k / n) ** 2
    if schedule.T:
        return torch.maximum((t * schedule.T).round(), k) / schedule.T
    return schedule.t_min + (1 - schedule.t_min) * t


def karras(schedule: Schedule, n: int) -> Tensor:
    """Even steps in (sigma / alpha)^(1/7), from t = 1 to t_min. Source: Karras et al. 2022, arXiv:2206.00364, eq. 5."""
    high, low = (schedule.level(t).ratio ** (1 / RHO) for t in _ends(schedule))
    return _between(schedule, n, -2 * RHO * torch.lerp(high, low, torch.linspace(0, 1, n, dtype=torch.float64)).log())


def log_snr(schedule: Schedule, n: int) -> Tensor:
    """Even steps in log-SNR, from t = 1 to t_min. Source: Lu et al. 2022, arXiv:2206.00927, sec. 3.4."""
    low, high = (schedule.level(t).log_snr for t in _ends(schedule))
    return _between(schedule, n, torch.lerp(low, high, torch.linspace(0, 1, n, dtype=torch.float64)))


def _ends(schedule: Schedule) -> tuple[Tensor, Tensor]:
    one = torch.ones((), dtype=torch.float64)
    nearly = 1 - 1 / schedule.T if schedule.T else NEARLY
    return (one if schedule.scales(one)[0] > 0 else nearly * one), one * schedule.t_min


def _between(schedule: Schedule, n: int, log_snr: Tensor) -> Tensor:
    """The times of these log-SNRs; the first is exactly t = 1 and the last exactly t_min."""
    t = schedule.time(log_snr)
    t[-1], t[0] = schedule.t_min, 1.0  # in this order: a single step starts from noise
    return t


def _snap(t: Tensor, schedule: Schedule) -> Tensor:
    """The nearest levels of a discrete schedule's table; a continuous schedule keeps any time."""
    return (t * schedule.T).round().clamp(min=1) / schedule.T if schedule.T else t


_ALL = (trailing, leading, linspace, quadratic, karras, log_snr)
GRIDS: dict[str, Callable[[Schedule, int], Tensor]] = {g.__name__: g for g in _ALL}


def times(grid: Grid, schedule: Schedule, n: int) -> Tensor:
    """The n times (n,) of a grid, float64, falling from (about) 1.

    Raises:
        ValueError: n < 1, n above T, or an unknown grid.
    """
    if grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}; choose one of {', '.join(GRIDS)}")
    if n < 1 or (schedule.T and n > schedule.T):
        limit = f"1 .. {schedule.T}, the number of levels" if schedule.T else "at least 1"
        raise ValueError(f"sampling steps must be {limit}; got {n}")
    return GRIDS[grid](schedule, n)
