"""The denoiser: a network, a schedule and a target predict (x_0, eps) at any noise level."""

from diffusion.denoiser.base import Condition, Denoise, Denoiser, Prediction, Walk, anywhere, predict

__all__ = ["Condition", "Denoise", "Denoiser", "Prediction", "Walk", "anywhere", "predict"]
