"""Partial walks: starting from a noised picture, or stopping at intermediate levels."""

import torch
from torch import Tensor

from diffusion.generation.cascade import Cascade
from diffusion.generation.editing.base import batches, check_images, part_of, steered, still
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Guidance
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.samplers import Frame, Sampler
from diffusion.samplers.base import Noise


def img2img(
    pipeline: Pipeline,
    x0: Tensor,
    strength: float = 0.5,
    y: Tensor | None = None,
    seed: int = 0,
    sampler: Sampler | None = None,
    guidance: Guidance | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Images (B, C, H, W) based on others: noised to an intermediate level and denoised from there.

        x_t = alpha_t x_0 + sigma_t z,    t the level of the sampler's grid nearest to strength

    A cascade does the same with the reduced images first, at the same strength, and its last stage is given the result.
    Source: SDEdit, Meng et al. 2022, arXiv:2108.01073, alg. 1 (with the schedule's own alpha).

    Args:
        strength: in [0, 1]; 0 is the image itself, 1 starts from pure noise: `Diffusion.sample` with the same seed.
        sampler, guidance: of a cascade's last stage; the others have their own.
        y: labels (B,) or contexts (B, D); a label other than the image's own changes its content.
    Raises:
        ValueError: strength outside [0, 1].
    """
    sampler, schedule, done = sampler or pipeline.sampler, pipeline.denoiser.schedule, []
    start, image = beginning(sampler, schedule, strength), None
    if isinstance(pipeline, Cascade):
        check_images(pipeline, x0)
        small = img2img(pipeline.base, pipeline.reduced(x0), strength, y, seed, batch_size=batch_size)
        image = pipeline.enlarging(small, seed)
    with still(pipeline):
        for x, label, noise, part in batches(pipeline, x0, y, seed, batch_size):
            x = noised(x, sampler, schedule, start, noise)
            denoise = steered(pipeline, label, guidance, part_of(image, part))
            for frame in sampler.iterate(denoise, x, schedule, noise, start):
                x = frame.x
            done.append(pipeline.pixels.decode(x).cpu())
    return torch.cat(done)


def beginning(sampler: Sampler, schedule: Schedule, strength: float) -> int:
    """The index in the sampler's levels where `img2img` starts; strength > 0 takes a step or more, 1 takes all."""
    if not 0 <= strength <= 1:
        raise ValueError(f"img2img: strength must lie in [0, 1], got {strength}; 0 is the image, 1 is pure noise")
    levels = sampler.levels(schedule)
    return len(levels) - 1 if strength == 0 else 0 if strength == 1 else nearest(levels[:-1], strength)


def noised(x0: Tensor, sampler: Sampler, schedule: Schedule, start: int, noise: Noise) -> Tensor:
    """x_0 noised to one of the sampler's levels; pure noise at the first, though a schedule may leave some signal."""
    t = sampler.levels(schedule)[start]
    if start == 0:
        return schedule.prior_std * noise(x0)
    return t.alpha * x0 + t.sigma * noise(x0) if t.sigma > 0 else x0


def stop(
    pipeline: Pipeline,
    at: list[float],
    n: int = 4,
    y: Tensor | None = None,
    seed: int = 0,
    sampler: Sampler | None = None,
    guidance: Guidance | None = None,
) -> list[Frame]:
    """The states of n images during sampling, at the levels nearest to given times, with their predicted x_0.

    The walk ends at the last of them. At t = 0 the prediction is the image. Frames are ordered from noise to clean,
    each level once; those of a cascade are of its last stage. Unlike in `Pipeline.frames`, x0 is the prediction from
    the x of the same frame.

    Args:
        at: times in [0, 1]; 1 is noise.
        y: labels (n,) or contexts (n, D); all classes in turn by default.
    Raises:
        ValueError: no times, or a time outside [0, 1].
    """
    if not at or not all(0 <= t <= 1 for t in at):
        raise ValueError(f"stop: wanted times in [0, 1], got {at}")
    levels = (sampler or pipeline.sampler).levels(pipeline.denoiser.schedule)
    wanted = {nearest(levels, t) for t in at}
    x, caught = pipeline.start(n, seed), []
    for k, frame in enumerate(pipeline.frames(n, y, seed, sampler, guidance)):
        if k in wanted:
            caught.append(Frame(levels[k], x, frame.x0))
        if k >= max(wanted):
            return caught
        x = frame.x
    return [*caught, Frame(levels[-1], x, x)]


def nearest(levels: list[Level], t: float) -> int:
    """The index of the level whose time is nearest to t."""
    return min(range(len(levels)), key=lambda k: abs(float(levels[k].t) - t))
