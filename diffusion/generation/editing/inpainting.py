"""Inpainting: regeneration of a part of a picture, consistent with the rest."""

from collections import deque

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.denoiser import AnyLevel, Denoise
from diffusion.generation.cascade import Cascade
from diffusion.generation.editing.base import batches, check_images, part_of, steered, still
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Guidance
from diffusion.noise.level import Level, forward_var
from diffusion.noise.schedule import Schedule
from diffusion.samplers import Sampler
from diffusion.samplers.base import Noise


def inpaint(
    pipeline: Pipeline,
    x0: Tensor,
    mask: Tensor,
    y: Tensor | None = None,
    seed: int = 0,
    sampler: Sampler | None = None,
    guidance: Guidance | None = None,
    jumps: int = 10,
    length: int = 5,
    batch_size: int = 256,
) -> Tensor:
    """Images (B, C, H, W) whose masked part is regenerated; the rest is preserved exactly.

    A cascade inpaints the reduced images first, where a pixel is unknown if any of its pixels is, and the last stage
    inpaints the images given the result.

    Args:
        mask: bool, True where pixels are regenerated; (H, W), or broadcastable to x0.
        y: labels (B,) or contexts (B, D).
        sampler, guidance: of a cascade's last stage; the others have their own.
        jumps, length: see `repaint`.
    """
    hidden, image, done = torch.broadcast_to(mask, x0.shape), None, []
    if isinstance(pipeline, Cascade):
        check_images(pipeline, x0)
        small, its = pipeline.reduced(x0), pipeline.reduced_mask(hidden)
        small = inpaint(pipeline.base, small, its, y, seed, None, None, jumps, length, batch_size)
        image = pipeline.enlarging(small, seed)
    with still(pipeline):
        for x, label, noise, part in batches(pipeline, x0, y, seed, batch_size):
            denoise, schedule = steered(pipeline, label, guidance, part_of(image, part)), pipeline.denoiser.schedule
            its, f = hidden[part].to(x.device), pipeline.codec.factor
            if coded := pipeline.codec.latent > 0:  # a latent is regenerated if any of its pixels is
                its = F.max_pool2d(its.any(1, keepdim=True).float(), f).bool().expand_as(x)
            walk = repaint(denoise, x, its, schedule, sampler or pipeline.sampler, noise, jumps, length)
            made = pipeline.pixels.decode(walk).cpu()
            done.append(torch.where(hidden[part], made, x0[part]) if coded else made)
    return torch.cat(done)


@torch.no_grad()
def repaint(
    denoise: Denoise,
    x0: Tensor,
    hidden: Tensor,
    schedule: Schedule,
    sampler: Sampler,
    noise: Noise = torch.randn_like,
    jumps: int = 10,
    length: int = 5,
) -> Tensor:
    """RePaint: sampler steps for the hidden part, the noised truth for the rest, and jumps back to harmonise them.

        x_s = where(hidden, step(x_t), alpha_s x_0 + sigma_s z)
        x_t = (alpha_t / alpha_s) x_s + sqrt(Var[x_t | x_s]) z                                    (a jump back)

    Any sampler can be used, one step at a time. A multistep one (DPMSolver, UniPC, DEIS) then has no history and steps
    like DDIM. The step to the clean level is not repeated: it ends at a mean, which is too narrow if noised again.
    Source: Lugmayr et al. 2022, arXiv:2201.09865, alg. 1 (length 1, jumps = U - 1) and app. B (length).

    Args:
        x0: images (B, C, H, W); the hidden part is not used.
        hidden: (B, C, H, W) bool.
        jumps: number of repetitions of each segment, >= 0; 0 only replaces the known part.
        length: levels per segment, >= 1.
    Raises:
        ValueError: jumps < 0 or length < 1.
    """

    def known(x: Tensor, t: Level) -> Tensor:
        return torch.where(hidden, x, t.alpha * x0 + t.sigma * noise(x0))

    denoise, levels, k = AnyLevel(denoise, schedule), sampler.levels(schedule), 0
    x = known(schedule.prior_std * noise(x0), levels[0])
    for to in route(len(levels) - 1, jumps, length):
        t, s = levels[min(k, to)], levels[max(k, to)]
        if to > k:
            x = known(sampler.step(denoise, x, t, s, deque(), noise)[0], s)
        else:
            x = t.alpha / s.alpha * x + forward_var(s, t).sqrt() * noise(x)
        k = to
    return x


def route(n: int, jumps: int, length: int) -> list[int]:
    """The indices of n + 1 levels that `repaint` visits from 0: each segment jumps + 1 times, the last step once.

    Raises:
        ValueError: jumps < 0 or length < 1.
    """
    if jumps < 0 or length < 1:
        raise ValueError(f"inpaint: jumps must be at least 0 and length at least 1, got {jumps} and {length}")
    places = []
    for low in range(0, n - 1, length):
        stretch = list(range(low + 1, min(low + length, n - 1) + 1))
        places += stretch + jumps * [low, *stretch]
    return [*places, n]
