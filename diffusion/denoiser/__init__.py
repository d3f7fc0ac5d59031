"""The denoiser: a network, a schedule and a target predict (x_0, eps) at any noise level."""

from diffusion.denoiser.base import Denoiser
from diffusion.denoiser.chain import AnyLevel, Clamped, Conditioned, SelfConditioned
from diffusion.denoiser.prediction import Condition, Denoise, Prediction, predict
from diffusion.denoiser.saved import Saved, load_denoiser

__all__ = [
    "AnyLevel", "Clamped", "Condition", "Conditioned", "Denoise", "Denoiser", "Prediction", "Saved", "SelfConditioned",
    "load_denoiser", "predict",
]  # fmt: skip
