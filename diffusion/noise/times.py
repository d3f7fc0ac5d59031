"""Distributions of the training times."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffusion.noise.schedule import Schedule

EDGE = 1e-6  # keeps quantiles of unbounded distributions finite


class Times(ABC):
    """Maps uniform random numbers to training times."""

    @abstractmethod
    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Times (B,) in (0, 1] from independent uniform numbers u (B,) in [0, 1)."""

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Importance weights (B,), 1 / p(t) relative to uniform times; 1 where the mean loss may change."""
        return torch.ones_like(t)

    watches = False  # whether `observe` is called; costs a device synchronisation at every step

    def observe(self, t: Tensor, loss: Tensor, schedule: Schedule) -> None:  # noqa: B027
        """Receive the times (B,) and losses (B,) of a training step, gathered from all processes."""

    def state_dict(self) -> dict[str, Tensor]:
        """State to store in a checkpoint; empty for most distributions."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore the state returned by `state_dict`."""


class Uniform(Times):
    """Every time of the schedule is equally likely: the distribution of L_simple."""

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.quantile(u)


class Stratified(Times):
    """One time from each of B equal slices of (0, 1]: each time is still uniform over batches, with less variance.

    Image i of a shuffled batch takes slice i, so that no image is tied to a slice.
    Source: Kingma et al. 2021, arXiv:2107.00630, app. I.1 (low-discrepancy sampler), with independent jitter.
    """

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.quantile((torch.arange(len(u), dtype=u.dtype) + u) / len(u))


class LogNormal(Times):
    """log(sigma / alpha) is normal: training concentrates on intermediate noise levels.

    Source: Karras et al. 2022, arXiv:2206.00364, tab. 1 (P_mean, P_std).

    Args:
        mean: of log(sigma / alpha).
        std: > 0.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        self.mean, self.std = mean, std

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        log_ratio = self.mean + self.std * torch.special.ndtri(u.clamp(EDGE, 1 - EDGE))
        return schedule.time(-2 * log_ratio).clamp(schedule.t_min, 1)


class LogitNormal(Times):
    """t = sigmoid(z), z normal: favours the middle of the path. Source: Esser et al. 2024, arXiv:2403.03206, eq. 19.

    Args:
        mean: of logit t; values above 0 favour noisier times.
        std: > 0.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.quantile(torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(EDGE, 1 - EDGE))))


class LossAware(Times):
    """Bins of times sampled in proportion to sqrt(mean loss^2) of their last losses; the mean loss is unbiased.

    p_k ~ (1 - floor) sqrt(E[loss_k^2]) / sum + floor / bins, uniform until every bin has `history` losses.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 18.

    Args:
        bins: equal slices of the uniform distribution; T gives one bin per level.
        history: losses remembered per bin, >= 1.
        floor: share that stays uniform, in (0, 1].
    """

    watches = True

    def __init__(self, bins: int = 100, history: int = 10, floor: float = 0.001) -> None:
        if bins < 1 or history < 1 or not 0 < floor <= 1:
            raise ValueError(
                f"LossAware: expected bins >= 1, history >= 1 and floor in (0, 1], got {bins}, {history}, {floor}"
            )
        self.bins, self.history, self.floor = bins, history, floor
        self._losses = torch.zeros(bins, history, dtype=torch.float64)
        self._count = torch.zeros(bins, dtype=torch.long)

    def probabilities(self) -> Tensor:
        """p_k of each bin (bins,), float64."""
        if (self._count < self.history).any():
            return torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        size = self._losses.square().mean(1).sqrt()
        return (1 - self.floor) * size / size.sum() + self.floor / self.bins

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        ends = self.probabilities().cumsum(0)
        k = torch.searchsorted(ends, u.double(), right=True).clamp(max=self.bins - 1)
        p = self.probabilities()[k]
        inside = ((u - (ends[k] - p)) / p).clamp(0, 1 - EDGE)  # the remainder of u is uniform within the bin
        return schedule.quantile((k + inside) / self.bins)

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor:
        return (1 / (self.bins * self.probabilities()))[self._bin(t, schedule)].to(t)

    def observe(self, t: Tensor, loss: Tensor, schedule: Schedule) -> None:
        for k, value in zip(self._bin(t, schedule).tolist(), loss.detach().double().cpu().tolist(), strict=True):
            if math.isfinite(value):  # ignore non-finite losses
                self._losses[k, self._count[k] % self.history] = value
                self._count[k] += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self._losses.clone(), "count": self._count.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._losses, self._count = state["losses"].clone(), state["count"].clone()

    def _bin(self, t: Tensor, schedule: Schedule) -> Tensor:
        u = schedule.cdf(t.detach().double().cpu().flatten())
        return (u * self.bins).floor().long().clamp(0, self.bins - 1)
