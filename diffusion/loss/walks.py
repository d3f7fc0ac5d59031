"""Walks: from every point of a teacher's walk straight to its end, for sampling in 1 to 4 evaluations."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser
from diffusion.guidance import Guidance, Plain
from diffusion.guidance.guides import settle
from diffusion.loss.objective import Noised, Objective, Terms, uniform
from diffusion.loss.paths import known, learn_from
from diffusion.noise.level import Level
from diffusion.samplers import DDIM, Sampler


class Walks(Objective):
    """The distance of the predicted x_0 from where a teacher's walk ends, at every state of the walk.

        L = E |x_0_hat(x_k, t_k) - e|,    x_1 = prior_std z, x_2, .., x_K, e a walk of the teacher with K steps, e clean

    A batch of B images starts B walks from noise, with the labels of the images, and trains on all their B K states.
    The targets do not move, unlike those of `FlowMap`, so training is short and steady; what it learns is the
    teacher's walk, faults included, so few steps cannot be better than it. Nothing is stored: a walk is a function of
    the seed and the step, as noise is.
    Source: Hu et al. 2025, arXiv:2509.24526 (consistency mid-training), sec. 3, with the Euclidean norm.

    Args:
        teacher: run directory or checkpoint of a denoiser with the same schedule; by default the run of `fit --init`.
            A Denoiser works too, but cannot be saved.
        sampler: the teacher's walk; K is its number of steps.
        guidance: the teacher's; the trained network needs none.
        weights: which weights of the teacher.
        hash: of the teacher's file, filled in automatically; a different file is then rejected.
    Raises:
        FileNotFoundError: no checkpoint at this path.
        ValueError: no teacher, or its file is not a diffusion model, or has changed.
    """

    def __init__(
        self,
        teacher: str | Denoiser = "",
        sampler: Sampler = DDIM(12),
        guidance: Guidance = Plain(),
        weights: Literal["ema", "raw"] = "ema",
        hash: str = "",
    ) -> None:
        super().__init__(drop=0.0)
        self.sampler, self.guidance = sampler, guidance
        learn_from(self, teacher, weights, hash)

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Condition = Condition(),
        noise: Callable[[Tensor], Tensor] = torch.randn_like,
        uniform: Callable[[int], Tensor] = uniform,
        progress: float = 0.0,
    ) -> Terms:
        """The loss of as many walks as there are images in x0 (B, C, H, W), whose pixels do not matter."""
        batch = self.walked(denoiser, x0, cond, noise)
        pred, hidden = self.predicted(denoiser, batch)
        square = (pred.x0 - batch.x0).square().flatten(1).sum(1)
        return self.terms(denoiser, batch, pred, (square + 1e-12).sqrt(), hidden)

    @torch.no_grad()
    def walked(self, denoiser: Denoiser, x0: Tensor, cond: Condition, noise: Callable[[Tensor], Tensor]) -> Noised:
        """All states of the walks before their ends, which take the place of x_0; (B K, C, H, W), state by state."""
        settle(self._teacher, x0)
        schedule, start = denoiser.schedule, denoiser.schedule.prior_std * noise(x0)
        predict = self.guidance(self._teacher, known(self._teacher, cond))
        frames = list(self.sampler.iterate(predict, start, schedule, noise))
        *before, _ = self.sampler.levels(schedule)
        x = torch.cat([start, *(frame.x for frame in frames[:-1])])
        K, B = len(before), len(x0)
        level = Level(*(torch.stack(part).repeat_interleave(B) for part in zip(*before, strict=True)))
        t, end = level.like(x0), frames[-1].x.repeat(K, 1, 1, 1)
        repeated = Condition(*(v if v is None else v.repeat(K, *[1] * (v.ndim - 1)) for v in cond))
        return Noised(x, end, (x - t.alpha * end) / t.sigma, t, level, repeated)
