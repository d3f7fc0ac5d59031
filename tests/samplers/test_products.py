"""Every sampler x every schedule x every target: a Gaussian problem through a real Denoiser.

New samplers, schedules and targets are included automatically.
"""

import warnings

import pytest
import torch
from torch import nn

from diffusion import noise, samplers
from diffusion.bench.analytic import CLEAN, Gaussian, Map
from diffusion.denoiser import Denoiser, targets
from diffusion.support.specs import concrete

MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)
RANDOM = {
    samplers.DDPM: 60, samplers.EulerAncestral: 40, samplers.EulerMaruyama: 80, samplers.PredictorCorrector: 100,
    samplers.AnnealedLangevin: 100, samplers.Consistency: 3,
}  # fmt: skip
STEPS = {  # 20 for the others, 60 for other random ones
    **RANDOM, samplers.DPM2: 12, samplers.DPMSolverSingle: 12,
    samplers.Heun: 40,  # on SigmoidAlpha, which ends in a jump: 15 % with 20 steps, 5 % with 40, 1 % with 100
}  # fmt: skip
ALL = sorted(concrete(samplers.Sampler, "diffusion"), key=lambda k: k.__name__)
ACCURATE = {samplers.ProbabilityFlow, *(kind for kind in ALL if (kind().convergence or 1) > 1)}
KNOWN: dict[type, dict[float, noise.Level]] = {}
OPTIONS = {samplers.AnnealedLangevin: {"inner": 4, "epsilon": 0.5}}


class Ideal(nn.Module):
    """The ideal network for Gaussian data. It derives the level from the clock, which checks the clock too."""

    def __init__(self, schedule, target, second_clock=False):
        super().__init__()
        self.second_clock = second_clock
        self.schedule, self.target, self.known = schedule, target, KNOWN.setdefault(type(schedule), {})

    def forward(self, x, clock, y=None, keep=None, to=None):
        heard = float(clock[0])
        if not bool((clock == heard).all()):  # one level per image
            t = self.level(clock)
        else:
            if heard not in self.known:
                self.known[heard] = self.level(clock[0])
            t = self.known[heard]
        end = self.end(to) if self.second_clock else None
        t = t.like(x)
        x = x / self.target.c_in(t)
        pred = DATA(x, t) if end is None else Map(DATA)(x, t.until(end))
        return self.target.of(pred.x0, pred.eps, t)

    def end(self, to):
        return CLEAN if bool((to == float(self.schedule.clock(CLEAN.t))).all()) else self.level(to)

    def level(self, clock):
        clock, ends = clock.double(), torch.tensor([0.0, 1.0], dtype=torch.float64)
        if type(self.schedule).clock is noise.Schedule.clock or self.schedule.T:  # linear in time
            low, high = self.schedule.clock(ends)
            return self.schedule.level((clock - low) / (high - low))
        low, high = torch.zeros_like(clock), torch.ones_like(clock)
        for _ in range(50):  # by bisection
            middle = (low + high) / 2
            late = self.schedule.clock(middle) > clock
            low, high = torch.where(late, low, middle), torch.where(late, middle, high)
        return self.schedule.level((low + high) / 2)


def schedules():
    return sorted(concrete(noise.Schedule, "diffusion"), key=lambda k: k.__name__)


def make(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # T = 200 leaves a little signal at t = 1 for some
        if kind is noise.Tabulated:
            return kind(noise.Linear(200).betas().tolist())
        return kind(T=200) if issubclass(kind, noise.Discrete) else kind()


def pairs():
    """Every schedule with every target; those of which neither is the usual one are slow tests."""
    for kind in schedules():
        for target in sorted(concrete(targets.Target, "diffusion"), key=lambda k: k.__name__):
            usual = kind is noise.Cosine or target is targets.V
            name = f"{kind.__name__}-{target.__name__}"
            yield pytest.param(kind, target, marks=[] if usual else pytest.mark.slow, id=name)


@pytest.mark.parametrize("kind, target", pairs())
@pytest.mark.parametrize("sampler", ALL)
def test_every_sampler_schedule_and_target_solves_gaussian_data(sampler, kind, target):
    schedule, target = make(kind), target()
    if target.needs_signal and schedule.scales(torch.ones(()).double())[0] == 0:
        with pytest.raises(ValueError, match="divides by alpha"):
            Denoiser(Ideal(schedule, target), schedule, target)
        return
    denoiser = Denoiser(Ideal(schedule, target, sampler.maps), schedule, target)
    torch.manual_seed(0)
    z = torch.randn(1000, 1, 1, 1, dtype=torch.float64)
    z = (z - z.mean()) / z.std() * schedule.prior_std
    steps = STEPS.get(sampler, 20 if sampler().convergence or sampler in ACCURATE else 60)
    walk = sampler(steps, **OPTIONS.get(sampler, {})).iterate(denoiser, z, schedule)
    *_, before, last = walk
    x, t = last.x, before.t
    assert x.isfinite().all() and float(last.t.sigma) == 0
    # Every walk ends with E[x_0 | x_t], which from a true x_t has this much less spread; few steps leave a large t.
    # A flow map loses none.
    spread = STD if sampler.maps else float(DATA(DATA.at(torch.ones(1, 1).double(), t), t).x0) - MEAN
    tolerance = 0.1 if sampler in ACCURATE and sampler not in RANDOM else 0.2
    assert float(x.mean()) == pytest.approx(MEAN, abs=tolerance * STD)
    assert float(x.std()) == pytest.approx(spread, rel=tolerance)


@pytest.mark.parametrize("sampler", ALL)
def test_samplers_preserve_the_dtype_of_images(sampler):
    """Levels are float64 scalars; they must not turn a float32 image into a float64 one."""
    schedule = noise.Cosine()
    denoiser = Denoiser(Ideal(schedule, targets.V()), schedule, targets.V())
    frames = list(sampler(6).iterate(denoiser, torch.randn(3, 1, 4, 4), schedule))
    assert len(frames) == 6
    assert all(f.x.dtype == f.x0.dtype == torch.float32 and f.x.isfinite().all() for f in frames)
    assert torch.equal(frames[-1].x, frames[-1].x0)
