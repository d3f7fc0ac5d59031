"""The LightningModules, and the guidance by another one of them."""

from diffusion.systems.classifier import Classifier
from diffusion.systems.diffusion import Diffusion
from diffusion.systems.guides import AutoGuidance, ClassifierGuidance
from diffusion.systems.noisy_classifier import NoisyClassifier

__all__ = ["AutoGuidance", "Classifier", "ClassifierGuidance", "Diffusion", "NoisyClassifier"]
