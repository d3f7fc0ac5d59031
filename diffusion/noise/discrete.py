"""Discrete schedules of DDPM and its successors: tables of alpha and sigma derived from the betas."""

import math
import warnings
from abc import abstractmethod
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.noise.schedule import Schedule

SNAP = 1e-3  # times within this distance of a table entry, in units of the index, snap to it


class Tables(NamedTuple):
    """alpha, sigma and log-SNR of the T levels of a discrete schedule, each (T,) float64, index 0 the least noisy."""

    alphas: Tensor
    sigmas: Tensor
    log_snrs: Tensor


class Discrete(Schedule):
    """A table of T levels at t = (i + 1) / T, i = 0 .. T-1; the network receives the index i.

        alpha_i^2 = prod_{j <= i} (1 - beta_j),    sigma_i^2 = 1 - alpha_i^2

    Exact at the table entries and linear in log-SNR between them; where log-SNR ends at -inf (zero_snr), alpha is
    linear in the last interval. Subclasses define `betas`, which is called once, when the tables are first used.
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 4.

    Args:
        T: number of diffusion steps, >= 2.
        zero_snr: shift and scale alpha so that alpha_T = 0 exactly and alpha_0 is kept: no signal remains at t = 1.
            Source: Lin et al. 2023, arXiv:2305.08891, alg. 1. Incompatible with the targets Eps and Score.
    Raises:
        ValueError: T < 2; on first use of the tables, a beta outside (0, 1).
    Warns:
        UserWarning: on first use of the tables, alpha-bar at T is above 1e-3, so that sampling starts from a noise
            level the network was never trained on.
    """

    def __init__(self, T: int = 1000, zero_snr: bool = False) -> None:
        if T < 2:
            raise ValueError(f"{type(self).__name__}: T must be at least 2 diffusion steps, got {T}")
        self.T, self.zero_snr = T, zero_snr
        self.t_min = 1 / T

    @cached_property
    def tables(self) -> Tables:
        """alpha, sigma and log-SNR of all T levels, computed on first use, when a subclass has all its fields."""
        # The first caller may be in inference mode, whose tensors cannot be used in a training step.
        with torch.inference_mode(False), torch.no_grad():
            betas = self.betas().double()
            if not (bool((betas > 0).all()) and bool((betas < 1).all())):
                raise ValueError(
                    f"{type(self).__name__}: betas must lie in (0, 1), got {betas.min():.3g} .. {betas.max():.3g}; "
                    "lower beta_end or raise T"
                )
            abar = torch.cumprod(1 - betas, 0)
            if self.zero_snr:
                alphas = abar.sqrt()
                abar = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
            alphas, sigmas = abar.sqrt(), (1 - abar).sqrt()
            tables = Tables(alphas, sigmas, 2 * (alphas / sigmas).log())
        if abar[-1] > 1e-3:
            warnings.warn(
                f"{type(self).__name__}: alpha-bar at T = {self.T} is {abar[-1]:.2g}, above 1e-3: training never "
                "reaches pure noise, but sampling starts from it, so brightness and contrast of samples will be off. "
                "Keep rescale=True, or raise beta_end or T",
                stacklevel=3,
            )
        return tables

    @property
    def alphas(self) -> Tensor:
        return self.tables.alphas

    @property
    def sigmas(self) -> Tensor:
        return self.tables.sigmas

    @property
    def log_snrs(self) -> Tensor:
        return self.tables.log_snrs

    @abstractmethod
    def betas(self) -> Tensor:
        """The T one-step variances beta_0 .. beta_{T-1}, each in (0, 1)."""

    def index(self, t: Tensor) -> Tensor:
        """The table index of time t: -1 is clean, T - 1 is t = 1; near-integers are rounded."""
        i = t.double() * self.T - 1
        k = i.round()
        return torch.where((i - k).abs() < SNAP, k, i)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alphas, sigmas, log_snrs = self.tables
        i = self.index(t)
        k = i.round().long().clamp(0, self.T - 1)
        j = i.floor().long().clamp(0, self.T - 2)
        log_snr = torch.lerp(log_snrs[j], log_snrs[j + 1], i - j)
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        if self.zero_snr:
            last = i > self.T - 2
            alpha = torch.where(last, alphas[-2] * (self.T - 1 - i), alpha)
            sigma = torch.where(last, (1 - alpha**2).sqrt(), sigma)
        return torch.where(i == k, alphas[k], alpha), torch.where(i == k, sigmas[k], sigma)

    def exact_time(self, log_snr: Tensor) -> Tensor:
        """Inverse of log_snr(t), in closed form; 0 or 1 beyond the ends."""
        alphas, _, log_snrs = self.tables
        fall = -log_snr.double()
        j = (torch.searchsorted(-log_snrs, fall, right=True) - 1).clamp(0, self.T - 2)
        i = j + (fall + log_snrs[j]) / (log_snrs[j] - log_snrs[j + 1])
        if self.zero_snr:
            last = fall > -log_snrs[-2]
            i = torch.where(last, self.T - 1 - torch.sigmoid(-fall).sqrt() / alphas[-2], i)
        return ((i + 1) / self.T).clamp(0, 1)

    def exact_sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f = sigma^2 L' / 2 and g^2 = -sigma^2 L', with L' the slope of log-SNR between table entries.

        Source: Kingma et al. 2021, arXiv:2107.00630, app. L, for alpha^2 + sigma^2 = 1.
        """
        log_snrs = self.tables.log_snrs
        i = self.index(t)
        j = (i.ceil().long() - 1).clamp(0, self.T - 2)  # the interval below t, which sampling enters next
        slope = (log_snrs[j + 1] - log_snrs[j]) * self.T
        var = self.scales(t)[1] ** 2
        f = var * slope / 2
        if self.zero_snr:  # alpha is linear there: f = (log alpha)'
            f = torch.where(i > self.T - 2, -self.T / (self.T - 1 - i), f)
        return f, -2 * f

    def clock(self, t: Tensor) -> Tensor:
        return self.index(t)

    def cdf(self, t: Tensor) -> Tensor:
        return t - 0.5 / self.T  # the middle of the slice that is mapped to t

    def quantile(self, u: Tensor) -> Tensor:
        return ((u * self.T).floor() + 1).clamp(max=self.T) / self.T


class Ramp(Discrete):
    """A ramp from beta_start to beta_end, defined for 1,000 steps and rescaled by 1000 / T for any other T.

    Without rescaling, alpha-bar at T is .364 for T = 100: sampling would start from a prior the network was never
    trained on. Rescaled betas are clipped at .999, which takes effect below T = 21 for the default endpoints.

    Args:
        T: number of diffusion steps, >= 2.
        beta_start: first one-step variance at T = 1000, in (0, 1).
        beta_end: last one-step variance at T = 1000, in (0, 1).
        rescale: multiply the betas by 1000 / T.
        zero_snr: see Discrete.
    """

    def __init__(
        self,
        T: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        rescale: bool = True,
        zero_snr: bool = False,
    ) -> None:
        self.beta_start, self.beta_end, self.rescale = beta_start, beta_end, rescale
        super().__init__(T, zero_snr)

    def betas(self) -> Tensor:
        rise = self.rise(torch.linspace(0, 1, self.T, dtype=torch.float64))
        return (rise * 1000 / self.T).clamp(max=0.999) if self.rescale else rise

    @abstractmethod
    def rise(self, u: Tensor) -> Tensor:
        """beta at the fractions u (T,) in [0, 1] of the way from beta_start to beta_end."""


class Linear(Ramp):
    """beta_start + u (beta_end - beta_start). Source: Ho et al. 2020, arXiv:2006.11239, sec. 4."""

    def rise(self, u: Tensor) -> Tensor:
        return torch.lerp(torch.full_like(u, self.beta_start), torch.full_like(u, self.beta_end), u)


class Quadratic(Ramp):
    """(sqrt(beta_start) + u (sqrt(beta_end) - sqrt(beta_start)))^2, Stable Diffusion's "scaled linear".

    Source: Song et al. 2021, arXiv:2010.02502, app. D.
    """

    def rise(self, u: Tensor) -> Tensor:
        start, end = math.sqrt(self.beta_start), math.sqrt(self.beta_end)
        return (start + u * (end - start)) ** 2


class ScaledLinear(Quadratic):
    """Quadratic with Stable Diffusion's endpoints, .00085 and .012; as there, some signal remains at T.

    Source: Rombach et al. 2022, arXiv:2112.10752 (their configuration).
    """

    def __init__(
        self,
        T: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        rescale: bool = True,
        zero_snr: bool = False,
    ) -> None:
        super().__init__(T, beta_start, beta_end, rescale, zero_snr)


class ConstantBeta(Discrete):
    """The same beta at every step, beta 1000 / T: the simplest chain. Source: Sohl-Dickstein et al. 2015.

    Args:
        T: number of diffusion steps, >= 2.
        beta: one-step variance at T = 1000, in (0, 1).
        zero_snr: see Discrete.
    """

    def __init__(self, T: int = 1000, beta: float = 0.01, zero_snr: bool = False) -> None:
        self.beta = beta
        super().__init__(T, zero_snr)

    def betas(self) -> Tensor:
        return torch.full((self.T,), min(self.beta * 1000 / self.T, 0.999), dtype=torch.float64)


class Sigmoid(Ramp):
    """beta_start + (beta_end - beta_start) sigmoid(12 u - 6). Source: Xu et al. 2022 (GeoDiff), arXiv:2203.02923."""

    def rise(self, u: Tensor) -> Tensor:
        return self.beta_start + (self.beta_end - self.beta_start) * torch.sigmoid(12 * u - 6)


class Cosine(Discrete):
    """alpha-bar follows a squared cosine: betas = 1 - f(u + 1/T) / f(u), f(u) = cos((u + s) / (1 + s) pi / 2)^2.

    The betas are clipped, not alpha-bar, and the table is derived from them.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.

    Args:
        T: number of diffusion steps, >= 2.
        s: offset that keeps the first betas from vanishing, > 0.
        max_beta: upper bound of the betas, in (0, 1).
        zero_snr: see Discrete.
    """

    def __init__(self, T: int = 1000, s: float = 0.008, max_beta: float = 0.999, zero_snr: bool = False) -> None:
        self.s, self.max_beta = s, max_beta
        super().__init__(T, zero_snr)

    def betas(self) -> Tensor:
        u = torch.linspace(0, 1, self.T + 1, dtype=torch.float64)
        abar = torch.cos((u + self.s) / (1 + self.s) * math.pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=self.max_beta)


class SigmoidAlpha(Discrete):
    """alpha-bar falls as a sigmoid: (h(u) - h(1)) / (h(0) - h(1)), h(u) = sigmoid(-(start + u (end - start)) / tau).

    The betas are 1 - abar(u + 1/T) / abar(u), clipped. Not `Sigmoid`, whose betas rise as a sigmoid.
    Source: Jabri et al. 2022, arXiv:2212.11972, fig. 8.

    Args:
        T: number of diffusion steps, >= 2.
        start: argument of the sigmoid at u = 0, in units of tau.
        end: argument at u = 1, > start.
        tau: temperature, > 0; a smaller one leaves less signal in the middle.
        max_beta: upper bound of the betas, in (0, 1).
        zero_snr: see Discrete.
    """

    def __init__(
        self,
        T: int = 1000,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
        max_beta: float = 0.999,
        zero_snr: bool = False,
    ) -> None:
        self.start, self.end, self.tau, self.max_beta = float(start), float(end), float(tau), max_beta
        super().__init__(T, zero_snr)

    def betas(self) -> Tensor:
        u = torch.linspace(0, 1, self.T + 1, dtype=torch.float64)
        h = torch.sigmoid(-(self.start + u * (self.end - self.start)) / self.tau)
        abar = h - h[-1]
        return (1 - abar[1:] / abar[:-1]).clamp(max=self.max_beta)
