"""How fast the error falls with the number of steps, against the exact map of Gaussian data."""

import math
from collections import deque

import pytest
import torch

from diffusion.denoiser import predict
from diffusion.noise import VE, VP, Linear
from diffusion.samplers import (
    DDIM,
    DEIS,
    DPM2,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverSingle,
    Euler,
    EulerAncestral,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    UniPC,
)

MEAN, STD = 0.3, 0.4


def gaussian(x, t):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2)."""
    gain = t.alpha * STD**2 / (t.alpha**2 * STD**2 + t.sigma**2)
    return predict(x, MEAN + gain * (x - t.alpha * MEAN), t)


def at(z, t):
    """Where the probability flow has the quantiles z at level t."""
    return t.alpha * MEAN + (t.alpha**2 * STD**2 + t.sigma**2).sqrt() * z


class PartVP(VP):
    """VP between times 0.4 and 1, where equal steps in time are small ones in log-SNR."""

    def scales(self, t):
        return super().scales(0.4 + 0.6 * t)


def error(sampler, schedule):
    """At the last noisy level (the step after it is of first order for all), from exact first steps: multistep
    methods start with lower orders, which would be all one sees in the end."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    levels = [schedule.level(t) for t in torch.linspace(1, 0, sampler.steps, dtype=torch.float64)]
    past = deque([(t, gaussian(at(z, t), t)) for t in levels[:3]], maxlen=3)
    x = at(z, levels[3])
    for t, s in zip(levels[3:-1], levels[4:], strict=True):
        x, pred = sampler.step(gaussian, x, t, s, past, torch.randn_like)
        past.append((t, pred))
    return float((x - at(z, levels[-1])).abs().mean())


ORDERS = [
    (DDIM, {}, 1), (Euler, {}, 1), (Heun, {}, 2), (DPM2, {}, 2),
    (DPMSolver, {"order": 1}, 1), (DPMSolver, {"order": 2}, 2), (DPMSolver, {"order": 3}, 3),
    (DPMSolverSingle, {"order": 2}, 2), (DPMSolverSingle, {"order": 3}, 3),
    (UniPC, {"order": 1}, 2), (UniPC, {"order": 2}, 3), (UniPC, {"order": 3}, 4),  # the corrector adds one
    (DEIS, {"order": 1}, 1), (DEIS, {"order": 2}, 2), (DEIS, {"order": 3}, 3), (DEIS, {"order": 4}, 4),
]  # fmt: skip


@pytest.mark.parametrize("schedule", [VE(0.05, 5.0), PartVP()], ids=["VE", "VP"])
@pytest.mark.parametrize("kind, options, order", ORDERS)
def test_order(kind, options, order, schedule):
    few, many = (error(kind(n, **options), schedule) for n in (64, 256))
    slope = math.log(few / many) / math.log(4)
    assert slope == pytest.approx(order, abs=0.35), (few, many)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_starts_from_nothing(order):
    """The whole walk, with its lower orders at both ends: what is left is mostly the first and the last step."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    schedule = VP()
    x = DPMSolver(100, order).sample(gaussian, at(z, schedule.level(torch.ones(()).double())), schedule)
    assert float((x - (MEAN + STD * z)).abs().mean()) < {1: 0.02, 2: 0.001, 3: 0.006}[order]


STOCHASTIC = [
    EulerAncestral(300), EulerAncestral(300, eta=0.5), EulerMaruyama(500), PredictorCorrector(300),
    PredictorCorrector(100, corrections=3), AnnealedLangevin(300, epsilon=0.5), DPMSolver(500, order=1, sde=True),
    DPMSolver(100, sde=True), DPMSolver(100, order=3, sde=True), Heun(60, churn=15), Heun(60, churn=30, churn_max=1.0),
]  # fmt: skip


def describe(sampler):
    return "-".join([type(sampler).__name__, *map(str, vars(sampler).values())])


@pytest.mark.parametrize("schedule", [VP(), VE(), Linear()], ids=["VP", "VE", "Linear"])
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=describe)
def test_random_walks_reach_mean_and_std(sampler, schedule):
    torch.manual_seed(0)
    x = sampler.sample(gaussian, schedule.prior_std * torch.randn(5000, 1, 1, 1).double(), schedule)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.025)
    assert float(x.std()) == pytest.approx(STD, rel=0.05)


def test_euler_is_ddim_and_ancestral_is_ddim_with_noise():
    def walk(sampler, schedule):
        torch.manual_seed(3)
        return sampler.sample(gaussian, torch.randn(50, 1, 1, 1).double(), schedule)

    for schedule in (Linear(), VP()):
        for ours, ddim in ((Euler(20), DDIM(20)), (EulerAncestral(20, 0.7), DDIM(20, 0.7))):
            torch.testing.assert_close(walk(ours, schedule), walk(ddim, schedule), rtol=1e-10, atol=1e-10)


def test_a_level_off_the_grid_is_asked_at_its_own_time():
    """The network hears the time that belongs to the log-SNR of DPM2's middle, and x at the schedule's scale."""
    schedule, heard = VP(), []

    def denoise(x, t):
        heard.append(t)
        return gaussian(x, t)

    DPM2(4).sample(denoise, torch.randn(3, 1, 1, 1).double(), schedule)
    assert len(heard) == 2 * 4 - 1
    for t in heard:
        torch.testing.assert_close(torch.stack(schedule.scales(t.t)), torch.stack([t.alpha, t.sigma]))
    a, m, b = heard[:3]
    assert float(m.log_snr) == pytest.approx(float(a.log_snr + b.log_snr) / 2)


@pytest.mark.parametrize(
    "bad",
    [lambda: EulerAncestral(eta=2), lambda: Heun(churn=-1), lambda: DPMSolver(order=4), lambda: UniPC(order=4),
     lambda: DPMSolverSingle(order=1), lambda: DEIS(order=5), lambda: PredictorCorrector(snr=0),
     lambda: AnnealedLangevin(inner=0),
     lambda: PredictorCorrector(corrections=-1), lambda: AnnealedLangevin(epsilon=3), lambda: Euler(0)],
)  # fmt: skip
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError):
        bad()
