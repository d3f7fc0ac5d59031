"""Codecs: images to latents and back, so that a denoiser works on fewer numbers than an image has."""

from diffusion.denoiser.codecs.base import Codec as Codec  # the base class; the others are codecs
from diffusion.denoiser.codecs.frozen import Frozen
from diffusion.denoiser.codecs.identity import Identity
from diffusion.denoiser.codecs.pca import PCA

__all__ = ["PCA", "Frozen", "Identity"]
