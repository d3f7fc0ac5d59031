"""Metrics of samples."""

from diffusion.metrics.features import DigitsNet, train_classifier
from diffusion.metrics.frechet import Gaussian, frechet_distance
from diffusion.metrics.judge import Judge, Labelled

__all__ = ["DigitsNet", "Gaussian", "Judge", "Labelled", "frechet_distance", "train_classifier"]
