"""What a network is asked to say, and how x_0 is read from its answer."""

from abc import ABC, abstractmethod

from torch import Tensor

from diffusion.noise.level import Level


class Target(ABC):
    """A linear reading of (x_0, eps) at a level, and its inverse given x = alpha x_0 + sigma eps."""

    def c_in(self, t: Level) -> Tensor | float:
        """Factor on the network's input."""
        return 1.0

    @abstractmethod
    def of(self, x0: Tensor, eps: Tensor, t: Level) -> Tensor:
        """What the network should say, (B, C, H, W)."""

    @abstractmethod
    def x0(self, x: Tensor, out: Tensor, t: Level) -> Tensor:
        """x_0 from the noisy x and the network's answer, (B, C, H, W)."""


class Eps(Target):
    """The noise: x_0 = (x - sigma eps) / alpha. Source: Ho et al. 2020, arXiv:2006.11239, eq. 15."""

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

    Well posed at every level, t = 1 included. The denominator is 1 where the process preserves variance.
    Source: Salimans & Ho 2022, arXiv:2202.00512, sec. 4 and app. D.
    """

    def of(self, x0: Tensor, eps: Tensor, t: Level) -> Tensor:
        return t.alpha * eps - t.sigma * x0

    def x0(self, x: Tensor, out: Tensor, t: Level) -> Tensor:
        return (t.alpha * x - t.sigma * out) / (t.alpha**2 + t.sigma**2)
