"""What training minimises."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser
from diffusion.noise.level import Level
from diffusion.noise.times import Times, Uniform


class Terms(NamedTuple):
    """A batch's loss: the scalar to minimise, the mean squared error of each image (B,), and their levels."""

    loss: Tensor
    mse: Tensor
    t: Level


def uniform(n: int) -> Tensor:
    """n uniform numbers in [0, 1), float64 on the CPU, from torch's global stream."""
    return torch.rand(n, dtype=torch.float64)


class Objective:
    """L_simple: the mean squared error of what the network says, at random noise levels.

        L = E_{t, eps} mean_pixels (target(x_0, eps, t) - out)^2

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14, for any target.

    Args:
        times: the law of the training times.
        drop: probability, in [0, 1], that an image's label is replaced by the null row, drawn for each image:
            what classifier-free guidance needs (Ho & Salimans 2022, arXiv:2207.12598, alg. 1).
    Raises:
        ValueError: drop outside [0, 1].
    """

    def __init__(self, times: Times = Uniform(), drop: float = 0.1) -> None:
        if not 0 <= drop <= 1:
            raise ValueError(f"Objective: drop is a probability in [0, 1], got {drop}")
        self.times, self.drop = times, float(drop)

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Condition = Condition(),
        noise: Callable[[Tensor], Tensor] = torch.randn_like,
        uniform: Callable[[int], Tensor] = uniform,
    ) -> Terms:
        """The loss of a batch x0 (B, C, H, W).

        Args:
            noise: gives N(0, I) of a tensor's shape.
            uniform: gives n uniform numbers in [0, 1), float64 on the CPU; called for times, then for the drop.
        """
        t = denoiser.schedule.level(self.times(uniform(len(x0)), denoiser.schedule)).like(x0)
        if cond.y is not None and self.drop:
            keep = (uniform(len(x0)) >= self.drop).to(x0.device, non_blocking=True)
            cond = cond._replace(keep=keep if cond.keep is None else keep & cond.keep)
        eps = noise(x0)
        x = t.alpha * x0 + t.sigma * eps
        # A target is linear in (x_0, eps) and x is given, so its error is a known multiple of the error in x_0.
        gain = denoiser.target.of(torch.ones_like(t.alpha), -t.alpha / t.sigma, t)
        mse = (gain * (denoiser(x, t, cond).x0 - x0)).square().flatten(1).mean(1)  # (B,)
        return Terms(mse.mean(), mse, t)
