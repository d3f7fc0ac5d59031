"""A schedule for larger images: any other one with its log-SNR shifted."""

import math

import torch
from torch import Tensor

from diffusion.noise.discrete import Cosine
from diffusion.noise.schedule import Schedule


class Shifted(Schedule):
    """A schedule with its log-SNR shifted by 2 log(base / size), so sigma / alpha is multiplied by size / base.

        (alpha', sigma') = (alpha, r sigma) norm(alpha, sigma) / norm(alpha, r sigma),    r = size / base

    Neighbouring pixels of a larger image are more alike, so the same noise per pixel hides less of it: averaged over
    blocks of r x r pixels, an image of `size` pixels noised by the shifted schedule has the noise of one of `base`
    pixels in the original schedule. Times, levels of a table, and the network's clock are the schedule's own. `norm` is
    the schedule's too, so paths keep their form: alpha^2 + sigma^2 is unchanged, of Flow alpha + sigma, of VE alpha.
    A shifted Flow is the time shift t -> r t / (1 + (r - 1) t) of Esser et al. 2024, arXiv:2403.03206, eq. 23.
    Source: Hoogeboom et al. 2023, arXiv:2301.11093, sec. 3.1.

    Args:
        schedule: the schedule for images of `base` pixels.
        size: side of the images in pixels, >= 1.
        base: side of the images that the schedule was made for, >= 1; 32 for a schedule known from CIFAR-10.
    Raises:
        ValueError: a side below 1.
    """

    def __init__(self, schedule: Schedule = Cosine(), size: int = 128, base: int = 64) -> None:
        if min(size, base) < 1:
            raise ValueError(f"Shifted: size and base must be at least 1 pixel, got {size} and {base}")
        self.schedule, self.size, self.base = schedule, size, base
        self.T, self.t_min = schedule.T, schedule.t_min

    @property
    def prior_std(self) -> float:
        """The schedule's, in proportion to sigma at t = 1."""
        one = torch.ones((), dtype=torch.float64)
        return self.schedule.prior_std * float(self.scales(one)[1] / self.schedule.scales(one)[1])

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.scales(t)
        more = sigma * (self.size / self.base)
        factor = self.schedule.norm(alpha, sigma)[0] / self.schedule.norm(alpha, more)[0]
        return alpha * factor, more * factor

    def norm(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.norm(alpha, sigma)

    def exact_time(self, log_snr: Tensor) -> Tensor:
        """The schedule's time of the log-SNR before the shift."""
        return self.schedule.time(log_snr + 2 * math.log(self.size / self.base))

    def exact_sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f + (log norm(alpha, sigma))' - (log norm(alpha, r sigma))', and g^2 times (sigma' / sigma)^2.

        The slope of log-SNR, -g^2 / sigma^2, is that of the schedule, and norm's is its share of sigma times the slope
        of log(sigma / alpha) beyond f.
        """
        f, g2 = self.schedule.sde(t)
        alpha, sigma = self.schedule.scales(t)
        more = sigma * (self.size / self.base)
        (whole, share), (larger, its) = self.schedule.norm(alpha, sigma), self.schedule.norm(alpha, more)
        rise = torch.where(alpha > 0, (share - its) * g2 / (2 * sigma**2), torch.zeros_like(f))  # f is -inf there
        return f + rise, g2 * (more / sigma * whole / larger) ** 2

    def clock(self, t: Tensor) -> Tensor:
        return self.schedule.clock(t)

    def quantile(self, u: Tensor) -> Tensor:
        return self.schedule.quantile(u)

    def cdf(self, t: Tensor) -> Tensor:
        return self.schedule.cdf(t)
