"""Guidance away from a worse prediction: classifier-free and adaptive projected guidance, and their base class."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoise, Denoiser, Prediction, predict
from diffusion.guidance.base import Guidance
from diffusion.noise.level import Level

Pair = Callable[[Tensor, Level], tuple[Prediction, Tensor]]


class Contrast(Guidance):
    """Extrapolation from a worse prediction through the model's own.

        x0 = lerp(x0_worse, x0_own, scale) = x0_own + (scale - 1) (x0_own - x0_worse)

    Optionally rescaled, because extrapolation raises the contrast: with std over an image's pixels and channels

        x0 <- (rescale std(x0_own) / std(x0) + 1 - rescale) x0

    The paper rescales its network's output, v; here it is x_0, so that the result does not depend on the target.
    Source of the rescaling: Lin et al. 2023, arXiv:2305.08891, sec. 3.4, eq. 14-16.

    Args:
        scale: 0 is the worse prediction, 1 the model's own at no extra cost; 2 by default.
        w: the papers' convention, scale = 1 + w; give either.
        rescale: in [0, 1]; 0 is off, the paper uses .7.
    Raises:
        ValueError: both scale and w are given, or rescale is outside [0, 1].
    """

    def __init__(self, scale: float | None = None, w: float | None = None, rescale: float = 0.0) -> None:
        name = type(self).__name__
        if scale is not None and w is not None:
            raise ValueError(f"{name}: give scale or w, not both (scale = 1 + w); got scale {scale:g} and w {w:g}")
        if not 0 <= rescale <= 1:
            raise ValueError(f"{name}: rescale must lie in [0, 1], got {rescale}")
        self.scale = 1.0 + w if w is not None else 2.0 if scale is None else float(scale)
        self.w = None  # stored as scale
        self.rescale = float(rescale)

    @abstractmethod
    def pair(self, denoiser: Denoiser, cond: Condition) -> Pair | None:
        """Computes the model's own prediction and the worse x_0; None if there is no worse one."""

    def projection(self) -> "Projection | None":
        """Replaces the lerp during one walk; None for the lerp itself."""
        return None

    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        pair = None if self.scale == 1 else self.pair(denoiser, cond)
        if pair is None:
            return denoiser.bind(cond)
        return Contrasted(pair, self.scale, self.rescale, self.projection())


@dataclass(eq=False)
class Contrasted:
    """The guided prediction of one walk: the lerp, or a projection in its place, and the rescaling."""

    pair: Pair
    scale: float
    rescale: float = 0.0
    projection: "Projection | None" = None

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        own, worse = self.pair(x, t)
        if self.projection is None:
            x0 = torch.lerp(worse, own.x0, self.scale)
        else:
            x0 = self.projection(own.x0, worse, self.scale)
        if self.rescale:
            ours, theirs = (v.std((1, 2, 3), keepdim=True) for v in (own.x0, x0))
            x0 = torch.lerp(torch.ones_like(ours), torch.where(theirs > 0, ours / theirs, 1), self.rescale) * x0
        return predict(x, x0, t.like(x), own.var)

    def __repr__(self) -> str:
        more = f", rescale {self.rescale:g}" if self.rescale else ""
        more += f", {self.projection!r}" if self.projection else ""
        return f"Contrasted({self.pair!r}, scale {self.scale:g}{more})"


class ClassifierFree(Contrast):
    """Extrapolation from the unconditional prediction through the conditional one.

        x0 = lerp(x0_uncond, x0_cond, scale)

    One network call on a batch of 2B. In the paper's convention, (1 + w) cond - w uncond, scale is 1 + w. With a
    negative prompt, x0_uncond is the prediction for that text, from which the pictures are pushed away.
    Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6.

    Args:
        scale: 0 is unconditional, 1 is conditional without guidance, above 1 trades diversity for fidelity to the
            condition; 2 by default.
        w: the paper's convention, scale = 1 + w; give either.
        rescale: in [0, 1], how far the contrast is restored to that of the conditional prediction.
        negative: what the pictures should not show, for a model of text; "" is the model without a condition.
    """

    def __init__(
        self, scale: float | None = None, w: float | None = None, rescale: float = 0.0, negative: str = ""
    ) -> None:
        super().__init__(scale, w, rescale)
        self.negative = negative

    def pair(self, denoiser: Denoiser, cond: Condition) -> "WithAndWithout | None":
        if cond.y is None:
            return None
        on = cond.keep if cond.keep is not None else torch.ones(len(cond.y), dtype=torch.bool, device=cond.y.device)
        both = Condition(*(None if v is None else torch.cat([v, v]) for v in cond))
        both = both._replace(keep=torch.cat([torch.zeros_like(on), on]))
        if self.negative:
            if denoiser.tokens is None:
                raise ValueError("negative: this model was trained without captions; leave the negative prompt out")
            worse = denoiser.encoded(denoiser.tokens.encode([self.negative]).to(cond.y.device))
            y = denoiser.encoded(cond.y)
            both = both._replace(y=torch.cat([worse.expand_as(y).to(y.dtype), y]), keep=torch.cat([on, on]))
        return WithAndWithout(denoiser, both._replace(y=denoiser.encoded(both.y)))


class WithAndWithout:
    """The conditional prediction and the unconditional x_0, from one network call on a batch of 2B.

    Args:
        both: condition of the doubled batch: the unconditional half, then the conditional one.
    """

    def __init__(self, denoiser: Denoiser, both: Condition) -> None:
        self.denoiser, self.both = denoiser, both

    def __call__(self, x: Tensor, t: Level) -> tuple[Prediction, Tensor]:
        # Per-image levels are doubled like the images.
        t2 = t if t.t.ndim == 0 else Level(*(torch.cat([v, v]) for v in t))
        pred = self.denoiser(torch.cat([x, x]), t2, self.both)
        (uncond, given), (_, eps) = pred.x0.chunk(2), pred.eps.chunk(2)
        return Prediction(given, eps, None if pred.var is None else pred.var.chunk(2)[1]), uncond

    def __repr__(self) -> str:
        return f"WithAndWithout({self.denoiser.describe()}; {self.both!r})"


class APG(ClassifierFree):
    """Adaptive projected guidance: classifier-free guidance without the component that only raises the contrast.

        d = x0_cond - x0_uncond + momentum d_before
        d <- d min(1, threshold / |d|)
        x0 = x0_cond + (scale - 1) (d_orthogonal + parallel d_parallel)        with respect to x0_cond

    Preserves colours and contrast at high scales. With parallel 1, threshold 0 and momentum 0 it is ClassifierFree. The
    momentum is the state of one walk.
    Source: Sadat et al. 2024, arXiv:2410.02416, sec. 4 and alg. 1.

    Args:
        scale: as in ClassifierFree.
        w: the paper's convention, scale = 1 + w; give either.
        rescale: as in ClassifierFree.
        negative: as in ClassifierFree.
        parallel: the paper's eta, fraction of the parallel component that is kept; 0 is none, 1 all.
        threshold: largest norm |d| per image, which grows with the number of pixels; 0 is no limit.
        momentum: the paper's beta, in (-1, 1); negative values emphasise what is new in each step.
    Raises:
        ValueError: threshold is negative, or momentum outside (-1, 1).
    """

    def __init__(
        self,
        scale: float | None = None,
        w: float | None = None,
        rescale: float = 0.0,
        negative: str = "",
        parallel: float = 0.0,
        threshold: float = 0.0,
        momentum: float = -0.5,
    ) -> None:
        super().__init__(scale, w, rescale, negative)
        if threshold < 0 or not -1 < momentum < 1:
            raise ValueError(f"APG: expected threshold >= 0 and momentum in (-1, 1), got {threshold} and {momentum}")
        self.parallel, self.threshold, self.momentum = float(parallel), float(threshold), float(momentum)

    def projection(self) -> "Projection":
        return Projection(self.parallel, self.threshold, self.momentum)


@dataclass(eq=False)
class Projection:
    """APG's step from x0_cond during one walk; keeps the last difference for the momentum."""

    parallel: float
    threshold: float
    momentum: float
    before: Tensor | float = field(default=0.0, repr=False)

    def __call__(self, own: Tensor, worse: Tensor, scale: float) -> Tensor:
        d = own - worse + self.momentum * self.before
        self.before = d.detach()
        if self.threshold:
            d = d * (self.threshold / dot(d, d).sqrt()).clamp(max=1)
        square = dot(own, own)
        along = torch.where(square > 0, dot(d, own) / square, 0) * own
        return own + (scale - 1) * (d - along + self.parallel * along)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each image, (B, 1, 1, 1)."""
    return (a * b).sum((1, 2, 3), keepdim=True)
