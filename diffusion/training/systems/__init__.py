"""The LightningModules."""

from diffusion.training.systems.autoencoder import Autoencoder
from diffusion.training.systems.classifier import Classifier
from diffusion.training.systems.diffusion import Diffusion
from diffusion.training.systems.noisy_classifier import NoisyClassifier
from diffusion.training.systems.vicreg import VICReg

__all__ = ["Autoencoder", "Classifier", "Diffusion", "NoisyClassifier", "VICReg"]
