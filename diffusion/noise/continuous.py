"""Continuous schedules, each with its closed-form inverse."""

import math

import torch
from torch import Tensor

from diffusion.noise.schedule import Schedule


class VP(Schedule):
    """Variance preserving: alpha^2 = exp(-integral of beta), beta(t) = beta_min + t (beta_max - beta_min).

    DDPM's linear schedule in the limit of many steps.
    Source: Song et al. 2021, arXiv:2011.13456, eq. 32-33.

    Args:
        beta_min: beta at t = 0, per unit of time, > 0.
        beta_max: beta at t = 1, > beta_min.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min < beta_max:
            raise ValueError(f"{type(self).__name__}: expected 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = t * self.beta_min + 0.5 * t**2 * (self.beta_max - self.beta_min)
        return torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))

    def exact_time(self, log_snr: Tensor) -> Tensor:
        """Inverse of log_snr(t): alpha^2 = sigmoid(log_snr) gives the integral of beta, a quadratic in t."""
        rise = self.beta_max - self.beta_min
        integral = torch.logaddexp(torch.zeros_like(log_snr), -log_snr).clamp(max=self.beta_min + rise / 2)
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * rise * integral).sqrt())


class SubVP(VP):
    """VP's alpha with its variance squared: sigma = 1 - alpha^2, never noisier than VP.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 29.
    """

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = super().scales(t)
        return alpha, sigma**2

    def exact_time(self, log_snr: Tensor) -> Tensor:
        """VP's inverse at log_snr + log sigma, where sigma is the root of snr sigma^2 + sigma = 1."""
        log_snr = log_snr.clamp(max=700.0)  # beyond, t is 0 to the last bit and exp overflows
        return super().exact_time(log_snr - ((1 + (1 + 4 * log_snr.exp()).sqrt()) / 2).log())


class VE(Schedule):
    """Variance exploding: alpha = 1, sigma geometric from sigma_min to sigma_max; on a grid, NCSN's noise levels.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 31; Song & Ermon 2019, arXiv:1907.05600.

    Args:
        sigma_min: smallest noise in units of the image, > 0.
        sigma_max: largest noise, > sigma_min; sampling starts here.
    """

    t_min = 0.0

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max:
            name = type(self).__name__
            raise ValueError(f"{name}: expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.prior_std = sigma_max

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def norm(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return alpha, torch.zeros_like(sigma)

    def exact_time(self, log_snr: Tensor) -> Tensor:
        """Inverse of log_snr(t) = -2 log sigma."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return ((-log_snr / 2 - low) / (high - low)).clamp(0, 1)


class Karras(VE):
    """EDM: alpha = 1, sigma^(1/rho) linear in t; the network receives log(sigma) / 4.

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5 and tab. 1.

    Args:
        sigma_min: smallest noise in units of the image, > 0.
        sigma_max: largest noise, > sigma_min.
        rho: above 1 puts more steps at small noise.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.rho = rho

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (low + t * (high - low)) ** self.rho

    def exact_time(self, log_snr: Tensor) -> Tensor:
        """Inverse of log_snr(t) = -2 log sigma."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (((-log_snr / (2 * self.rho)).exp() - low) / (high - low)).clamp(0, 1)

    def clock(self, t: Tensor) -> Tensor:
        return self.scales(t)[1].log() / 4


class Flow(Schedule):
    """Straight paths of flow matching: alpha = 1 - t, sigma = t. No signal remains at t = 1.

    Source: Lipman et al. 2023, arXiv:2210.02747, eq. 22 (sigma_min 0); Liu et al. 2023, arXiv:2209.03003.
    """

    t_min = 1e-3

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def norm(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return alpha + sigma, sigma / (alpha + sigma)

    def exact_time(self, log_snr: Tensor) -> Tensor:
        """Inverse of log_snr(t) = 2 log((1 - t) / t)."""
        return torch.sigmoid(-log_snr / 2)
