"""Weights of noise levels and distances between predicted and true x_0, independent of the target."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.denoiser.targets import Target
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule


class Weight(ABC):
    """A factor on the squared error of x_0, so that the loss of a prediction does not depend on the target.

    An error of eps is sqrt(snr) times that of x_0: a weight w on the squared error of eps is snr w here.
    """

    @abstractmethod
    def __call__(self, t: Level, target: Target, schedule: Schedule) -> Tensor:
        """The factor at the levels t, of t's shape."""


class Unit(Weight):
    """1 on the squared error of the network's output, whatever the target: the loss of most implementations."""

    def __call__(self, t: Level, target: Target, schedule: Schedule) -> Tensor:
        # A target is linear in (x_0, eps) and x is given, so its error is a known multiple of the error in x_0.
        return target.of(torch.ones_like(t.alpha), -t.alpha / t.sigma, t).square()


class SnrWeight(Weight):
    """A weight that is a function of the signal-to-noise ratio alone."""

    def __call__(self, t: Level, target: Target, schedule: Schedule) -> Tensor:
        return self.of((t.alpha / t.sigma).square())

    @abstractmethod
    def of(self, snr: Tensor) -> Tensor:
        """The factor on the squared error of x_0 at snr = alpha^2 / sigma^2."""


class Constant(SnrWeight):
    """snr: 1 on the error of eps, L_simple. Source: Ho et al. 2020, arXiv:2006.11239, eq. 14."""

    def of(self, snr: Tensor) -> Tensor:
        return snr


class ELBO(Weight):
    """snr |d log snr / dt| / 2: with uniform times the loss is the variational bound, in nats per pixel.

    Source: Kingma et al. 2021, arXiv:2107.00630, eq. 17; |d log snr / dt| = g^2 / sigma^2, ibid. app. L.
    """

    def __call__(self, t: Level, target: Target, schedule: Schedule) -> Tensor:
        times = t.t.double().cpu()
        f, g2 = schedule.sde(times)
        slope = (g2 / schedule.scales(times)[1] ** 2).to(t.alpha, non_blocking=True)
        weight = (t.alpha / t.sigma).square() * slope / 2
        return torch.where(t.alpha > 0, weight, 0.0)  # the limit where no signal remains: 0 times an infinite slope


class MinSNR(SnrWeight):
    """min(snr, gamma). Source: Hang et al. 2023, arXiv:2303.09556, sec. 3.4 (the weight for x_0).

    Args:
        gamma: the cap, > 0.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = gamma

    def of(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)


class SoftMinSNR(MinSNR):
    """1 / (1 / snr + 1 / gamma), MinSNR without the corner. Source: Crowson et al. 2024, arXiv:2401.11605, sec. 4.4."""

    def of(self, snr: Tensor) -> Tensor:
        return snr * self.gamma / (snr + self.gamma)


class P2(SnrWeight):
    """snr / (k + snr)^gamma. Source: Choi et al. 2022, arXiv:2204.00227, eq. 8, relative to L_simple.

    Args:
        k: > 0.
        gamma: 0 is L_simple.
    """

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        self.k, self.gamma = k, gamma

    def of(self, snr: Tensor) -> Tensor:
        return snr / (self.k + snr) ** self.gamma


class EDMWeight(SnrWeight):
    """snr + 1 / sigma_data^2: with the target EDM, 1 on the error of the network's output.

    Source: Karras et al. 2022, arXiv:2206.00364, tab. 1 (loss weighting).

    Args:
        sigma_data: standard deviation of the images' pixels, > 0; 1 for latents, see `Codec`.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def of(self, snr: Tensor) -> Tensor:
        return snr + 1 / self.sigma_data**2


class VelocityWeight(SnrWeight):
    """min(1 + sqrt(snr), most)^2: the squared error of the velocity (x - x_0) / sigma of a straight path, limited.

    In `Flow` min(1 / sigma, most)^2. With the target X0 it is JiT's loss: the network outputs the image and is trained
    on the velocity. Source: Li and He 2025, arXiv:2511.13720.

    Args:
        most: the limit of 1 / sigma, >= 1.
    """

    def __init__(self, most: float = 20.0) -> None:
        if most < 1:
            raise ValueError(f"VelocityWeight: most must be at least 1, got {most}")
        self.most = most

    def of(self, snr: Tensor) -> Tensor:
        return (1 + snr.sqrt()).clamp(max=self.most).square()


class SigmoidWeight(SnrWeight):
    """snr sigmoid(bias - log snr), a sigmoid of the log-SNR on the error of eps.

    Source: Kingma & Gao 2023, arXiv:2303.00848, tab. 1, as a weight over the training times.

    Args:
        bias: log-SNR at which the sigmoid is 1/2.
    """

    def __init__(self, bias: float = 2.0) -> None:
        self.bias = bias

    def of(self, snr: Tensor) -> Tensor:
        return snr * torch.sigmoid(self.bias - snr.log())


class Distance(ABC):
    """The cost of an error."""

    @abstractmethod
    def __call__(self, error: Tensor) -> Tensor:
        """The cost of each pixel's error, of the same shape."""


class MSE(Distance):
    """error^2."""

    def __call__(self, error: Tensor) -> Tensor:
        return error.square()


class L1(Distance):
    """|error|."""

    def __call__(self, error: Tensor) -> Tensor:
        return error.abs()


class Huber(Distance):
    """error^2 / 2 up to delta, delta (|error| - delta / 2) beyond.

    Args:
        delta: where the cost becomes linear, > 0.
    """

    def __init__(self, delta: float = 0.1) -> None:
        if delta <= 0:
            raise ValueError(f"Huber: delta must be positive, got {delta}")
        self.delta = delta

    def __call__(self, error: Tensor) -> Tensor:
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta)
