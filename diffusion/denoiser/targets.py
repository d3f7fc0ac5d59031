"""Prediction targets: what a network is trained to output, and how x_0 follows from it."""

from abc import ABC, abstractmethod

from torch import Tensor

from diffusion.noise.level import Level


class Target(ABC):
    """A linear function of (x_0, eps) at a level, and its inverse given x = alpha x_0 + sigma eps."""

    needs_signal = False  # x_0 cannot be recovered from it where alpha = 0

    def c_in(self, t: Level) -> Tensor | float:
        """Factor on the network's input."""
        return 1.0

    @abstractmethod
    def of(self, x0: Tensor, eps: Tensor, t: Level) -> Tensor:
        """The network's regression target, (B, C, H, W)."""

    @abstractmethod
    def x0(self, x: Tensor, out: Tensor, t: Level) -> Tensor:
        """x_0 from the noisy x and the network's output, (B, C, H, W)."""


class Eps(Target):
    """The noise: x_0 = (x - sigma eps) / alpha. Source: Ho et al. 2020, arXiv:2006.11239, eq. 15."""

    needs_signal = True

    def of(self, x0: Tensor, eps: Tensor, t: Level) -> Tensor:
        return eps

    def x0(self, x: Tensor, out: Tensor, t: Level) -> Tensor:
        return (x - t.sigma * out) / t.alpha


class X0(Target):
    """The clean image itself."""

    def of(self, x0: Tensor, eps: Tensor, t: Level) -> Tensor:
        return x0

    def x0(self, x: Tensor, out: Tensor, t: Level) -> Tensor:
        return out


class V(Target):
    """The velocity v = alpha eps - sigma x_0: x_0 = (alpha x - sigma v) / (alpha^2 + sigma^2).

    Well posed at every level, including t = 1. The denominator is 1 for variance-preserving processes.
    Source: Salimans & Ho 2022, arXiv:2202.00512, sec. 4 and app. D.
    """

    def of(self, x0: Tensor, eps: Tensor, t: Level) -> Tensor:
        return t.alpha * eps - t.sigma * x0

    def x0(self, x: Tensor, out: Tensor, t: Level) -> Tensor:
        return (t.alpha * x - t.sigma * out) / (t.alpha**2 + t.sigma**2)


class Score(Target):
    """The score of x given x_0, -eps / sigma: x_0 = (x + sigma^2 score) / alpha (Tweedie's formula).

    With `scaled`, the network outputs sigma times the score, which has unit variance at every level.
    Source: Song & Ermon 2019, arXiv:1907.05600, eq. 4; scaled: Song & Ermon 2020, arXiv:2006.09011, sec. 3.3;
    Efron 2011.

    Args:
        scaled: the network's output divided by sigma is the score.
    """

    needs_signal = True

    def __init__(self, scaled: bool = False) -> None:
        self.scaled = scaled

    def of(self, x0: Tensor, eps: Tensor, t: Level) -> Tensor:
        return -eps if self.scaled else -eps / t.sigma

    def x0(self, x: Tensor, out: Tensor, t: Level) -> Tensor:
        return (x + (t.sigma if self.scaled else t.sigma**2) * out) / t.alpha


class Velocity(Target):
    """The velocity of straight paths, eps - x_0: x_0 = (x - sigma v) / (alpha + sigma).

    Source: Lipman et al. 2023, arXiv:2210.02747, eq. 23, with time reversed (here t = 1 is noise).
    """

    def of(self, x0: Tensor, eps: Tensor, t: Level) -> Tensor:
        return eps - x0

    def x0(self, x: Tensor, out: Tensor, t: Level) -> Tensor:
        return (x - t.sigma * out) / (t.alpha + t.sigma)


class EDM(Target):
    """EDM's preconditioning: input and output have unit variance at every level, x_0 = c_skip x + c_out output.

        d = alpha^2 s^2 + sigma^2,   c_in = 1 / sqrt(d),   c_skip = alpha s^2 / d,   c_out = sigma s / sqrt(d)

    The paper's formulas (for alpha = 1) with x / alpha in place of x, rearranged to allow alpha = 0.
    Source: Karras et al. 2022, arXiv:2206.00364, tab. 1 and app. B.6.

    Args:
        sigma_data: standard deviation s of the images' pixels, > 0; 1 for latents, see `Codec`.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if sigma_data <= 0:
            raise ValueError(f"EDM: sigma_data must be positive, got {sigma_data}")
        self.sigma_data = sigma_data

    def c_in(self, t: Level) -> Tensor:
        return 1 / self._d(t).sqrt()

    def of(self, x0: Tensor, eps: Tensor, t: Level) -> Tensor:
        skip, out = self._coefficients(t)
        return (x0 - skip * (t.alpha * x0 + t.sigma * eps)) / out

    def x0(self, x: Tensor, out: Tensor, t: Level) -> Tensor:
        skip, c_out = self._coefficients(t)
        return skip * x + c_out * out

    def _d(self, t: Level) -> Tensor:
        return t.alpha**2 * self.sigma_data**2 + t.sigma**2

    def _coefficients(self, t: Level) -> tuple[Tensor, Tensor]:
        d = self._d(t)
        return t.alpha * self.sigma_data**2 / d, t.sigma * self.sigma_data / d.sqrt()
