"""The LightningModules."""

from diffusion.systems.classifier import Classifier
from diffusion.systems.diffusion import Diffusion

__all__ = ["Classifier", "Diffusion"]
