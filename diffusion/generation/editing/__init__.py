"""Editing of existing pictures with a trained model: inpainting, img2img, interpolation, and partial denoising.

Image k is a function of (seed, k), its input and its condition, independent of its batch. y None is "no
condition" in all of these but `stop`.
"""

from diffusion.generation.editing.inpainting import inpaint, repaint, route
from diffusion.generation.editing.inversion import from_noise, interpolate, inverter, reconstruct, slerp, to_noise, vary
from diffusion.generation.editing.midway import img2img, stop

__all__ = [
    "from_noise", "img2img", "inpaint", "interpolate", "inverter", "reconstruct", "repaint", "route", "slerp", "stop",
    "to_noise", "vary",
]  # fmt: skip
