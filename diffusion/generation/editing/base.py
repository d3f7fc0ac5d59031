"""Shared parts of all edits: batches with their noise, evaluation mode, the guided prediction."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Guidance
from diffusion.noise.draws import ImageDraws


def batches(
    pipeline: Pipeline, x0: Tensor, y: Tensor | None, seed: int, batch_size: int, latent: bool = False
) -> Iterator[tuple[Tensor, Tensor | None, ImageDraws, slice]]:
    """(x0, y, noise, slice) of each batch, on the model's device; x0 as latents if the model has a codec.

    Args:
        latent: whether x0 are latents already.
    """
    wanted = pipeline.latent_shape if latent else pipeline.shape
    if tuple(x0.shape[1:]) != wanted or batch_size < 1 or not len(x0):
        raise ValueError(
            f"wanted images (B, {', '.join(map(str, wanted))}) and batch_size >= 1, "
            f"got {tuple(x0.shape)} and {batch_size}"
        )
    if y is not None and len(y) != len(x0):
        raise ValueError(f"wanted a condition for each of {len(x0)} images, got {len(y)}")
    for first in range(0, len(x0), batch_size):
        part = slice(first, min(first + batch_size, len(x0)))
        label = None if y is None else y[part].to(pipeline.device)
        x = x0[part].to(pipeline.device)
        yield x if latent else pipeline.pixels.encode(x), label, ImageDraws(seed, range(part.start, part.stop)), part


@contextmanager
def still(pipeline: Pipeline) -> Iterator[None]:
    """Disable dropout and gradients inside the block; the mode is restored afterwards."""
    training = pipeline.denoiser.training
    pipeline.denoiser.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        pipeline.denoiser.train(training)


def steered(pipeline: Pipeline, y: Tensor | None, guidance: Guidance | None) -> Denoise:
    """The prediction that `Pipeline.frames` follows."""
    return pipeline.clamp(pipeline.steered(y, guidance=guidance))
