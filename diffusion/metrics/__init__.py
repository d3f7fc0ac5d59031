"""Measures of samples."""

from diffusion.metrics.features import DigitsNet, train_classifier
from diffusion.metrics.frechet import Gaussian, frechet_distance

__all__ = ["DigitsNet", "Gaussian", "frechet_distance", "train_classifier"]
