"""Gaussian data: the ideal denoiser is known, so every sampler has a right answer."""

import math

import pytest
import torch

from diffusion.analytic import Gaussian
from diffusion.bench import law, whole_walk
from diffusion.noise import Cosine, Linear, Sigmoid, forward_var, posterior_var
from diffusion.noise.grids import times
from diffusion.samplers import DDIM, DDPM

MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)


def noise(n, seed=0):
    return torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Sigmoid()])
def test_ddim_transports_to_first_order(schedule):
    """The error against the exact map falls like 1 / n."""
    z = noise(1000)
    exact = DATA.transport(z, schedule.level(torch.tensor(1.0).double()))
    errors = [float((DDIM(n).sample(DATA, z, schedule) - exact).abs().mean()) for n in (25, 50, 100, 200)]
    assert errors[-1] < 0.008
    slope = math.log(errors[0] / errors[-1]) / math.log(8)
    assert 0.8 < slope < 1.3, (slope, errors)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
@pytest.mark.parametrize("sampler", [DDPM(1000), DDPM(1000, "large"), DDIM(1000, eta=0.5), DDIM(1000, eta=1.0)])
def test_stochastic_samplers_reach_mean_and_variance(schedule, sampler):
    """A walk with all 1,000 levels is within 1 % of the law of the data, without Monte Carlo error."""
    with torch.no_grad():
        walk = whole_walk(sampler, schedule)
    assert walk.random
    assert walk.mean == pytest.approx(0, abs=1e-9) and walk.std == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("variance, rule", [("small", posterior_var), ("large", forward_var)])
def test_ddpm_with_few_steps_has_the_variance_of_its_linear_recursion(variance, rule):
    """Every step is affine in x, so the variance after n steps can be computed by hand."""
    schedule, sampler = Linear(), DDPM(10, variance)
    levels = [schedule.level(t) for t in times("trailing", schedule, 10)] + [schedule.clean()]
    mean, var = torch.tensor([0.0, 1.0]).double()
    for t, s in zip(levels[:-1], levels[1:], strict=True):
        gain = t.alpha * STD**2 / (t.alpha**2 * STD**2 + t.sigma**2)  # dx0 / dx
        eps = (s.sigma**2 - posterior_var(s, t)).sqrt() / t.sigma  # d x_s / d(x - alpha_t x0)
        slope = s.alpha * gain + eps * (1 - t.alpha * gain)
        mean = slope * mean + (s.alpha - eps * t.alpha) * MEAN * (1 - gain * t.alpha)
        var = slope**2 * var + (rule(s, t) if s.sigma > 0 else 0)
    end = law(lambda x, noise: sampler.sample(DATA, x, schedule, noise), 0.0, 1.0)
    assert end.draws == 9
    assert end.mean == pytest.approx(float(mean), rel=1e-9)
    assert end.std**2 == pytest.approx(float(var), rel=1e-9)


def test_ddim_with_eta_one_is_ddpm():
    def walk(sampler):
        torch.manual_seed(5)
        return sampler.sample(DATA, noise(100), Linear())

    torch.testing.assert_close(walk(DDIM(50, eta=1.0)), walk(DDPM(50)), rtol=1e-12, atol=1e-12)


def test_frames_end_clean_and_are_as_many_as_steps():
    frames = list(DDIM(7).iterate(DATA, noise(4), Linear()))
    assert len(frames) == 7
    assert float(frames[-1].t.sigma) == 0 and torch.equal(frames[-1].x, frames[-1].x0)


@pytest.mark.parametrize("bad", [lambda: DDIM(0), lambda: DDIM(5, eta=2), lambda: DDPM(variance="medium"),
                                 lambda: DDIM(5, grid="up")])  # fmt: skip
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError):
        bad()
