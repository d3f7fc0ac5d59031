"""The LightningModules."""

from diffusion.systems.diffusion import Diffusion

__all__ = ["Diffusion"]
