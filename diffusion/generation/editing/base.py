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

    Of a cascade, everything is of the last stage.

    Args:
        latent: whether x0 are latents already.
    """
    check_images(pipeline, x0, batch_size, latent)
    if y is not None and len(y) != len(x0):
        raise ValueError(f"wanted a condition for each of {len(x0)} images, got {len(y)}")
    for first in range(0, len(x0), batch_size):
        part = slice(first, min(first + batch_size, len(x0)))
        label = None if y is None else y[part].to(pipeline.device)
        x = x0[part].to(pipeline.device)
        noise = ImageDraws(pipeline.stream(seed), range(part.start, part.stop))
        yield x if latent else pipeline.pixels.encode(x), label, noise, part


def check_images(pipeline: Pipeline, x0: Tensor, batch_size: int = 1, latent: bool = False) -> None:
    """Reject images of a wrong shape, none at all, and batches of none.

    Raises:
        ValueError: the images are not those of the model, or batch_size < 1.
    """
    wanted = pipeline.latent_shape if latent else pipeline.shape
    if tuple(x0.shape[1:]) != wanted or batch_size < 1 or not len(x0):
        raise ValueError(
            f"wanted images (B, {', '.join(map(str, wanted))}) and batch_size >= 1, "
            f"got {tuple(x0.shape)} and {batch_size}"
        )


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


def steered(pipeline: Pipeline, y: Tensor | None, guidance: Guidance | None, image: Tensor | None = None) -> Denoise:
    """The prediction that `Pipeline.frames` follows; that of the last stage of a cascade.

    Args:
        image: the input of a network with image_channels.
    """
    return pipeline.clamp(pipeline.last.steered(y, image, guidance))


def part_of(image: Tensor | None, part: slice) -> Tensor | None:
    """The inputs of a batch, if there are any."""
    return None if image is None else image[part]
