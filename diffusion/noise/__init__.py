"""Noise: levels, schedules, training-time distributions and sampling grids. Depends only on torch."""

from diffusion.noise.continuous import VE, VP, Flow, Karras, SubVP
from diffusion.noise.discrete import (
    ConstantBeta,
    Cosine,
    Discrete,
    Linear,
    Quadratic,
    ScaledLinear,
    Sigmoid,
    SigmoidAlpha,
)
from diffusion.noise.level import Level, forward_var, learned_var, posterior_var
from diffusion.noise.schedule import Schedule
from diffusion.noise.shifted import Shifted
from diffusion.noise.tabulated import Tabulated
from diffusion.noise.times import LogitNormal, LogNormal, LossAware, Stratified, Times, Uniform

__all__ = [
    "VE", "VP", "ConstantBeta", "Cosine", "Discrete", "Flow", "Karras", "Level", "Linear", "LogNormal", "LogitNormal",
    "LossAware", "Quadratic", "ScaledLinear", "Schedule", "Shifted", "Sigmoid", "SigmoidAlpha", "Stratified", "SubVP",
    "Tabulated", "Times", "Uniform", "forward_var", "learned_var", "posterior_var",
]  # fmt: skip
