"""A noise level is a value: x_t = alpha x_0 + sigma eps."""

from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """One noise level, or one per image. The fields share a shape: () while sampling, (B, 1, ..., 1) while training.

    Attributes:
        t: raw time in [0, 1]; 0 is clean, 1 is noise.
        alpha: scale of the clean image in x_t; alpha^2 is DDPM's alpha-bar.
        sigma: standard deviation of the noise in x_t.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    end = None  # the level that a step from here ends at, where a prediction depends on it; see `until`

    def until(self, end: "Level") -> "Level":
        """This level with the one that a step from it ends at, for networks with a second clock.

        Others predict as at the level itself. Calculations with it, such as `like`, give a level without an end.
        """
        level = _Ending(*self)
        level.end = end
        return level

    @property
    def ratio(self) -> Tensor:
        """sigma / alpha, the noise in units of the image (EDM's sigma)."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> Tensor:
        """log(alpha^2 / sigma^2)."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def like(self, x: Tensor) -> "Level":
        """Reshape (B,) to (B, 1, ..., 1) on x's device and dtype.

        Scalars stay float64 on the CPU: torch multiplies them into x on any device without a copy or a sync.
        """
        return Level(*(broadcast(v, x) for v in self))


class _Ending(Level):
    """A level with an end."""


CLEAN = Level(*torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))  # of every schedule


def broadcast(v: Tensor, x: Tensor) -> Tensor:
    """One number per image (B,) as (B, 1, ..., 1) on x's device and in its dtype; scalars are unchanged."""
    if v.ndim == 0:
        return v
    return v.to(x.device, x.dtype, non_blocking=True).reshape(-1, *(1,) * (x.ndim - 1))


def off_grid(alpha: Tensor, sigma: Tensor) -> Level:
    """A level given by its scales alone; its time is NaN, and `AnyLevel`, which has the schedule, looks it up."""
    return Level(torch.full_like(sigma, torch.nan), alpha, sigma)


def forward_var(s: Level, t: Level) -> Tensor:
    """Var[x_t | x_s] of the forward process, s less noisy than t: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2.

    For neighbours on a DDPM grid this is beta_t, the variance "large".
    Source: Kingma et al. 2021, arXiv:2107.00630, eq. 2 (sigma_{t|s}^2).
    """
    return t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2


def posterior_var(s: Level, t: Level) -> Tensor:
    """Var[x_s | x_t, x_0], s less noisy than t: forward_var(s, t) sigma_s^2 / sigma_t^2.

    For neighbours on a DDPM grid this is beta-tilde_t, the variance "small".
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 7.
    """
    return forward_var(s, t) * s.sigma**2 / t.sigma**2


def learned_var(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """exp(lerp(log low, log high, (v + 1) / 2)): the variance for a network's v in [-1, 1].

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15, and their code's range of v.
    """
    return low * (high / low) ** ((v + 1) / 2)
