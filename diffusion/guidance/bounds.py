"""Limits on the predicted x_0."""

from abc import ABC, abstractmethod

from diffusion.denoiser import Clamped, Denoise


class Bound(ABC):
    """A limit on the predicted x_0; eps is recomputed, so that alpha x_0 + sigma eps is still x."""

    @abstractmethod
    def __call__(self, denoise: Denoise) -> Denoise:
        """The bounded prediction."""


def usual(bounded: bool) -> Bound:
    """The limit of a model that names none: data that are bounded are clamped to their range, others are not."""
    return Clamp() if bounded else Unbounded()


class Unbounded(Bound):
    """No limit."""

    def __call__(self, denoise: Denoise) -> Denoise:
        return denoise


class Clamp(Bound):
    """Clamp x_0 to the range of images, at every step. Source: Ho et al. 2020, arXiv:2006.11239, sec. 3.2 (their code).

    Args:
        low: smallest pixel value.
        high: largest pixel value, > low.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"Clamp: low must be below high, got {low} and {high}")
        self.low, self.high = float(low), float(high)

    def __call__(self, denoise: Denoise) -> Clamped:
        return Clamped(denoise, self.low, self.high)
