"""Measurements of flow maps on a schedule: the exact map, the target, the bias of a chain, and `Objective`."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.bench.analytic import CLEAN, Analytic, Gaussian, Map, Mixture
from diffusion.denoiser import Condition, Prediction, predict
from diffusion.denoiser.targets import X0
from diffusion.loss.flow_map import FlowMap, second_leg
from diffusion.loss.intervals import Whole, levels
from diffusion.loss.objective import Objective
from diffusion.loss.paths import FromData, Path
from diffusion.loss.weights import Unit
from diffusion.noise.draws import StepDraws
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.noise.times import Times, Uniform
from diffusion.samplers import DDIM

STD = 0.5  # of the data of chains
CHAIN = (4, 8, 16, 32)  # levels
MIXTURE = Mixture([-0.6, 0.5], 0.2, [1.0, 2.0])
EXACT = 1e-6  # relative


class Facts(NamedTuple):
    """The measurements of flow maps on one schedule.

    Attributes:
        oracle: largest error of 1, 2 and 7 steps of the exact map against the probability flow, relative to |x|.
        target: largest error of x_0* against (sigma_t X_r - sigma_r x_t) / (alpha_r sigma_t - alpha_t sigma_r).
        chains: what a linear network learns over CHAIN levels, as a share of the exact map.
        bias: largest difference of `chains` from the product of cosines, relative.
        same: whether the loss with r = s is that of `Objective`, to the bit.
        problem: description of a fault, or "".
    """

    schedule: str
    oracle: float = 0.0
    target: float = 0.0
    chains: tuple[float, ...] = ()
    bias: float = 0.0
    same: bool = True
    problem: str = ""


class Oracle:
    """The exact denoiser of known data, or its exact flow map, with the attributes that an objective reads."""

    second_clock, self_condition, conditional, target = True, False, False, X0()

    def __init__(self, data: Analytic, schedule: Schedule, exact: bool = True) -> None:
        self.data, self.schedule, self.exact = data, schedule, exact

    def __call__(self, x: Tensor, t: Level, cond: Condition = Condition(), to: Level | None = None) -> Prediction:
        return Map(self.data)(x, t.until(to)) if to is not None and self.exact else Map(self.data)(x, t)


class At:
    """One time for all images; like `To` and `Between` no subclass, so that nobody finds it as a choice."""

    correction = Times.correction

    def __init__(self, t: float) -> None:
        self.t = t

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        return torch.full_like(u, self.t)


class To:
    """One end for all images."""

    second_clock = True

    def __init__(self, r: float) -> None:
        self.r = r

    def __call__(self, t: Tensor, uniform) -> Tensor:
        return torch.full_like(t, self.r)


class Between:
    """One level s for all images."""

    def __init__(self, s: float) -> None:
        self.s = s

    def __call__(self, t: Level, r: Level, schedule: Schedule, progress: float) -> Tensor:
        return torch.full_like(t.t, self.s)


class Gains(Oracle):
    """A linear network with one number per level: x_0_hat = gain(t) x, exact data at t = 0."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(Gaussian(0.0, STD), schedule)
        self.gains: dict[float, float] = {}

    def __call__(self, x: Tensor, t: Level, cond: Condition = Condition(), to: Level | None = None) -> Prediction:
        return predict(x, self.gains[key(t)] * x, t.like(x))


def key(t: Level) -> float:
    """A level as a key, beyond the rounding of its time."""
    return round(float(t.t.flatten()[0]), 9)


def corners(std: float = STD, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    """Four images of one pixel, and their noise, with the exact means and second moments of N(mean, std^2) and N(0, 1).

    Expectations of quadratic forms over them are exact.
    """
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    x0, eps = signs.T.reshape(2, 4, 1, 1, 1)
    return mean + std * x0, eps


def goals(objective: FlowMap, denoiser: Oracle, x0: Tensor, eps: Tensor, r: float) -> tuple[Tensor, Tensor]:
    """The targets x_0* of a batch, and x_t."""
    batch = objective.noised(denoiser, x0, Condition(), lambda x: eps, StepDraws(0, 0, 0).uniform)
    s = levels(objective.gap(batch.level, batch.level, denoiser.schedule, 0.0), denoiser.schedule)
    return objective.goal(denoiser, batch, s, levels(torch.full_like(s.t, r), denoiser.schedule)), batch.x


def chain(schedule: Schedule, n: int, path: Path = FromData()) -> float:
    """The share of the exact map that a linear network learns over n even levels from t = 1, by normal equations.

    x_0_hat = gain(t) x is solved level by level, from the cleanest, with the target of `FlowMap`; its gain at t = 1 is
    divided by that of the exact map, sqrt(v_0 / v_1), v_t = alpha_t^2 std^2 + sigma_t^2.
    """
    live, (x0, eps) = Gains(schedule), corners()
    times = [k / n for k in range(n + 1)]
    for below, above in zip(times, times[1:], strict=False):
        objective = FlowMap(At(above), To(0.0), Between(below), path)
        goal, x = goals(objective, live, x0, eps, 0.0)
        live.gains[key(levels(torch.tensor([above], dtype=torch.float64), schedule))] = float(
            (goal * x).sum() / x.square().sum()
        )
    top = schedule.level(torch.ones((), dtype=torch.float64))
    return live.gains[1.0] * float((top.alpha**2 * STD**2 + top.sigma**2).sqrt()) / STD


def cosines(schedule: Schedule, n: int) -> float:
    """The product of cos(theta_i - theta_(i+1)) over n even levels from t = 1, theta = atan2(sigma, alpha std)."""
    t = levels(torch.linspace(0, 1, n + 1, dtype=torch.float64), schedule)
    theta = torch.atan2(t.sigma, t.alpha * STD)
    return float(theta.diff().cos().prod())


def oracle_error(schedule: Schedule) -> float:
    """The error of 1, 2 and 7 steps of DDIM that tells the exact map of the mixture its end, relative to |x|."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    start = schedule.level(torch.ones((), dtype=torch.float64))
    x, exact = MIXTURE.at(z, start), MIXTURE.at(z, CLEAN)
    ends = (DDIM(steps).sample(Map(MIXTURE), x, schedule) for steps in (1, 2, 7))
    return max(float((end - exact).abs().max()) for end in ends) / float(1 + x.abs().max())


def target_error(schedule: Schedule) -> float:
    """The error of x_0* as the image whose step from x_t ends where both legs end, at three triples of levels."""
    low = max(schedule.t_min, 0.05)
    t, s, r = (
        levels(torch.tensor(v, dtype=torch.float64), schedule)
        for v in ([0.9, 0.9, 0.9], [0.6, 0.5, 0.7], [low, 0.0, 0.3])
    )
    x0, eps, onward = torch.tensor([[0.5, -0.3, 0.9], [1.0, -1.5, 0.4], [0.2, 0.1, -0.7]], dtype=torch.float64)
    x_t, x_s = t.alpha * x0 + t.sigma * eps, s.alpha * x0 + s.sigma * eps
    X = r.alpha * onward + r.sigma * (x_s - s.alpha * onward) / s.sigma
    right = (t.sigma * X - r.sigma * x_t) / (r.alpha * t.sigma - t.alpha * r.sigma)
    c = second_leg(t, s, r)
    return float((((1 - c) * x0 + c * onward - right).abs() / (1 + right.abs())).max())


def is_objective(schedule: Schedule) -> bool:
    """Whether the loss of a map without a second leg is that of `Objective`, with the same draws, to the bit."""
    denoiser, x0 = Oracle(MIXTURE, schedule, exact=False), torch.linspace(-1, 1, 32).double().reshape(8, 1, 2, 2)
    pair = Objective(weight=Unit()), FlowMap(Uniform(), gap=Whole(), shape="distance", weight=Unit())
    one, other = (
        objective(denoiser, x0, noise=draws.normal, uniform=draws.uniform)
        for objective, draws in zip(pair, (StepDraws(3, 5, 0), StepDraws(3, 5, 0)), strict=True)
    )
    return torch.equal(one.loss, other.loss) and torch.equal(one.mse, other.mse)


def check_flow_maps(schedule: Schedule) -> Facts:
    """The facts of flow maps on a schedule."""
    name = type(schedule).__name__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = tuple(chain(schedule, n) for n in CHAIN)
            right = [cosines(schedule, n) for n in CHAIN]
            bias = max(abs(a / b - 1) for a, b in zip(found, right, strict=True))
            facts = Facts(name, oracle_error(schedule), target_error(schedule), found, bias, is_objective(schedule))
    except Exception as failure:  # user-defined classes may raise anything; their row reports it
        return Facts(name, math.nan, problem=f"{type(failure).__name__}: {failure}".splitlines()[0])
    wrong = {
        f"the exact map misses the probability flow by {facts.oracle:.2g}": not facts.oracle < EXACT,
        f"x_0* differs by {facts.target:.2g} from the image whose step ends where both legs end": not facts.target
        < EXACT,
        f"a chain of levels differs by {facts.bias:.2g} from the product of cosines": not facts.bias < EXACT,
        "the loss without a second leg is not that of Objective": not facts.same,
    }
    return facts._replace(problem="; ".join(text for text, is_so in wrong.items() if is_so))
