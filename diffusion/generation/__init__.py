"""Sampling from trained models, without Lightning."""

from diffusion.generation.pipeline import Pipeline

__all__ = ["Pipeline"]
