"""The training objective."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser
from diffusion.likelihood.vlb import neighbours, term
from diffusion.loss.dispersive import Dispersive
from diffusion.loss.pairing import Independent, Pairing
from diffusion.loss.weights import MSE, Distance, Unit, Weight
from diffusion.noise.level import Level
from diffusion.noise.times import Times, Uniform


class Terms(NamedTuple):
    """A batch's loss: the scalar to minimise, the weighted error of each image (B,), and their levels.

    Attributes:
        vlb: (B,) estimates of the variational bound in bits per dimension, where the variance is learned.
        error: (B,) unweighted mean squared error of x_0, detached; comparable between objectives.
    """

    loss: Tensor
    mse: Tensor
    t: Level
    vlb: Tensor | None = None
    error: Tensor | None = None


def uniform(n: int) -> Tensor:
    """n uniform numbers in [0, 1), float64 on the CPU, from torch's global generator."""
    return torch.rand(n, dtype=torch.float64)


class Objective:
    """The weighted error of the predicted x_0, at random noise levels.

        L = E_{t, eps} mean_pixels distance(sqrt(weight) (x_0 - x_0_hat))

    By default the mean squared error of the network's output. With vlb > 0, for a network that learns the variance,

        L + vlb L_vlb,    L_vlb = T E_t[KL(q(x_s | x_t, x_0) | N(mean as a constant, learned variance))]

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14; weights: Kingma & Gao 2023, arXiv:2303.00848, sec. 3;
    the hybrid: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 16; offset noise: Guttenberg 2023 (crosslabs.org);
    self-conditioning: Chen et al. 2023, arXiv:2208.04202, alg. 1.

    Args:
        times: distribution of the training times.
        weight: weight of each noise level, defined independently of the target.
        distance: cost of an error.
        drop: probability, in [0, 1], that an image's label is replaced by the null embedding, drawn per image;
            required for classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, alg. 1).
        vlb: weight, >= 0, of the bound in bits per dimension; the paper uses .001.
        offset: standard deviation, >= 0, of extra noise shared by all pixels of a channel, so that the overall
            brightness of samples is not tied to that of the initial noise.
        pairing: assignment of noise to images.
        self_condition: probability, in [0, 1], that a self-conditioned network receives its own first prediction of
            x_0 in a training step instead of zeros.
        dispersive: a term that spreads hidden features; none by default.
    Raises:
        ValueError: drop or self_condition outside [0, 1], or a negative vlb or offset.
    """

    def __init__(
        self,
        times: Times = Uniform(),
        weight: Weight = Unit(),
        distance: Distance = MSE(),
        drop: float = 0.1,
        vlb: float = 0.0,
        offset: float = 0.0,
        pairing: Pairing = Independent(),
        self_condition: float = 0.5,
        dispersive: Dispersive | None = None,
    ) -> None:
        for name, p in (("drop", drop), ("self_condition", self_condition)):
            if not 0 <= p <= 1:
                raise ValueError(f"Objective: {name} is a probability in [0, 1], got {p}")
        if vlb < 0 or offset < 0:
            raise ValueError(f"Objective: vlb and offset must be at least 0, got {vlb} and {offset}")
        self.times, self.weight, self.distance, self.drop = times, weight, distance, float(drop)
        self.vlb, self.offset, self.pairing = float(vlb), float(offset), pairing
        self.self_condition, self.dispersive = float(self_condition), dispersive
        self._corrects = type(times).correction is not Times.correction  # skip multiplying by 1

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
            noise: returns N(0, I) of a tensor's shape.
            uniform: returns n uniform numbers in [0, 1), float64 on the CPU; called for times, drop and
                self-conditioning, in this order.
        Raises:
            ValueError: vlb > 0, but the network outputs no variance.
        """
        schedule, B = denoiser.schedule, len(x0)
        u = uniform(B)
        if cond.y is not None and self.drop:
            keep = (uniform(B) >= self.drop).to(x0.device, non_blocking=True)
            cond = cond._replace(keep=keep if cond.keep is None else keep & cond.keep)
        eps = noise(x0)
        if self.offset:
            eps = eps + self.offset * noise(x0[..., :1, :1])

        times = self.times(u, schedule)
        level = schedule.level(times)
        t = level.like(x0)
        x = t.alpha * x0 + t.sigma * self.pairing(x0, eps)
        if denoiser.self_condition and self.self_condition and float(uniform(1)) < self.self_condition:
            with torch.no_grad():
                cond = cond._replace(previous=denoiser(x, t, cond).x0)
        with self.dispersive.watching(denoiser.net) if self.dispersive else nullcontext([]) as hidden:
            pred = denoiser(x, t, cond)
        weight = self.weight(t, denoiser.target, schedule).sqrt()
        mse = self.distance(weight * (pred.x0 - x0)).flatten(1).mean(1)  # (B,)
        loss, bound = mse, None
        if self.vlb:
            below, above = neighbours(schedule, times)
            fixed = pred._replace(x0=pred.x0.detach())  # the bound trains the variance alone
            bound = (schedule.T or 1000) * term(fixed, x0, below, level, above)
            loss = loss + self.vlb * bound
        error = (pred.x0.detach() - x0).square().flatten(1).mean(1)
        if self._corrects:
            loss = loss * self.times.correction(times, schedule).to(mse, non_blocking=True)
        total = loss.mean()
        if self.dispersive:
            total = total + self.dispersive.weight * self.dispersive(hidden[-1])
        return Terms(total, mse, t, bound, error)
