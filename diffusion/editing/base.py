"""What all edits share: batches with their noise, a still model, the prediction to follow."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.guidance import Guidance
from diffusion.noise.draws import ImageDraws
from diffusion.training.systems import Diffusion


def batches(
    model: Diffusion, x0: Tensor, y: Tensor | None, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None, ImageDraws, slice]]:
    """(x0, y, noise, place) of each batch, on the model's device."""
    if tuple(x0.shape[1:]) != model.shape or batch_size < 1 or not len(x0):
        raise ValueError(
            f"wanted images (B, {', '.join(map(str, model.shape))}) and batch_size >= 1, "
            f"got {tuple(x0.shape)} and {batch_size}"
        )
    if y is not None and len(y) != len(x0):
        raise ValueError(f"wanted a condition for each of {len(x0)} images, got {len(y)}")
    for first in range(0, len(x0), batch_size):
        part = slice(first, min(first + batch_size, len(x0)))
        label = None if y is None else y[part].to(model.device)
        yield x0[part].to(model.device), label, ImageDraws(seed, range(part.start, part.stop)), part


@contextmanager
def still(model: Diffusion) -> Iterator[None]:
    """Without dropout and gradients; the mode comes back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def steered(model: Diffusion, y: Tensor | None, guidance: Guidance | None) -> Denoise:
    """What `Diffusion.frames` follows."""
    return model.clamp(model.steered(y, guidance=guidance))
