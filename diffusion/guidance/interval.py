"""Guidance at some noise levels only."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoise, Denoiser, Prediction
from diffusion.guidance.base import Guidance, Wrapper
from diffusion.noise.level import Level


class Interval(Wrapper):
    """Another guidance between two noise levels only; outside of them there is no second evaluation.

        on where low < sigma / alpha <= high

    The ends are in sigma / alpha, EDM's sigma, and so mean the same on every schedule.
    Source: Kynkaanniemi et al. 2024, arXiv:2404.07724, eq. 5.

    Args:
        guidance: the guidance inside the interval.
        low: sigma / alpha at and below which it is off, >= 0.
        high: sigma / alpha above which it is off, > low.
    Raises:
        ValueError: low < 0, or high <= low.
    """

    def __init__(self, guidance: Guidance, low: float = 0.0, high: float = math.inf) -> None:
        super().__init__(guidance)
        if not 0 <= low < high:
            raise ValueError(f"Interval: expected 0 <= low < high in sigma / alpha, got {low:g} and {high:g}")
        self.low, self.high = float(low), float(high)

    def __call__(self, denoiser: Denoiser, cond: Condition) -> "Within":
        return Within(self.guidance(denoiser, cond), self.off(denoiser, cond), self.low, self.high)


@dataclass(eq=False)
class Within:
    """One prediction where low < sigma / alpha <= high, and another elsewhere."""

    inside: Denoise
    outside: Denoise
    low: float
    high: float

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        on = (t.ratio > self.low) & (t.ratio <= self.high)
        if bool(on.all()) or not bool(on.any()):
            return (self.inside if bool(on.all()) else self.outside)(x, t)
        on = on.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))  # per-image levels, on both sides
        pairs = zip(self.inside(x, t), self.outside(x, t), strict=True)
        return Prediction(*(None if a is None else torch.where(on, a, b) for a, b in pairs))

    def __repr__(self) -> str:
        return f"Within({self.inside!r}, else {self.outside!r}, {self.low:g} < sigma / alpha <= {self.high:g})"
