"""The interface of a schedule: (alpha, sigma) as functions of time."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffusion.noise.level import CLEAN, Level

NO_SIGNAL = 1e-7  # an alpha below this is a rounding error of 0


class Schedule(ABC):
    """A forward process x_t = alpha_t x_0 + sigma_t eps, t in (0, 1], t = 1 is noise.

    A plain object, not a module with buffers: its numbers stay float64 on the CPU, unaffected by precision flags and
    `.to()`. Subclasses define `scales`; everything else is derived from it.

    By default `time` is computed by bisection and `sde` by automatic differentiation. A class may define the closed
    forms `exact_time` and `exact_sde` next to its `scales`. A subclass that overrides `scales` alone does not inherit
    them: it falls back to the numerical methods, or defines its own.

    Attributes:
        T: number of levels of a discrete schedule, None for a continuous one.
        t_min: the least noisy training time.
        prior_std: standard deviation of x at t = 1, from which sampling starts.
    """

    T: int | None = None
    t_min: float = 1e-3
    prior_std: float = 1.0

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times t (any shape, float64, in (0, 1])."""

    def level(self, t: Tensor) -> Level:
        """The level at times t (any shape, in (0, 1])."""
        return Level(t, *self.scales(t))

    def clean(self) -> Level:
        """The noiseless level, where every sampler ends."""
        return CLEAN

    def clock(self, t: Tensor) -> Tensor:
        """The network's input for time t."""
        return 1000 * t

    def quantile(self, u: Tensor) -> Tensor:
        """The training time below which a fraction u in [0, 1) of uniform training times lies."""
        return self.t_min + (1 - self.t_min) * u

    def cdf(self, t: Tensor) -> Tensor:
        """The fraction of uniform training times below t: the inverse of `quantile`."""
        return (t - self.t_min) / (1 - self.t_min)

    def norm(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The size of x_t that a `Shifted` schedule leaves as it is, and sigma's share d log norm / d log sigma of it.

        A homogeneous function of degree 1 of the scales, by default sqrt(alpha^2 + sigma^2).
        """
        return torch.hypot(alpha, sigma), sigma**2 / (alpha**2 + sigma**2)

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f and g^2 of the forward process dx = f x dt + g dw.

            f = (log alpha)',    g^2 = (sigma^2)' - 2 f sigma^2

        Source: Kingma et al. 2021, arXiv:2107.00630, app. L; Karras et al. 2022, arXiv:2206.00364, eq. 10-13.
        """
        return self.exact_sde(t) if _fits(type(self), "exact_sde") else self.numerical_sde(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """Inverse of log_snr(t), which falls as t grows; 0 or 1 beyond the ends."""
        return self.exact_time(log_snr) if _fits(type(self), "exact_time") else self.numerical_time(log_snr)

    def exact_sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`sde` in closed form, valid for the `scales` of the class that defines it."""
        raise NotImplementedError

    def exact_time(self, log_snr: Tensor) -> Tensor:
        """`time` in closed form, valid for the `scales` of the class that defines it."""
        raise NotImplementedError

    def numerical_sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`sde` by automatic differentiation of `scales`."""
        with torch.enable_grad():
            t = t.detach().double().requires_grad_()
            alpha, sigma = self.scales(t)
            (f,) = torch.autograd.grad((alpha + 0 * t).log().sum(), t, retain_graph=True)
            (growth,) = torch.autograd.grad((sigma + 0 * t).square().sum(), t)
        return f, growth - 2 * f * sigma.detach() ** 2

    def numerical_time(self, log_snr: Tensor) -> Tensor:
        """`time` by bisection."""
        lo, hi = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(60):
            mid = (lo + hi) / 2
            less = self.level(mid).log_snr > log_snr
            lo, hi = torch.where(less, mid, lo), torch.where(less, hi, mid)
        return (lo + hi) / 2


def _fits(kind: type[Schedule], name: str) -> bool:
    """Whether the closed form is defined by the class that defines `scales`, or by a subclass of it."""
    owner = next(k for k in kind.__mro__ if name in vars(k) or "scales" in vars(k))
    return name in vars(owner) and owner is not Schedule
