"""Measurements of a schedule: falling SNR, invertible times, and f and g^2 that match the slopes of its scales."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser.targets import Target
from diffusion.noise.discrete import SNAP
from diffusion.noise.level import Level
from diffusion.noise.schedule import NO_SIGNAL, Schedule
from diffusion.support.specs import concrete

STEP = 1e-6  # of the central differences
EXACT = 1e-6  # relative
SLOPE = 1e-4  # relative, of a derivative
PRIOR = 0.05  # relative tolerance of prior_std, for images of mean square 1/4


class Facts(NamedTuple):
    """The measurements of one schedule.

    Attributes:
        noisy, clean: log-SNR at t = 1 and at t_min.
        time: largest |time(log_snr(t)) - t|.
        f, g2: largest relative error against central differences of alpha and sigma.
        targets: largest relative error of x_0 recovered from a target.
        prior: relative error of prior_std.
        problem: description of a fault, or "".
    """

    schedule: str
    noisy: float
    clean: float
    time: float = 0.0
    f: float = 0.0
    g2: float = 0.0
    targets: float = 0.0
    prior: float = 0.0
    problem: str = ""


def check_schedule(schedule: Schedule) -> Facts:
    """The facts of a schedule, measured without a sampler."""
    name = type(schedule).__name__
    try:
        t = torch.linspace(schedule.t_min, 1, 997, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # schedules with remaining signal warn; here it is a figure
            level = schedule.level(t)
        facts = Facts(name, float(level.log_snr[-1]), float(level.log_snr[0]))
        if not (all(bool(v.isfinite().all()) for v in level) and bool((level.sigma > 0).all())):
            return facts._replace(problem="alpha and sigma must be finite and sigma positive for t in [t_min, 1]")
        rises = ~(level.log_snr.diff() < 0) & (level.alpha[1:] > 0)  # without signal, SNR stays 0
        if rises.any():
            return facts._replace(problem=f"SNR does not fall at t = {float(t[:-1][rises][0]):.3g}")
        inner = t[level.alpha > 0]
        f, g2 = slopes(schedule)
        spread = (level.alpha[-1] ** 2 / 4 + level.sigma[-1] ** 2).sqrt()
        facts = facts._replace(
            time=float((schedule.time(schedule.level(inner).log_snr) - inner).abs().max()),
            f=f,
            g2=g2,
            targets=max(round_trip(kind(), level) for kind in concrete(Target)),
            prior=float(schedule.prior_std / spread - 1),
        )
    except Exception as failure:  # user-defined classes may raise anything; their row reports it
        facts = Facts(name, torch.nan, torch.nan)
        return facts._replace(problem=f"{type(failure).__name__}: {failure}".splitlines()[0])
    return facts._replace(problem=fault(schedule, facts))


def fault(schedule: Schedule, facts: Facts) -> str:
    """The faults of a schedule with falling SNR, or ""."""
    found = 1.1 * SNAP / schedule.T if schedule.T else EXACT  # discrete times this near to a level snap to it
    alpha = float(schedule.scales(torch.ones(1, dtype=torch.float64))[0])
    almost = f"; alpha at t = 1 is {alpha:.2g}, make it exactly 0" if 0 < alpha < NO_SIGNAL else ""
    wrong = {
        f"time(log_snr(t)) misses t by {facts.time:.2g}": facts.time > found,
        f"sde: f differs by {facts.f:.2g} from the slope of log alpha (relative)": not facts.f < SLOPE,
        f"sde: g^2 differs by {facts.g2:.2g} from (sigma^2)' - 2 f sigma^2 (relative)": not facts.g2 < SLOPE,
        f"targets: x_0 is recovered with error {facts.targets:.2g}{almost}": not facts.targets < EXACT,
        f"prior_std {schedule.prior_std:g} differs by {facts.prior:+.0%} from the std of x at t = 1": abs(facts.prior)
        > PRIOR,
    }
    return "; ".join(text for text, is_so in wrong.items() if is_so)


def slopes(schedule: Schedule) -> tuple[float, float]:
    """Largest relative error of f = (log alpha)' and g^2 = (sigma^2)' - 2 f sigma^2 against central differences.

    Measured midway between the entries of a discrete schedule, where log-SNR has no kink.
    """
    t = torch.linspace(max(schedule.t_min, 0.02), 0.98, 97, dtype=torch.float64)
    if schedule.T:
        t = ((t * schedule.T).floor().clamp(1, max(1, schedule.T - 2)) + 0.5) / schedule.T
    (a0, s0), (a1, s1) = schedule.scales(t - STEP), schedule.scales(t + STEP)
    f = (a1.log() - a0.log()) / (2 * STEP)
    g2 = (s1**2 - s0**2) / (2 * STEP) - 2 * f * schedule.scales(t)[1] ** 2
    return tuple(_relative(ours, right) for ours, right in zip(schedule.sde(t), (f, g2), strict=True))


def round_trip(target: Target, level: Level) -> float:
    """Largest relative error of x_0 recovered from a perfect network's output, at levels (N,)."""
    if target.needs_signal:
        level = Level(*(v[level.alpha > 0] for v in level))
    x0 = torch.linspace(-1, 1, len(level.t), dtype=torch.float64)
    eps = 2 * torch.cos(100 * x0)
    x = level.alpha * x0 + level.sigma * eps
    return _relative(target.x0(x, target.of(x0, eps, level), level), x0)


def _relative(ours: Tensor, right: Tensor) -> float:
    return float(((ours - right).abs() / (1 + right.abs())).max())
