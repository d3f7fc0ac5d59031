"""Noise: levels, schedules, where training looks and where sampling stops. Needs torch alone."""

from diffusion.noise.discrete import Cosine, Discrete, Linear, Quadratic, Sigmoid
from diffusion.noise.level import Level, forward_var, posterior_var
from diffusion.noise.schedule import Schedule
from diffusion.noise.times import Stratified, Times, Uniform

__all__ = [
    "Cosine", "Discrete", "Level", "Linear", "Quadratic", "Schedule", "Sigmoid", "Stratified", "Times", "Uniform",
    "forward_var", "posterior_var",
]  # fmt: skip
