"""Guidance by any differentiable objective: a colour, a similarity, a measurement."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoise, Denoiser, Prediction, predict
from diffusion.denoiser.codecs.base import Codec
from diffusion.guidance.base import Guidance, Plain
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule


class CondFn(Protocol):
    """A steering function: the gradient of log p(objective | x_0) at the predicted x_0, up to a factor."""

    def __call__(self, x0: Tensor, t: Level) -> Tensor:
        """Gradient (B, C, H, W) at the predicted x0 (B, C, H, W) and level t, whose fields are () or (B, 1, 1, 1)."""


class Likelihood(ABC):
    """A CondFn derived from a log-likelihood by automatic differentiation with respect to the predicted x_0."""

    @abstractmethod
    def log_p(self, x0: Tensor, t: Level) -> Tensor:
        """log p(objective | x_0) of each predicted x0 (B, C, H, W) up to a constant (B,), or minus a loss."""

    def __call__(self, x0: Tensor, t: Level) -> Tensor:
        with torch.enable_grad():
            x0 = x0.detach().requires_grad_()
            return torch.autograd.grad(self.log_p(x0, t).sum(), x0)[0]


class Steer(Guidance):
    """Guidance by a CondFn g(x0_hat, t), added to the score of another guidance: score += scale s, so that

        x0 += sigma^2 / alpha scale s,        eps = (x - alpha x0) / sigma

    "guess" takes the gradient g with respect to the predicted x_0, and assumes that x_0 varies with x as for Gaussian
    data of standard deviation std; no backward pass through the network, and well defined where alpha = 0:

        s = alpha / sigma^2 V g,    V = std^2 sigma^2 / (alpha^2 std^2 + sigma^2);    x0 += scale V g

    "network" takes the gradient with respect to x_t, through the network (one backward pass per step):

        s = (d x0_hat / d x_t)^T g,        so that x0 += scale Cov[x_0 | x_t] g for an ideal network

    Exact if g is the gradient of log p(objective | x_t) as a function of the predicted x_0: for a measurement
    y = x_0 + n of Gaussian data that is (y - x0) / (Var n + V), for which both are exact. "network" divides the
    network's errors by alpha, so it is worst near pure noise, where Interval can disable it; it adds nothing where
    alpha = 0.
    Source: Chung et al. 2023 (DPS), arXiv:2209.14687, eq. 7 and 10, without its normalised step size; V for std 1:
    Song et al. 2023 (Pi-GDM), openreview 9_gsMA8MRKQ, app. A.3; the covariance: Efron 2011.

    Args:
        fn: the CondFn; on the command line, the import path of a class.
        scale: 0 is off, 1 uses fn unscaled, above 1 exaggerates.
        through: whether the gradient is taken with respect to the predicted x_0 or to x_t.
        std: standard deviation of the images' pixels, > 0, for "guess"; that of latents, 1, if the model has a codec.
        guidance: the guidance whose prediction is steered.
    Raises:
        ValueError: std <= 0 or through is unknown; in sampling, fn does not return (B, C, H, W).
    """

    def __init__(
        self,
        fn: CondFn,
        scale: float = 1.0,
        through: Literal["guess", "network"] = "guess",
        std: float = 0.5,
        guidance: Guidance = Plain(),
    ) -> None:
        if std <= 0 or through not in ("guess", "network"):
            raise ValueError(f"Steer: expected std > 0 and through 'guess' or 'network', got {std} and {through!r}")
        self.fn, self.scale, self.through, self.std, self.guidance = fn, float(scale), through, float(std), guidance

    @property
    def num_classes(self) -> int:
        return self.guidance.num_classes

    def off(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        return self.guidance(denoiser, cond)

    def refuse(self, schedule: Schedule, shape: Sequence[int], class_names: Sequence[str], codec: Codec) -> str:
        return self.guidance.refuse(schedule, shape, class_names, codec)

    def decoded(self, codec: Codec) -> "Steer":
        """A copy whose CondFn judges decoded images; the latents' standard deviation is 1."""
        changed = copy.copy(self)
        changed.fn, changed.std = Decoded(self.fn, codec), 1.0
        changed.guidance = self.guidance.decoded(codec)
        return changed

    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        base = self.guidance(denoiser, cond)
        if self.scale == 0:
            return base
        if self.through == "guess":
            return SteeredByGuess(base, self.fn, self.scale, self.std)
        return SteeredByNetwork(base, self.fn, self.scale)


@dataclass(eq=False)
class SteeredByGuess:
    """A prediction moved by V g, with the gradient g taken with respect to the predicted x_0; see Steer."""

    base: Denoise
    fn: CondFn
    scale: float
    std: float

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        pred, t = self.base(x, t), t.like(x)
        var = self.std**2 * t.sigma**2 / (t.alpha**2 * self.std**2 + t.sigma**2)
        return predict(x, pred.x0 + self.scale * var * gradient(self.fn, pred.x0, t), t, pred.var)

    def __repr__(self) -> str:
        return f"SteeredByGuess({self.base!r}, {type(self.fn).__name__}, scale {self.scale:g}, std {self.std:g})"


@dataclass(eq=False)
class SteeredByNetwork:
    """A prediction moved by the gradient with respect to x_t, through the network; see Steer."""

    base: Denoise
    fn: CondFn
    scale: float

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        with differentiable(x, t) as (z, level):
            pred = self.base(z, level)
            g = gradient(self.fn, pred.x0.detach(), level.like(z))
            (score,) = torch.autograd.grad(pred.x0, z, g)
        pred = Prediction(*(None if v is None else v.detach() for v in pred))
        return shifted(x, pred, self.scale * score, t)

    def __repr__(self) -> str:
        return f"SteeredByNetwork({self.base!r}, {type(self.fn).__name__}, scale {self.scale:g})"


@dataclass(eq=False)
class Decoded:
    """A CondFn of images as one of latents z: the gradient with respect to decode(z), through the decoder.

    g(z) = (d decode(z) / dz)^T fn(decode(z), t)
    """

    fn: CondFn
    codec: Codec

    def __call__(self, x0: Tensor, t: Level) -> Tensor:
        with torch.enable_grad():
            z = x0.detach().requires_grad_()
            image = self.codec.decode(z)
            return torch.autograd.grad(image, z, gradient(self.fn, image.detach(), t))[0]


def gradient(fn: CondFn, x0: Tensor, t: Level) -> Tensor:
    """A CondFn's value at x0 (B, C, H, W), detached and in x0's dtype.

    Raises:
        ValueError: its shape is not that of x0.
    """
    with differentiable(x0, t) as (z, level):
        g = fn(z.detach(), level).detach()
    if g.shape != x0.shape:
        name, wanted, got = type(fn).__name__, tuple(x0.shape), tuple(g.shape)
        raise ValueError(f"{name}: a CondFn must return the shape of the predicted x_0, {wanted}; got {got}")
    return g.to(x0.dtype)


def shifted(x: Tensor, pred: Prediction, score: Tensor, t: Level) -> Prediction:
    """The prediction whose score is larger by `score` (B, C, H, W): x0 + sigma^2 / alpha score.

    Unchanged where alpha = 0: x carries no information there, and the shift is 0 / 0.
    """
    t = t.like(x)
    return predict(x, pred.x0 + torch.where(t.alpha > 0, t.sigma**2 / t.alpha, 0.0) * score, t, pred.var)


@contextmanager
def differentiable(x: Tensor, t: Level) -> Iterator[tuple[Tensor, Level]]:
    """Copies of x and t that support autograd, whatever mode the sampler runs in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield x.detach().clone().requires_grad_(), Level(*(v.clone() for v in t))
