"""Where training looks: the law of the training times."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffusion.noise.schedule import Schedule

EDGE = 1e-6  # keeps quantiles of unbounded laws finite


class Times(ABC):
    """Maps uniform random numbers to training times."""

    @abstractmethod
    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Times (B,) in (0, 1] from independent uniform numbers u (B,) in [0, 1)."""

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor:
        """1 / p(t) relative to uniform times (B,): 1 unless a law is to leave the mean loss as it was."""
        return torch.ones_like(t)

    watches = False  # does it want to be told the losses? That costs a wait for the device at every step

    def observe(self, t: Tensor, loss: Tensor, schedule: Schedule) -> None:  # noqa: B027
        """Told the times (B,) and losses (B,) of each training step, of all processes together."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep; nothing for most."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Take up what `state_dict` gave."""


class Uniform(Times):
    """Every time of the schedule is equally likely: the law of L_simple."""

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.quantile(u)


class Stratified(Times):
    """One time from each of B equal slices of (0, 1]: each still uniform over batches, with less variance.

    Image i of a shuffled batch takes slice i, so that no image is tied to a slice.
    Source: Kingma et al. 2021, arXiv:2107.00630, app. I.1 (low-discrepancy sampler), with independent jitter.
    """

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.quantile((torch.arange(len(u), dtype=u.dtype) + u) / len(u))


class LogNormal(Times):
    """log(sigma / alpha) is normal: most training at the levels where it helps most.

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
    """t = sigmoid(z), z normal: the middle of straight paths. Source: Esser et al. 2024, arXiv:2403.03206, eq. 19.

    Args:
        mean: of logit t; above 0 looks at more noise.
        std: > 0.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.quantile(torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(EDGE, 1 - EDGE))))


class LossAware(Times):
    """Each bin of times in proportion to sqrt(mean loss^2) of its last losses; the mean loss stays unbiased.

    p_k ~ (1 - floor) sqrt(E[loss_k^2]) / sum + floor / bins, uniform until every bin has `history` losses.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 18.

    Args:
        bins: equal slices of the uniform law; T is one bin a level.
        history: losses remembered a bin, >= 1.
        floor: share that stays uniform, in (0, 1].
    """

    watches = True

    def __init__(self, bins: int = 100, history: int = 10, floor: float = 0.001) -> None:
        if bins < 1 or history < 1 or not 0 < floor <= 1:
            raise ValueError(f"LossAware: bins, history >= 1 and floor in (0, 1], got {bins}, {history}, {floor}")
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
        inside = ((u - (ends[k] - p)) / p).clamp(0, 1 - EDGE)  # what is left of u is uniform again
        return schedule.quantile((k + inside) / self.bins)

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor:
        return (1 / (self.bins * self.probabilities()))[self._bin(t, schedule)].to(t)

    def observe(self, t: Tensor, loss: Tensor, schedule: Schedule) -> None:
        for k, value in zip(self._bin(t, schedule).tolist(), loss.detach().double().cpu().tolist(), strict=True):
            if math.isfinite(value):  # a broken batch leaves no trace
                self._losses[k, self._count[k] % self.history] = value
                self._count[k] += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self._losses.clone(), "count": self._count.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._losses, self._count = state["losses"].clone(), state["count"].clone()

    def _bin(self, t: Tensor, schedule: Schedule) -> Tensor:
        u = schedule.cdf(t.detach().double().cpu().flatten())
        return (u * self.bins).floor().long().clamp(0, self.bins - 1)
