"""The variational bound on the likelihood of a Markov chain, term by term, in bits per dimension."""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from diffusion.denoiser import Denoise, Prediction
from diffusion.noise import Level, Schedule, forward_var, learned_var, posterior_var
from diffusion.noise.grids import Grid, times
from diffusion.noise.level import broadcast

Variance = Literal["small", "large", "learned"]

BIN = 1 / 255  # half the distance between two of the 256 pixel values k / 127.5 - 1


def kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    """KL(N(mean1, var1) | N(mean2, var2)) of each pixel, in nats.

    (logvar2 - logvar1 + var1 / var2 - 1) / 2 + (mean1 - mean2)^2 / (2 var2)
    """
    return 0.5 * (logvar2 - logvar1 + (logvar1 - logvar2).exp() - 1 + (mean1 - mean2) ** 2 * (-logvar2).exp())


def discretised_log_likelihood(x0: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Log-probability of each pixel's bin under N(mean, var), in nats; the outermost bins extend to infinity.

    Pixels are k / 127.5 - 1, k = 0 .. 255, their bins 2 / 255 wide.
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 13; with the exact normal CDF, in log space.
    """
    std = (0.5 * logvar).exp()
    sign = torch.where(x0 < mean, 1.0, -1.0)  # mirror to the left tail, where log_ndtr is accurate
    centre = sign * (x0 - mean)
    far = math.inf
    left = torch.where(sign * x0 < -1 + BIN, -far, (centre - BIN) / std)
    right = torch.where(sign * x0 > 1 - BIN, far, (centre + BIN) / std)
    above, below = torch.special.log_ndtr(right), torch.special.log_ndtr(left)
    return above + (-torch.expm1(below - above)).clamp(min=1e-12).log()


def term(pred: Prediction, x0: Tensor, s: Level, t: Level, up: Level, variance: Variance = "learned") -> Tensor:
    """L_t of each image (B,) in bits per dimension: KL(q(x_s | x_t, x_0) | p(x_s | x_t)), or -log p(x_0 | x_t).

        p(x_s | x_t) = N(mean, var),    mean_q - mean_p = alpha_s Var[x_t | x_s] / sigma_t^2 (x_0 - x_0_hat)

    Where s is clean, p is discretised to pixel values and Var[x_s | x_t, x_0], which is 0, is replaced by
    Var[x_t | x_up, x_0] of the next level, as in the papers' code. They also replace Var[x_t | x_s], which is
    unnecessary.
    Source: Ho et al. 2020, arXiv:2006.11239, eq. 5-8, 13; Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 4-7, 15.

    Args:
        s, t, up: three consecutive levels of the chain, () or (B,) float64, s the least noisy.
        variance: of p: Var[x_s | x_t, x_0], Var[x_t | x_s], or the network's interpolation between them.
    Raises:
        ValueError: variance is "learned", but the network outputs none.
    """
    clean = broadcast(s.sigma == 0, x0) > 0
    high = forward_var(s, t)
    low = torch.where(s.sigma == 0, posterior_var(t, up), posterior_var(s, t))
    gain = broadcast(s.alpha * high / t.sigma**2, x0)
    if variance == "large":
        var = broadcast(high, x0)
    elif variance == "small":
        var = broadcast(low, x0)
    elif pred.var is None:
        raise ValueError(
            "a learned variance needs a network that outputs one (2C channels): train with "
            "--model.net.learn_variance true --model.objective.vlb 0.001, or choose the variance small or large"
        )
    else:
        var = learned_var(pred.var, broadcast(low, x0), broadcast(high, x0))
    logvar = var.log()
    step = kl(gain * x0, broadcast(low, x0).log(), gain * pred.x0, logvar)
    # Both branches must be finite: torch.where propagates NaN gradients from the unselected one.
    end = -discretised_log_likelihood(x0, pred.x0, logvar)
    return torch.where(clean, end, step).flatten(1).mean(1) / math.log(2)


def neighbours(schedule: Schedule, t: Tensor) -> tuple[Level, Level]:
    """The levels one step below and above times t (B,) of the training chain of T or 1000 steps."""
    n = schedule.T or 1000
    below = t - 1 / n
    s, clean = schedule.level(below.clamp(min=0.5 / n)), schedule.clean()
    s = Level(*(torch.where(below < 0.5 / n, c, v) for c, v in zip(clean, s, strict=True)))
    return s, schedule.level((t + 1 / n).clamp(max=1.0))


def prior(x0: Tensor, schedule: Schedule) -> Tensor:
    """L_T of each image (B,) in bits per dimension: KL(q(x_1 | x_0) | N(0, prior_std^2))."""
    end = schedule.level(torch.ones((), dtype=torch.float64))
    zero = torch.zeros_like(x0)
    logvar = 2 * end.sigma.log(), 2 * torch.tensor(schedule.prior_std, dtype=torch.float64).log()
    return kl(end.alpha * x0, logvar[0], zero, logvar[1]).flatten(1).mean(1) / math.log(2)


@torch.no_grad()
def terms(
    denoise: Denoise,
    x0: Tensor,
    schedule: Schedule,
    steps: int | None = None,
    variance: Variance = "small",
    grid: Grid = "trailing",
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Iterator[Tensor]:
    """L_0, L_1, ..., L_T of images x0 (B, C, H, W), yielded one by one, each (B,); their sum bounds -log2 p(x0) / D.

    Args:
        steps: length of the chain, >= 2; by default all T (1000 for a continuous schedule), fewer respace it.
    Raises:
        ValueError: steps < 2.
    """
    steps = steps or schedule.T or 1000
    if steps < 2:
        raise ValueError(f"vlb: steps must be at least 2, got {steps}")
    chain = [schedule.clean(), *(schedule.level(t) for t in times(grid, schedule, steps).flip(0))]
    for k in range(1, steps + 1):
        s, t, up = chain[k - 1], chain[k], chain[min(k + 1, steps)]
        yield term(denoise(t.alpha * x0 + t.sigma * noise(x0), t), x0, s, t, up, variance)
    yield prior(x0, schedule)
