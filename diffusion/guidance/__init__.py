"""Whatever changes a prediction on its way to the sampler: Denoise -> Denoise."""

from diffusion.guidance.base import Guidance, Plain, Wrapper, takes_labels
from diffusion.guidance.bounds import Bound, Clamp, Unbounded
from diffusion.guidance.contrast import APG, ClassifierFree, Contrast
from diffusion.guidance.interval import Interval
from diffusion.guidance.steer import CondFn, Likelihood, Steer, differentiable, shifted

__all__ = [
    "APG", "Bound", "Clamp", "ClassifierFree", "CondFn", "Contrast", "Guidance", "Interval", "Likelihood", "Plain",
    "Steer", "Unbounded", "Wrapper", "differentiable", "shifted", "takes_labels",
]  # fmt: skip
