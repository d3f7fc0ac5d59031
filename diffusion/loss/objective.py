"""The training objective."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser, Prediction
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


class Noised(NamedTuple):
    """A batch at random noise levels.

    Attributes:
        x: alpha x0 + sigma eps, (B, C, H, W).
        x0, eps: its parts; eps as paired with x0.
        t: the level of each image, in x's form; `level` is the same in float64 on the CPU, (B,).
        cond: with the labels that are kept, and the previous prediction of a self-conditioned network.
    """

    x: Tensor
    x0: Tensor
    eps: Tensor
    t: Level
    level: Level
    cond: Condition


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
    Attributes:
        advances: whether the loss depends on the progress of training.
    Raises:
        ValueError: drop or self_condition outside [0, 1], or a negative vlb or offset.
    """

    advances = False

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
        progress: float = 0.0,
    ) -> Terms:
        """The loss of a batch x0 (B, C, H, W).

        Args:
            noise: returns N(0, I) of a tensor's shape.
            uniform: returns n uniform numbers in [0, 1), float64 on the CPU; called for times, drop and
                self-conditioning, in this order.
            progress: the fraction of the training that is done, in [0, 1].
        Raises:
            ValueError: vlb > 0, but the network outputs no variance.
        """
        batch = self.noised(denoiser, x0, cond, noise, uniform)
        pred, hidden = self.predicted(denoiser, batch)
        weight = self.weight(batch.t, denoiser.target, denoiser.schedule).sqrt()
        mse = self.distance(weight * (pred.x0 - x0)).flatten(1).mean(1)  # (B,)
        return self.terms(denoiser, batch, pred, mse, hidden)

    def noised(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Condition,
        noise: Callable[[Tensor], Tensor],
        uniform: Callable[[int], Tensor],
    ) -> Noised:
        """The batch at random levels, with labels dropped; see `__call__`."""
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
        eps = self.pairing(x0, eps)
        x = t.alpha * x0 + t.sigma * eps
        if denoiser.self_condition and self.self_condition and float(uniform(1)) < self.self_condition:
            with torch.no_grad():
                cond = cond._replace(previous=denoiser(x, t, cond).x0)
        return Noised(x, x0, eps, t, level, cond)

    def predicted(self, denoiser: Denoiser, batch: Noised, to: Level | None = None) -> tuple[Prediction, Tensor | None]:
        """The prediction that is trained, and the hidden features that `dispersive` spreads."""
        if self.dispersive is None:
            return denoiser(batch.x, batch.t, batch.cond, to), None
        with self.dispersive.watching(denoiser.net) as hidden:
            return denoiser(batch.x, batch.t, batch.cond, to), hidden[-1]

    def terms(
        self, denoiser: Denoiser, batch: Noised, pred: Prediction, mse: Tensor, hidden: Tensor | None = None
    ) -> Terms:
        """The loss from the weighted error of each image (B,), and the hidden features of `predicted`."""
        schedule, times, x0 = denoiser.schedule, batch.level.t, batch.x0
        loss, bound = mse, None
        if self.vlb:
            below, above = neighbours(schedule, times)
            fixed = pred._replace(x0=pred.x0.detach())  # the bound trains the variance alone
            bound = (schedule.T or 1000) * term(fixed, x0, below, batch.level, above)
            loss = loss + self.vlb * bound
        error = (pred.x0.detach() - x0).square().flatten(1).mean(1)
        if self._corrects:
            loss = loss * self.times.correction(times, schedule).to(mse, non_blocking=True)
        total = loss.mean()
        if hidden is not None:
            total = total + self.dispersive.weight * self.dispersive(hidden)
        return Terms(total, mse, batch.t, bound, error)
