"""Whatever changes a prediction on its way to the sampler: Denoise -> Denoise."""

from abc import ABC, abstractmethod

import torch

from diffusion.denoiser import Condition, Denoise, Denoiser, predict


class Guidance(ABC):
    """How a condition steers sampling."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        """The prediction that a sampler will follow."""


class Plain(Guidance):
    """The conditional prediction as it is."""

    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        return denoiser.bind(cond)


class ClassifierFree(Guidance):
    """Go from the unconditional prediction through the conditional one, and on.

        x0 = lerp(x0_uncond, x0_cond, scale)

    One network call on a batch of 2B. In the papers' other convention, (1 + w) cond - w uncond, scale is 1 + w.
    Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6.

    Args:
        scale: 0 is unconditional, 1 is conditional without guidance, above 1 trades diversity for the condition.
    """

    def __init__(self, scale: float = 2.0) -> None:
        self.scale = float(scale)

    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        if cond.y is None or self.scale == 1:
            return denoiser.bind(cond)
        on = cond.keep if cond.keep is not None else torch.ones(len(cond.y), dtype=torch.bool, device=cond.y.device)
        image = None if cond.image is None else torch.cat([cond.image, cond.image])
        both = Condition(torch.cat([cond.y, cond.y]), torch.cat([torch.zeros_like(on), on]), image=image)

        def denoise(x, t):
            # Levels of one an image are doubled like the images.
            t2 = t if t.t.ndim == 0 else type(t)(*(torch.cat([v, v]) for v in t))
            pred = denoiser(torch.cat([x, x]), t2, both)
            uncond, given = pred.x0.chunk(2)
            var = None if pred.var is None else pred.var.chunk(2)[1]
            return predict(x, torch.lerp(uncond, given, self.scale), t.like(x), var)

        return denoise


class Bound(ABC):
    """A limit on the predicted x_0; eps is re-derived, so that the two still make up x."""

    @abstractmethod
    def __call__(self, denoise: Denoise) -> Denoise:
        """The limited prediction."""


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

    def __call__(self, denoise: Denoise) -> Denoise:
        def limited(x, t):
            pred = denoise(x, t)
            return predict(x, pred.x0.clamp(self.low, self.high), t.like(x), pred.var)

        return limited
