"""The LightningModules, and the guidance by another one of them."""

from diffusion.training.systems.classifier import Classifier
from diffusion.training.systems.diffusion import Diffusion
from diffusion.training.systems.guides import AutoGuidance, ClassifierGuidance
from diffusion.training.systems.noisy_classifier import NoisyClassifier

__all__ = ["AutoGuidance", "Classifier", "ClassifierGuidance", "Diffusion", "NoisyClassifier"]
