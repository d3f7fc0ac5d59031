"""The bench: correct figures where they are known by hand, and detection of deliberate faults."""

import math
import re

import pytest
import torch

from diffusion.bench import bias, check_sampler, check_schedule, law, make, settings, whole_walk
from diffusion.bench.walks import GAUSSIAN, SECTION, section
from diffusion.noise import VE, VP, Cosine, Flow, Linear, Schedule, posterior_var
from diffusion.noise.discrete import Discrete
from diffusion.samplers import DDIM, Consistency, DPMSolver, EulerAncestral, Heun, Sampler

pytestmark = pytest.mark.filterwarnings("ignore:.*alpha-bar")


class Right(Sampler):
    """Euler's step without a declared order."""

    def step(self, denoise, x, t, s, past, noise):
        pred = denoise(x, t)
        return pred.jump(s), pred


class Weak(DDIM):
    """DDIM with eps 2 % too small."""

    def step(self, denoise, x, t, s, past, noise):
        pred = denoise(x, t)
        return s.alpha * pred.x0 + 0.98 * s.sigma * pred.eps, pred


class WeakUndeclared(Right):
    def step(self, denoise, x, t, s, past, noise):
        return Weak.step(self, denoise, x, t, s, past, noise)


class Bent(DPMSolver):
    """A second-order method with too large a correction."""

    def step(self, denoise, x, t, s, past, noise):
        out, pred = super().step(denoise, x, t, s, past, noise)
        return (out + 0.3 * (s.alpha - t.alpha) * (pred.x0 - past[-1][1].x0) if past else out), pred


class OnlyVP(DDIM):
    """Correct only where alpha^2 + sigma^2 = 1."""

    def step(self, denoise, x, t, s, past, noise):
        pred = denoise(x, t)
        return s.alpha * pred.x0 + (1 - s.alpha**2).clamp(min=0).sqrt() * pred.eps, pred


class Loud(Sampler):
    """DDPM with 10 % too much noise."""

    def step(self, denoise, x, t, s, past, noise):
        pred, small = denoise(x, t), posterior_var(s, t)
        return s.alpha * pred.x0 + (s.sigma**2 - small).sqrt() * pred.eps + 1.1 * small.sqrt() * noise(x), pred


class LoudConsistency(Consistency):
    """10 % too much noise after each jump."""

    def step(self, denoise, x, t, s, past, noise):
        return super().step(denoise, x, t, s, past, lambda x: 1.1 * noise(x))


class Own(Sampler):
    """Draws its own noise in addition to the given noise."""

    def step(self, denoise, x, t, s, past, noise):
        pred = denoise(x, t)
        return pred.jump(s) + 0.1 * s.sigma * (noise(x) + torch.randn_like(x)), pred


class Boastful(EulerAncestral):
    def __init__(self, steps=50):
        super().__init__(steps)
        self.convergence = 1


class Broken(Sampler):
    def step(self, denoise, x, t, s, past, noise):
        return x / 0 * denoise(x, t).x0, denoise(x, t)


class Raises(Sampler):
    def step(self, denoise, x, t, s, past, noise):
        raise KeyError("nothing here")


@pytest.mark.parametrize("kind, schedule, problem", [
    (Right, VP(), ""), (Right, Flow(), ""), (DDIM, Linear(), ""), (EulerAncestral, Cosine(), ""), (OnlyVP, VP(), ""),
    (Consistency, VP(), ""), (Consistency, Flow(), ""), (Consistency, Linear(), ""),
    (LoudConsistency, VP(), "weak order .*, expected 1"),
    (Weak, VP(), "order .*, expected 1"), (WeakUndeclared, VP(), "of the data's spread away after 50 steps"),
    (Bent, VP(), "order 1.*, expected 2"), (OnlyVP, VE(), "order .*, expected 1"),
    (Loud, VP(), "weak order .*, expected 1: mean or std stay wrong"), (Own, VP(), "draws its own noise"),
    (Boastful, VP(), "draws noise, but declares convergence 1"), (Broken, VP(), "the walk is not finite"),
    (Raises, VP(), "KeyError: 'nothing here'"),
], ids=lambda v: getattr(v, "__name__", None))  # fmt: skip
def test_faults_of_samplers_are_found(kind, schedule, problem):
    result = check_sampler(kind, {}, schedule)
    assert bool(result.problem) == bool(problem)
    assert re.search(problem, result.problem), result


class Rising(Schedule):
    """Less noise at the end than in the middle."""

    def scales(self, t):
        sigma = (3 * t).sin().abs() * 0.99 + 1e-3
        return (1 - sigma**2).sqrt(), sigma


class WrongTime(Flow):
    def time(self, log_snr):
        return torch.sigmoid(-log_snr)


class WrongDrift(VP):
    def sde(self, t):
        f, g2 = super().sde(t)
        return f / 2, g2


class WrongDiffusion(Cosine):
    def sde(self, t):
        f, g2 = super().sde(t)
        return f, 1.01 * g2


class WrongPrior(VE):
    def __init__(self):
        super().__init__()
        self.prior_std = 1.0


class Undefined(Schedule):
    def scales(self, t):
        return (0.5 - t).sqrt(), t


class Short(Discrete):
    """At t = 1 alpha-bar is still exp(-0.1) = 0.905: a spread of sqrt(0.905 / 4 + 0.095) = 1 / 1.76."""

    def betas(self):
        return torch.full((self.T,), 1e-4)


class Rigid(VP):
    def scales(self, t):
        return super().scales(t.reshape(7))


class AlmostZero(Schedule):
    def scales(self, t):
        return torch.cos(torch.pi / 2 * t), torch.sin(torch.pi / 2 * t)


@pytest.mark.parametrize("schedule, problem", [
    (Linear(zero_snr=True), ""), (Cosine(20, zero_snr=True), ""), (Linear(2), ""), (VE(0.1, 200), ""),
    (Rising(), "SNR does not fall at t = 0.5"), (WrongTime(), "time.* misses t by 0.[1-4]"),
    (WrongDrift(), "f differs by .* from the slope of log alpha"), (WrongDiffusion(), "g.2 differs by"),
    (WrongPrior(), "prior_std 1 differs by -98%"), (Undefined(), "must be finite"),
    (Short, r"prior_std 1 differs by \+76%"), (Rigid(), "RuntimeError"),
    (AlmostZero(), "recovered with error 0.5; alpha at t = 1 is 6.1e-17, make it exactly 0"),
], ids=lambda v: getattr(v, "__name__", type(v).__name__) if not isinstance(v, str) else None)  # fmt: skip
def test_faults_of_schedules_are_found(schedule, problem):
    schedule = schedule() if isinstance(schedule, type) else schedule  # Short warns on construction
    facts = check_schedule(schedule)
    assert bool(facts.problem) == bool(problem), facts
    assert re.search(problem, facts.problem), facts


def test_law_of_a_walk_matches_a_recursion_by_hand():
    """x -> 0.5 x + 1 + 2 z, twice: mean 0.25 m + 1.5, variance 0.25^2 s^2 + (0.5 * 2)^2 + 2^2."""

    def walk(x, noise):
        for _ in range(2):
            x = 0.5 * x + 1 + 2 * noise(x)
        return x

    mean, std, draws = law(walk, 3.0, 0.7)
    assert (mean, draws) == (pytest.approx(0.75 + 1.5), 2)
    assert std == pytest.approx(math.sqrt(0.0625 * 0.49 + 1 + 4))


@pytest.mark.parametrize("walk", [
    lambda x, noise: x.clamp(-1, 1) + noise(x),
    lambda x, noise: x / x.abs().max() + noise(x),  # of the whole batch
    lambda x, noise: x + noise(x) + torch.randn_like(x),
])  # fmt: skip
def test_law_rejects_walks_that_are_not_affine(walk):
    with pytest.raises(ValueError, match="not affine"):
        law(walk, 0.3, 2.0)


@pytest.mark.parametrize("sampler", [EulerAncestral(12), Heun(12, churn=8), DPMSolver(12, 3, sde=True)])
def test_law_matches_monte_carlo(sampler):
    schedule, n = Cosine(), 40_000
    with torch.no_grad():
        exact = law(lambda x, noise: sampler.sample(GAUSSIAN, x, schedule, noise), 0.0, 1.0)
        torch.manual_seed(0)
        x = sampler.sample(GAUSSIAN, torch.randn(n, 1, 1, 1).double(), schedule)
    assert float(x.mean()) == pytest.approx(exact.mean, abs=4 * exact.std / n**0.5)
    assert float(x.std()) == pytest.approx(exact.std, rel=4 / (2 * n) ** 0.5)


def test_law_of_ddim_matches_its_recursion():
    """On VE a step multiplies the distance from the mean by 1 + (sigma_s - sigma_t) sigma_t / (std^2 + sigma_t^2)."""
    schedule, data = VE(), GAUSSIAN
    levels = [schedule.level(t) for t in 1 - torch.arange(10).double() / 10] + [schedule.clean()]
    std = 1.0
    for t, s in zip(levels[:-1], levels[1:], strict=True):
        std *= float((data.std**2 + s.sigma * t.sigma) / (data.std**2 + t.sigma**2))
    end = law(lambda x, noise: DDIM(10).sample(data, x, schedule, noise), 0.3, 1.0)
    assert end.draws == 0 and end.mean == pytest.approx(0.3) and end.std == pytest.approx(std, rel=1e-12)


def test_whole_walk_agrees_with_its_law():
    """For a deterministic walk of right mean, the error is the bias of the spread."""
    schedule = VP()
    start = schedule.level(torch.ones(()).double())
    std = float((start.alpha**2 * 0.16 + start.sigma**2).sqrt())
    end = law(lambda x, noise: DDIM(20).sample(GAUSSIAN, x, schedule, noise), float(start.alpha) * 0.3, std)
    walk = whole_walk(DDIM(20), schedule)
    assert not walk.random and walk.error == pytest.approx(1 - end.std / 0.4, rel=1e-6)
    t = schedule.level(torch.tensor(1 / 20).double())
    assert walk.last == pytest.approx(1 - float(t.alpha * 0.4 / (t.alpha**2 * 0.16 + t.sigma**2).sqrt()))
    assert walk.excess == pytest.approx(walk.error - walk.last, rel=1e-6)


def test_section_has_uneven_steps_within_its_range():
    for schedule in (VP(), Flow(), Linear(), VE()):
        log_snr = torch.stack([t.log_snr for t in section(schedule, 48)])
        assert log_snr[0] == pytest.approx(SECTION[0], abs=1e-2) and log_snr[-1] == pytest.approx(SECTION[1], abs=1e-2)
        ratio = log_snr.diff()[0::2][:-1] / log_snr.diff()[1::2]
        assert (ratio > 1.5).all() and (ratio < 1.8).all()  # 5 : 3, except for times snapped to a table
    assert float(section(VE(0.5, 5), 9)[-1].sigma) == pytest.approx(0.5)  # a shorter schedule is used whole


def test_settings_are_those_a_class_accepts():
    assert settings(DPMSolver) == [{}, {"order": 1}, {"order": 3}, {"sde": True}]
    assert settings(EulerAncestral) == [{}, {"eta": 0.0}] and settings(Right) == [{}]
    assert make(DDIM, 7, {"eta": 1.0}).steps == 7 and make(DDIM, 7, {"eta": 1.0}).convergence is None


def test_bias_is_measured_at_the_end_of_the_section():
    """10 % too much noise per step is a bias that does not fall with more steps; that of the correct walk does."""
    with torch.no_grad():
        wrong, right = ([bias(kind(n), VP()) for n in (24, 72)] for kind in (Loud, EulerAncestral))
    assert wrong[1] > 0.03 and right[1] < 0.4 * right[0] < 0.04
