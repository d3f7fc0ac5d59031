"""The continuous schedules: two lines of maths each."""

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
            raise ValueError(f"{type(self).__name__}: 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = t * self.beta_min + 0.5 * t**2 * (self.beta_max - self.beta_min)
        return torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))


class SubVP(VP):
    """VP's alpha with its variance squared: sigma = 1 - alpha^2, never noisier than VP.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 29.
    """

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = super().scales(t)
        return alpha, sigma**2


class VE(Schedule):
    """Variance exploding: alpha = 1, sigma geometric from sigma_min to sigma_max; on a grid, NCSN's noise levels.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 31; Song & Ermon 2019, arXiv:1907.05600.

    Args:
        sigma_min: smallest noise in units of the image, > 0.
        sigma_max: largest noise, > sigma_min; what sampling starts from.
    """

    t_min = 0.0

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"{type(self).__name__}: 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.prior_std = sigma_max

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t


class Karras(VE):
    """EDM: alpha = 1, sigma^(1/rho) linear in t; the network hears log(sigma) / 4.

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

    def clock(self, t: Tensor) -> Tensor:
        return self.scales(t)[1].log() / 4


class Flow(Schedule):
    """Straight paths of flow matching: alpha = 1 - t, sigma = t. No signal is left at t = 1.

    Source: Lipman et al. 2023, arXiv:2210.02747, eq. 22 (sigma_min 0); Liu et al. 2023, arXiv:2209.03003.
    """

    t_min = 1e-3

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t
