"""Wrappers between a sampler and the network. Each is a Denoise around another; `repr` shows the whole chain.

AnyLevel(Clamped(Conditioned(AttentionUNet, Linear, Eps; y (16,)), -1, 1))
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion.denoiser.prediction import Condition, Denoise, Prediction, predict
from diffusion.denoiser.targets import Target
from diffusion.noise.level import Level, broadcast
from diffusion.noise.schedule import Schedule
from diffusion.support.tokens import Tokens


class Conditional(Protocol):
    """The common interface of Denoiser and SelfConditioned: predictions for a given condition."""

    schedule: Schedule
    target: Target
    conditional: bool
    tokens: Tokens | None

    def __call__(self, x: Tensor, t: Level, cond: Condition = Condition()) -> Prediction: ...

    def encoded(self, y: Tensor | None) -> Tensor | None: ...

    def describe(self) -> str: ...


class Conditioned:
    """A denoiser with its condition fixed: the innermost link of the chain."""

    def __init__(self, denoiser: Conditional, cond: Condition) -> None:
        self.denoiser, self.cond = denoiser, cond._replace(y=denoiser.encoded(cond.y))

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        return self.denoiser(x, t, self.cond)

    def __repr__(self) -> str:
        return f"Conditioned({self.denoiser.describe()}; {self.cond!r})"


class SelfConditioned:
    """A denoiser that receives its own previous prediction of x_0; holds the state of one sampling walk.

    Source: Chen et al. 2023, arXiv:2208.04202, alg. 2.
    """

    def __init__(self, denoiser: Conditional) -> None:
        self.denoiser, self.schedule, self.target = denoiser, denoiser.schedule, denoiser.target
        self.conditional = denoiser.conditional
        self.previous: Tensor | None = None

    def __call__(self, x: Tensor, t: Level, cond: Condition = Condition()) -> Prediction:
        x0 = self.previous
        if x0 is not None and len(x0) != len(x):  # guidance doubles the batch at some levels, conditional half last
            x0 = x0[-len(x) :] if len(x0) > len(x) else x0.repeat(len(x) // len(x0), 1, 1, 1)
        pred = self.denoiser(x, t, cond._replace(previous=x0))
        self.previous = pred.x0.detach().to(x.dtype)
        return pred

    @property
    def tokens(self) -> Tokens | None:
        """The vocabulary of a network that reads text."""
        return self.denoiser.tokens

    def encoded(self, y: Tensor | None) -> Tensor | None:
        """See `Denoiser.encoded`."""
        return self.denoiser.encoded(y)

    def bind(self, cond: Condition) -> Conditioned:
        """This denoiser with the condition fixed."""
        return Conditioned(self, cond)

    def describe(self) -> str:
        return f"self-conditioned {self.denoiser.describe()}"


@dataclass(eq=False)
class Clamped:
    """x_0 clamped to [low, high] per pixel; eps is recomputed from it, so that alpha x_0 + sigma eps is still x."""

    denoise: Denoise
    low: float
    high: float

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        pred = self.denoise(x, t)
        return predict(x, pred.x0.clamp(self.low, self.high), t.like(x), pred.var)

    def __repr__(self) -> str:
        return f"Clamped({self.denoise!r}, {self.low:g}, {self.high:g})"


@dataclass(eq=False)
class AnyLevel:
    """Supports `off_grid` levels: evaluates at the schedule's level of the same log-SNR, with x rescaled to it.

    A level noisier than t = 1 (churn in the first step) is evaluated at t = 1. A discrete network
    receives a fractional index.
    """

    denoise: Denoise
    schedule: Schedule

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        if not t.t.isnan().any():
            return self.denoise(x, t)
        near = self.schedule.level(self.schedule.time(t.log_snr))
        scale = torch.hypot(near.alpha, near.sigma) / torch.hypot(t.alpha, t.sigma)
        pred = self.denoise(broadcast(scale, x) * x, near)
        return predict(x, pred.x0, t.like(x), pred.var)

    def __repr__(self) -> str:
        return f"AnyLevel({self.denoise!r})"
