"""Samplers: two levels in, one step done. A sampler never asks a schedule or a network anything."""

from diffusion.samplers.base import Frame, Sampler
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ddpm import DDPM

__all__ = ["DDIM", "DDPM", "Frame", "Sampler"]
