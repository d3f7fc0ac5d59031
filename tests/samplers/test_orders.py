"""Orders of convergence, against exact maps and exact distributions."""

import math

import pytest
import torch

from diffusion.bench import bias, error, settings, whole_walk
from diffusion.bench.analytic import CLEAN, Gaussian
from diffusion.noise import VE, VP, Flow, Linear
from diffusion.samplers import (
    DDIM,
    DDPM,
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
    ProbabilityFlow,
    Sampler,
    UniPC,
)
from diffusion.support.specs import concrete

DATA = Gaussian(0.3, 0.4)
KINDS = sorted(concrete(Sampler, "diffusion"), key=lambda k: k.__name__)
CASES = [(kind, options) for kind in KINDS for options in settings(kind)]  # new samplers are included automatically


def describe(value):
    if isinstance(value, Sampler):
        return "-".join([type(value).__name__, *map(str, vars(value).values())])
    return value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize("schedule", [VE(), VP(), Flow()], ids=["VE", "VP", "Flow"])
@pytest.mark.parametrize("kind, options", [c for c in CASES if c[0](**c[1]).convergence], ids=describe)
def test_deterministic_samplers_have_their_declared_order(kind, options, schedule):
    """On a mixture of two Gaussians, over a section of uneven steps with exact past; see diffusion/bench."""
    few, many = (error(kind(n, **options), schedule) for n in (48, 144))
    slope = math.log(few / many) / math.log(3)
    assert slope == pytest.approx(kind(**options).convergence, abs=0.2), (few, many)


@pytest.mark.parametrize("sampler, order", [
    (DDIM(), 1), (DDIM(eta=0.5), None), (DDIM(eta=1), None), (DDPM(), None), (Euler(), 1), (Heun(), 2),
    (Heun(churn=1), None), (DPM2(), 2), (EulerAncestral(), None), (EulerAncestral(eta=0), 1), (EulerMaruyama(), None),
    (PredictorCorrector(), None), (AnnealedLangevin(), None), (ProbabilityFlow(), None),
    *[(DPMSolver(order=k), k) for k in (1, 2, 3)], (DPMSolver(sde=True), None),
    *[(DPMSolverSingle(order=k), k) for k in (2, 3)],
    *[(UniPC(order=k), k + 1) for k in (1, 2, 3)],  # the corrector adds one
    *[(DEIS(order=k), k) for k in (1, 2, 3, 4)],
], ids=describe)  # fmt: skip
def test_samplers_declare_their_theoretical_order(sampler, order):
    """From the papers: the measured orders are compared with the declared ones, so these are fixed here."""
    assert sampler.convergence == order


@pytest.mark.parametrize("schedule", [VE(), VP()], ids=["VE", "VP"])
@pytest.mark.parametrize("kind, options, order", [
    (DDIM, {"eta": 1}, 1), (DDIM, {"eta": 0.5}, 1), (DDPM, {}, 1), (DDPM, {"variance": "large"}, 1),
    (EulerAncestral, {}, 1), (EulerMaruyama, {}, 1), (DPMSolver, {"order": 1, "sde": True}, 1),
    (DPMSolver, {"order": 3, "sde": True}, 2), (Heun, {"churn": 5}, 2),
], ids=describe)  # fmt: skip
def test_weak_order_of_random_walks(kind, options, order, schedule):
    """The exact bias of mean and std: first order for Euler-type methods, second where half a step is undone."""
    with torch.no_grad():
        biases = [bias(kind(n, **options), schedule) for n in (40, 160)]
    assert math.log(biases[0] / biases[1]) / math.log(4) == pytest.approx(order, abs=0.15), biases


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_order_over_a_whole_walk(order):
    """The whole walk, with lower orders at both ends: the error is mostly that of the first and the last step."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    schedule = VP()
    x = DPMSolver(100, order).sample(DATA, DATA.at(z, schedule.level(torch.ones(()).double())), schedule)
    assert float((x - DATA.at(z, CLEAN)).abs().mean()) < {1: 0.02, 2: 0.001, 3: 0.006}[order]


STOCHASTIC = [
    EulerAncestral(300), EulerAncestral(300, eta=0.5), EulerMaruyama(500), PredictorCorrector(300),
    PredictorCorrector(100, corrections=3), AnnealedLangevin(300, epsilon=0.5), DPMSolver(500, order=1, sde=True),
    DPMSolver(100, sde=True), DPMSolver(100, order=3, sde=True), Heun(60, churn=15), Heun(60, churn=30, churn_max=1.0),
]  # fmt: skip


@pytest.mark.parametrize("schedule", [VP(), VE(), Linear()], ids=["VP", "VE", "Linear"])
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=describe)
def test_random_walks_reach_mean_and_std(sampler, schedule):
    """The exact distribution of the whole walk: within 4 % of the data's standard deviation in both."""
    with torch.no_grad():
        walk = whole_walk(sampler, schedule)
    assert walk.random
    assert walk.mean == pytest.approx(0, abs=0.04) and walk.std == pytest.approx(0, abs=0.04)


def test_euler_is_ddim_and_ancestral_is_ddim_with_noise():
    def walk(sampler, schedule):
        torch.manual_seed(3)
        return sampler.sample(DATA, torch.randn(50, 1, 1, 1).double(), schedule)

    for schedule in (Linear(), VP()):
        for ours, ddim in ((Euler(20), DDIM(20)), (EulerAncestral(20, 0.7), DDIM(20, 0.7))):
            torch.testing.assert_close(walk(ours, schedule), walk(ddim, schedule), rtol=1e-10, atol=1e-10)


def test_off_grid_levels_are_evaluated_at_the_time_of_their_log_snr():
    """The network receives the time of the log-SNR of DPM2's midpoint, and x at the schedule's scale."""
    schedule, heard = VP(), []

    def denoise(x, t):
        heard.append(t)
        return DATA(x, t)

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
def test_solvers_reject_invalid_settings(bad):
    with pytest.raises(ValueError):
        bad()
