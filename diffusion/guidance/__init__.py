"""Guidance and bounds: transformations of a prediction before it reaches the sampler, Denoise -> Denoise."""

from diffusion.guidance.base import Guidance, Plain, Wrapper
from diffusion.guidance.bounds import Bound, Clamp, Unbounded
from diffusion.guidance.classifier import NoisyImageClassifier
from diffusion.guidance.clip import ClipPrompt
from diffusion.guidance.contrast import APG, ClassifierFree, Contrast
from diffusion.guidance.guides import AutoGuidance, ClassifierGuidance
from diffusion.guidance.interval import Interval
from diffusion.guidance.steer import CondFn, Likelihood, Steer, differentiable, shifted

__all__ = [
    "APG", "AutoGuidance", "Bound", "Clamp", "ClassifierFree", "ClassifierGuidance", "ClipPrompt", "CondFn", "Contrast",
    "Guidance", "Interval", "Likelihood", "NoisyImageClassifier", "Plain", "Steer", "Unbounded", "Wrapper",
    "differentiable", "shifted",
]  # fmt: skip
