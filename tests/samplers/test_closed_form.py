"""Samplers on Gaussian data, for which the ideal denoiser and the exact result are known."""

import math

import pytest
import torch

from diffusion.bench import law, whole_walk
from diffusion.bench.analytic import Gaussian
from diffusion.noise import VE, Cosine, Flow, Karras, Linear, Sigmoid, forward_var, posterior_var
from diffusion.noise.grids import times
from diffusion.samplers import DDIM, DDPM, ProbabilityFlow

MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)


def noise(n, seed=0):
    return torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Sigmoid()])
def test_ddim_converges_to_first_order(schedule):
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
    """A walk with all 1,000 levels is within 1 % of the data's mean and variance, without Monte Carlo error."""
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


def test_iterate_yields_one_frame_per_step_and_ends_clean():
    frames = list(DDIM(7).iterate(DATA, noise(4), Linear()))
    assert len(frames) == 7
    assert float(frames[-1].t.sigma) == 0 and torch.equal(frames[-1].x, frames[-1].x0)


@pytest.mark.parametrize("bad", [lambda: DDIM(0), lambda: DDIM(5, eta=2), lambda: DDPM(variance="medium"),
                                 lambda: DDIM(5, grid="up")])  # fmt: skip
def test_ddim_and_ddpm_reject_invalid_settings(bad):
    with pytest.raises(ValueError):
        bad()


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Flow(), VE()], ids=lambda s: type(s).__name__)
def test_inversion_finds_the_noise_of_a_ddim_walk(schedule):
    """Images sampled from noise return that noise, and other images are recovered from theirs."""
    z = schedule.prior_std * noise(500)
    sampler = DDIM(20)
    x0 = sampler.sample(DATA, z, schedule)
    back = sampler.invert(DATA, x0, schedule, iterations=60)
    torch.testing.assert_close(back, z, rtol=1e-6, atol=1e-6 * schedule.prior_std)
    data = MEAN + STD * noise(500, seed=1)
    made = sampler.sample(DATA, sampler.invert(DATA, data, schedule, iterations=60), schedule)
    torch.testing.assert_close(made, data, rtol=1e-6, atol=1e-6)


def test_single_iteration_inversion_has_a_first_order_error():
    z = noise(500)
    errors = []
    for n in (50, 100, 200):
        x0 = MEAN + STD * (z - z.mean())
        made = DDIM(n).sample(DATA, DDIM(n).invert(DATA, x0, Cosine(), iterations=1), Cosine())
        errors.append(float((made - x0).abs().mean()))
    assert math.log(errors[0] / errors[2]) / math.log(4) == pytest.approx(1, abs=0.3), errors


def test_ddim_inversion_rejects_a_random_walk():
    with pytest.raises(ValueError, match="eta = 0"):
        DDIM(5, eta=0.5).invert(DATA, noise(2), Linear())


@pytest.mark.parametrize("variance, v", [("small", -1.0), ("large", 1.0)])
def test_learned_variance_ends_are_small_and_large(variance, v):
    def learned(x, t):
        return DATA(x, t)._replace(var=torch.full_like(x, v))

    def walk(sampler):
        torch.manual_seed(5)
        return sampler.sample(learned, noise(50), Cosine())

    torch.testing.assert_close(walk(DDPM(30, "learned")), walk(DDPM(30, variance)), rtol=1e-10, atol=1e-10)


def test_ddpm_rejects_learned_variance_without_network_output():
    with pytest.raises(ValueError, match="outputs no variance"):
        DDPM(5, "learned").sample(DATA, noise(2), Linear())


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Flow(), VE(), Karras()], ids=lambda s: type(s).__name__)
def test_probability_flow_meets_its_tolerance(schedule):
    """At the last noisy level, where the exact map is known; the final step is the same for all methods."""
    z = noise(200)
    first, last = (schedule.level(torch.tensor(t).double()) for t in (1.0, schedule.t_min))

    for tolerance in (1e-3, 1e-6):
        *_, before, _ = ProbabilityFlow(4, tolerance, tolerance).iterate(DATA, DATA.at(z, first), schedule)
        assert float((before.x - DATA.at(z, last)).abs().max()) < 30 * tolerance


def test_probability_flow_does_not_depend_on_the_batch():
    z = noise(9).float()
    many = ProbabilityFlow(3).sample(DATA, z, Cosine())
    torch.testing.assert_close(ProbabilityFlow(3).sample(DATA, z[4:5], Cosine()), many[4:5], rtol=1e-6, atol=1e-6)
