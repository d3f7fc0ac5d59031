"""Edits through a picture's noise: DDIM inversion, modification of the noise, and DDIM sampling.

Both directions omit the limit on x_0, which is not invertible, and the memory of self-conditioning.
"""

import torch
from torch import Tensor

from diffusion.denoiser import Denoise, Prediction, predict
from diffusion.generation.cascade import Cascade
from diffusion.generation.editing.base import batches, check_images, part_of, still
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Guidance, Plain
from diffusion.noise.draws import ImageDraws
from diffusion.noise.level import Level, broadcast
from diffusion.samplers import DDIM, Sampler

Noises = Tensor | list[Tensor]  # of a model, or of the stages of a cascade one after the other


def to_noise(
    pipeline: Pipeline,
    x0: Tensor,
    y: Tensor | None = None,
    sampler: DDIM | None = None,
    guidance: Guidance | None = None,
    iterations: int = 5,
    batch_size: int = 256,
) -> Noises:
    """The noise (B, C, H, W), of latents if the model has a codec, from which DDIM generates these images.

    That of a cascade is a list: the noise of the base, from which it generates the reduced images, and of each later
    stage the noise on its input, that of seed 0, and the noise from which it enlarges the reduced images to the given.

    Args:
        y: labels (B,) or contexts (B, D).
        sampler: DDIM with eta = 0; the model's if it is one, else DDIM with 50 steps. Of a cascade, that of its last
            stage; the others have their own or DDIM with 50 steps.
        guidance: Plain by default, in every stage: the farther a scale is from 1, the less accurate the inversion. If
            it is given, it is that of the last stage and the others have their own.
        iterations: network evaluations to invert a step, see `DDIM.invert`.
    """
    image, before, done = None, [], []
    if isinstance(pipeline, Cascade):
        check_images(pipeline, x0)
        small = pipeline.reduced(x0)
        its = None if guidance is None else pipeline.base.guidance
        before = listed(to_noise(pipeline.base, small, y, None, its, iterations, batch_size))
        before.append(pipeline.hint_noise(small))
        image = pipeline.enlarging(small, noise=before[-1])
    sampler = inverter(pipeline, sampler)
    with still(pipeline):
        for x, label, _, part in batches(pipeline, x0, y, 0, batch_size):
            denoise = _reversible(pipeline, label, guidance, part_of(image, part))
            done.append(sampler.invert(denoise, x, pipeline.denoiser.schedule, iterations).cpu())
    return [*before, torch.cat(done)] if before else torch.cat(done)


def from_noise(
    pipeline: Pipeline,
    z: Noises,
    y: Tensor | None = None,
    sampler: DDIM | None = None,
    guidance: Guidance | None = None,
    batch_size: int = 256,
    towards: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The images (B, C, H, W) that DDIM generates from this noise; for the arguments see `to_noise`.

    Args:
        towards: a second condition and its weight, (B,) in [0, 1].
    """
    image, (*before, z), done = None, listed(z), []
    if isinstance(pipeline, Cascade):
        *first, added = before
        its = None if guidance is None else pipeline.base.guidance
        small = from_noise(pipeline.base, first, y, None, its, batch_size, towards)
        image = pipeline.enlarging(small, noise=added)
    sampler = inverter(pipeline, sampler)
    with still(pipeline):
        for x, label, _, part in batches(pipeline, z, y, 0, batch_size, latent=True):
            denoise = _reversible(pipeline, label, guidance, part_of(image, part))
            if towards is not None:
                second = _reversible(pipeline, towards[0][part].to(x.device), guidance, part_of(image, part))
                denoise = between_guesses(denoise, second, towards[1][part])
            done.append(pipeline.pixels.decode(sampler.sample(denoise, x, pipeline.denoiser.schedule)).cpu())
    return torch.cat(done)


def fresh_noise(pipeline: Pipeline, z: Noises, seed: int) -> Noises:
    """The noise of a seed's images, in the form of z."""
    *before, like = listed(z)
    made = pipeline.denoiser.schedule.prior_std * ImageDraws(pipeline.stream(seed), range(len(like)))(like)
    if not isinstance(pipeline, Cascade):
        return made
    *first, added = before
    return [*listed(fresh_noise(pipeline.base, first, seed)), pipeline.hint_noise(added, seed), made]


def listed(z: Noises) -> list[Tensor]:
    """The noise as a list: one tensor, or several of a cascade."""
    return [z] if isinstance(z, Tensor) else list(z)


def reconstruct(
    pipeline: Pipeline,
    x0: Tensor,
    y: Tensor | None = None,
    sampler: DDIM | None = None,
    guidance: Guidance | None = None,
    iterations: int = 5,
    batch_size: int = 256,
) -> tuple[Tensor, Tensor]:
    """The images after inversion and sampling, (B, C, H, W), and the root mean square change of each, (B,).

    Source: Song et al. 2021, arXiv:2010.02502, sec. 5.4. For the arguments see `to_noise`.
    """
    z = to_noise(pipeline, x0, y, sampler, guidance, iterations, batch_size)
    made = from_noise(pipeline, z, y, sampler, guidance, batch_size)
    return made, (made - x0.cpu()).square().flatten(1).mean(1).sqrt()


def vary(
    pipeline: Pipeline,
    x0: Tensor,
    amount: float = 0.3,
    n: int = 4,
    y: Tensor | None = None,
    seed: int = 0,
    sampler: DDIM | None = None,
    guidance: Guidance | None = None,
    iterations: int = 5,
    batch_size: int = 256,
) -> Tensor:
    """n variations of each image, (B, n, C, H, W): its noise, interpolated towards fresh noise.

        x_0' = DDIM(slerp(DDIM^-1(x_0), z, amount))

    Variation k uses the fresh noise of seed + k. The other arguments are those of `to_noise`.
    Source: the parts, Song et al. 2021, arXiv:2010.02502, sec. 4.3 and eq. 67.

    Args:
        amount: in [0, 1]; 0 reproduces the image (as accurately as `reconstruct`), 1 is a new sample.
    Raises:
        ValueError: amount outside [0, 1] or n < 1.
    """
    if not 0 <= amount <= 1 or n < 1:
        raise ValueError(f"vary: amount must lie in [0, 1] and n be at least 1, got {amount} and {n}")
    z, made = to_noise(pipeline, x0, y, sampler, guidance, iterations, batch_size), []
    for k in range(n):
        between = slerps(z, fresh_noise(pipeline, z, seed + k), amount)
        made.append(from_noise(pipeline, between, y, sampler, guidance, batch_size))
    return torch.stack(made, 1)


def interpolate(
    pipeline: Pipeline,
    a: Tensor,
    b: Tensor,
    n: int = 9,
    y_a: Tensor | None = None,
    y_b: Tensor | None = None,
    sampler: DDIM | None = None,
    guidance: Guidance | None = None,
    iterations: int = 5,
    batch_size: int = 256,
) -> Tensor:
    """n images from each of a to that of b, (B, n, C, H, W), including both ends, as `reconstruct` gives them.

        x_0(u) = DDIM(slerp(DDIM^-1(a), DDIM^-1(b), u)),    predicted x_0 = lerp(x_0 | y_a, x_0 | y_b, u)

    The lerp of predictions gives the score of p(x | y_a)^(1-u) p(x | y_b)^u: a condition between two labels.
    The other arguments are those of `to_noise`.
    Source: Song et al. 2021, arXiv:2010.02502, sec. 5.3 and eq. 67; the score: Liu et al. 2022, arXiv:2206.01714.

    Raises:
        ValueError: n < 2, a and b of different shapes, or a condition for only one of them.
    """
    if n < 2 or a.shape != b.shape:
        raise ValueError(f"interpolate: n >= 2 and images of one shape, got {n}, {tuple(a.shape)}, {tuple(b.shape)}")
    if (y_a is None) != (y_b is None):
        raise ValueError("interpolate: give a condition for both ends or for none")
    za, zb = (to_noise(pipeline, x, y, sampler, guidance, iterations, batch_size) for x, y in ((a, y_a), (b, y_b)))
    u = torch.linspace(0, 1, n).repeat(len(a))  # (B n,)
    za, zb = ([v.repeat_interleave(n, 0) for v in listed(z)] for z in (za, zb))
    towards = None if y_b is None or torch.equal(y_a, y_b) else (y_b.repeat_interleave(n, 0), u)
    y = None if y_a is None else y_a.repeat_interleave(n, 0)
    made = from_noise(pipeline, slerps(za, zb, u), y, sampler, guidance, batch_size, towards)
    return made.unflatten(0, (-1, n))


def slerp(a: Tensor, b: Tensor, u: float | Tensor) -> Tensor:
    """Spherical interpolation, image by image: sin((1 - u) w) / sin(w) a + sin(u w) / sin(w) b, w their angle.

    Preserves the common norm of a and b; linear interpolation would pass through noise of too small a norm.
    Source: Shoemake 1985, Animating rotation with quaternion curves; Song et al. 2021, arXiv:2010.02502, eq. 67.

    Args:
        u: 0 is a, 1 is b; one number, or one per image (B,).
    """
    p, q = (v.flatten(1).double() / v.flatten(1).double().norm(dim=1, keepdim=True) for v in (a, b))
    w = 2 * torch.atan2((p - q).norm(dim=1), (p + q).norm(dim=1))  # acos loses precision at small angles
    flat = w.sin() < 1e-6  # no angle, or no plane: the sines would be 0 / 0
    w, u = w.masked_fill(flat, 1.0), torch.as_tensor(u, dtype=w.dtype, device=w.device)
    wa, wb = (broadcast(torch.where(flat, v, (v * w).sin() / w.sin()), a) for v in (1 - u, u))
    return wa * a + wb * b


def slerps(a: Noises, b: Noises, u: float | Tensor) -> list[Tensor]:
    """`slerp` of each noise of a cascade's stages, or of the one of a model."""
    return [slerp(p, q, u) for p, q in zip(listed(a), listed(b), strict=True)]


def between_guesses(a: Denoise, b: Denoise, u: Tensor) -> Denoise:
    """The x_0 predictions of a and b, linearly interpolated by a fraction u (B,)."""

    def denoise(x: Tensor, t: Level) -> Prediction:
        return predict(x, torch.lerp(a(x, t).x0, b(x, t).x0, broadcast(u, x)), t.like(x))

    return denoise


def inverter(pipeline: Pipeline, sampler: Sampler | None = None) -> DDIM:
    """The sampler, if it is invertible; by default the model's if invertible, else DDIM with 50 steps.

    Raises:
        ValueError: a sampler that is not DDIM with eta = 0.
    """
    own = pipeline.sampler
    if sampler is None:
        known = isinstance(own, DDIM) and own.eta == 0
        return own if known else DDIM(min(50, pipeline.denoiser.schedule.T or 50), grid=own.grid)
    if not isinstance(sampler, DDIM) or sampler.eta > 0:
        raise ValueError(f"only DDIM with eta = 0 can be inverted, got {type(sampler).__name__}; use that")
    return sampler


def _reversible(pipeline: Pipeline, y: Tensor | None, guidance: Guidance | None, image: Tensor | None) -> Denoise:
    """A prediction that is a function of (x, t) alone, without a limit or the memory of a walk."""
    return pipeline.last.steered(y, image, guidance or Plain(), walk=False)
