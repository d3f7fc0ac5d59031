"""Walks with exact answers: a section of a schedule between exact states, and whole walks to the clean level."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.bench.analytic import CLEAN, Gaussian, Map, Mixture, Quantiles
from diffusion.denoiser import Denoise, Prediction
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.samplers.base import Noise, Sampler
from diffusion.samplers.steps import Past

GAUSSIAN = Gaussian(0.3, 0.4)
FLOW_MAP = Map(GAUSSIAN)
# Orders are measured on two modes: on Gaussian data the ODE is linear, and some methods' error terms cancel
# (DEIS of order 3 shows 4, DPMSolver of order 2 shows 2.3 to 2.5).
MODES = Mixture([-0.5, 0.5], 0.25)
SECTION = (-4.0, 4.0)  # log-SNR, sigma / alpha from 7.4 to 0.14: both terms of every step matter here


# --- a section of the schedule, between exact states -----------------------------------------------------


@lru_cache(maxsize=256)
def section(schedule: Schedule, n: int) -> list[Level]:
    """n levels of the schedule in SECTION; log-SNR steps alternate 5 : 3, as uneven as rounded times."""
    ends = schedule.level(torch.tensor([1.0, schedule.t_min], dtype=torch.float64)).log_snr.tolist()
    noisy, clean = max(SECTION[0], ends[0]), min(SECTION[1], ends[1])
    k = torch.arange(n, dtype=torch.float64)
    k = k + 0.25 * (k % 2)
    t = schedule.time(noisy + (clean - noisy) * k / k[-1])
    return [Level(*v) for v in zip(*schedule.level(t), strict=True)]


@lru_cache(maxsize=256)
def problem(schedule: Schedule, n: int, data: Quantiles) -> tuple[list[tuple[Level, Prediction]], Tensor, Tensor]:
    """For nine quantiles: predictions on the exact path at the first three levels, and states at the fourth and last.

    Without an exact past, the lower-order first steps of multistep methods would dominate the error.
    """
    z, levels = quantiles(), section(schedule, n)
    past = [(t, data(data.at(z, t), t)) for t in levels[:3]]
    return past, data.at(z, levels[3]), data.at(z, levels[-1])


def quantiles() -> Tensor:
    """Nine points from -2 to 2 standard deviations (9, 1, 1, 1), float64."""
    return torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)


def error(sampler: Sampler, schedule: Schedule, data: Quantiles = MODES) -> float:
    """Mean distance to the exact flow after a section of `sampler.steps` levels."""
    past, x, exact = problem(schedule, sampler.steps, data)
    return float((walk(sampler, section(schedule, sampler.steps)[3:], data, x, past) - exact).abs().mean())


def bias(sampler: Sampler, schedule: Schedule) -> float:
    """The larger bias of mean and std after a section of `sampler.steps` levels, in units of the exact std."""
    levels = section(schedule, sampler.steps)
    (m, s), (mean, std) = moments(levels[0]), moments(levels[-1])
    denoise = FLOW_MAP if sampler.maps else GAUSSIAN
    end = law(lambda x, noise: walk(sampler, levels, denoise, x, (), noise), m, s)
    return max(abs(end.mean - mean), abs(end.std - std)) / std


def walk(
    sampler: Sampler,
    levels: Sequence[Level],
    denoise: Denoise,
    x: Tensor,
    past: Sequence[tuple[Level, Prediction]] = (),
    noise: Noise = torch.randn_like,
) -> Tensor:
    """x after the sampler's steps from level to level."""
    memory: Past = deque(past, maxlen=3)
    for t, s in zip(levels[:-1], levels[1:], strict=True):
        x, pred = sampler.step(denoise, x, t, s, memory, noise)
        memory.append((t, pred))
    return x


# --- whole walks, on the sampler's own grid --------------------------------------------------------------


class Law(NamedTuple):
    """The exact mean and standard deviation of a walk's end, and the number of noise draws."""

    mean: float
    std: float
    draws: int


class Walk(NamedTuple):
    """The end of a whole walk, compared with the data.

    Attributes:
        random: whether it draws noise.
        error: mean distance to the exact map, in units of the data's mean absolute deviation; for a random walk, the
            larger bias of mean and std, in units of the std. The two agree where only the spread is wrong.
        excess: the error in excess of the last step's share.
        last: the spread lost in the last step, as a fraction of the data's.
        mean, std: the biases.
    """

    random: bool
    error: float
    excess: float
    last: float
    mean: float = 0.0
    std: float = 0.0


def whole_walk(sampler: Sampler, schedule: Schedule) -> Walk:
    """A walk by `iterate` from the exact distribution at t = 1 to the clean level.

    Nearly every sampler ends with E[x_0 | x_t], which has less spread than x_0: with few steps the last t is large.
    """
    start, levels = schedule.level(torch.ones((), dtype=torch.float64)), []
    denoise = FLOW_MAP if sampler.maps else GAUSSIAN

    def run(x: Tensor, noise: Noise) -> Tensor:
        levels[:] = [start]
        for frame in sampler.iterate(denoise, x, schedule, noise):
            levels.append(frame.t)
        return frame.x

    z, (mean, std) = quantiles(), moments(CLEAN)
    (end, draws), exact = counted(run, GAUSSIAN.at(z, start)), GAUSSIAN.at(z, CLEAN)
    guess = GAUSSIAN(GAUSSIAN.at(z, levels[-2]), levels[-2]).x0
    last = 1 - float((guess[-1] - guess[0]) / (exact[-1] - exact[0]))
    if not draws:
        away = [float((end - goal).abs().mean() / (exact - mean).abs().mean()) for goal in (exact, guess)]
        return Walk(False, away[0], min(away), last)
    m, s, _ = law(run, *moments(start), (end[len(end) // 2], draws))
    means, stds = (m - mean) / std, s / std - 1
    return Walk(True, max(abs(means), abs(stds)), max(abs(means), min(abs(stds), abs(stds + last))), last, means, stds)


def counted(walk: Callable[[Tensor, Noise], Tensor], x: Tensor) -> tuple[Tensor, int]:
    """The end of a walk with zero noise, and its number of noise draws."""
    draws = 0

    def count(x: Tensor) -> Tensor:
        nonlocal draws
        draws += 1
        return torch.zeros_like(x)

    return walk(x, count), draws


def law(
    walk: Callable[[Tensor, Noise], Tensor], mean: float, std: float, silent: tuple[Tensor, int] | None = None
) -> Law:
    """The exact distribution of walk(x, noise) for x ~ N(mean, std^2), one pixel, and standard normal noise.

    On Gaussian data every step, and so the whole walk, is affine in x and in each draw. One batch determines all
    coefficients: image 0 starts at the mean with no noise, image 1 starts one std away, image k + 1 gets noise 1 at
    the k-th draw and 0 elsewhere. The last image mixes all inputs and must be the sum of the responses.

    Args:
        silent: the result of `counted` for a walk from the mean, if known.
    Raises:
        ValueError: the walk is not finite, or not affine: it mixes images, draws its own noise, or clips.
    """
    alone, draws = silent or counted(walk, torch.full((1, 1, 1, 1), mean, dtype=torch.float64))
    given = torch.zeros(draws + 3, draws + 1, dtype=torch.float64)  # images x (start, draw 1, draw 2, ...)
    given[1:-1].fill_diagonal_(1)
    given[-1] = 2 * torch.arange(1, draws + 2).cos()
    columns = iter(given.T.reshape(draws + 1, draws + 3, 1, 1, 1))
    end = walk(mean + std * next(columns), lambda x: next(columns)).flatten()
    if not end.isfinite().all():
        raise ValueError("the walk is not finite")
    response = end[1:-1] - end[0]
    found, wanted = torch.stack([end[0], end[-1]]), torch.stack([alone.flatten()[0], end[0] + response @ given[-1]])
    if not torch.allclose(found, wanted, rtol=1e-6, atol=1e-9):
        raise ValueError("not affine on Gaussian data: it mixes the images of a batch, draws its own noise, or clips")
    return Law(float(end[0]), float(response.norm()), draws)


def moments(t: Level) -> tuple[float, float]:
    """Mean and standard deviation of the Gaussian data at a level."""
    low, high = GAUSSIAN.at(torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1), t).flatten().tolist()
    return low, high - low
