"""Generation: a trained model at work, without Lightning."""

from diffusion.generation.pipeline import Pipeline

__all__ = ["Pipeline"]
