"""Likelihoods of the probability flow against known densities, and its solver against known solutions."""

import math

import pytest
import torch

from diffusion.bench.analytic import Gaussian, Mixture
from diffusion.denoiser import Prediction, predict
from diffusion.likelihood.flow import bits_per_dim, dequantise, log_likelihood
from diffusion.likelihood.ode import rk45
from diffusion.noise import VE, VP, Cosine, Flow, Karras, Linear, SubVP
from diffusion.noise.draws import ImageDraws
from diffusion.noise.level import Level

MEAN, STD = 0.1, 0.4
SCHEDULES = [VP(), SubVP(), VE(), Karras(), Flow(), Linear(), Cosine()]
GAUSSIAN, TWO = Gaussian(MEAN, STD), Mixture([-0.6, 0.5], 0.15)


def least_noisy(schedule):
    """The level whose density is measured, in units of the image."""
    t = schedule.level(torch.tensor(schedule.t_min, dtype=torch.float64))
    return Level(t.t, torch.ones_like(t.alpha), t.ratio)


class EachPixel:
    """A one-pixel distribution applied to every pixel of an image."""

    def __init__(self, law):
        self.law = law

    def __call__(self, x, t):
        pixels = Level(*(v if v.ndim == 0 else v.flatten().repeat_interleave(x[0].numel()) for v in t))
        return Prediction(*(v.view_as(x) for v in self.law(x.reshape(-1, 1, 1, 1), pixels)[:2]))

    def log_density(self, x, t):
        return self.law.log_density(x.reshape(-1, 1, 1, 1), t).view(len(x), -1).sum(1)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_log_likelihood_of_gaussian_data_is_exact(schedule, divergence):
    """Hutchinson's estimate is exact here: the Jacobian is a multiple of the identity."""
    torch.manual_seed(0)
    x0 = MEAN + STD * torch.randn(16, 1, 2, 2, dtype=torch.float64)
    found = log_likelihood(GAUSSIAN, x0, schedule, divergence, 1e-6, 1e-6)
    # Tolerance: the prior is N(0, prior_std^2), and the process ends close to it.
    torch.testing.assert_close(found, GAUSSIAN.log_density(x0, least_noisy(schedule)), rtol=0, atol=0.02)


@pytest.mark.parametrize("schedule", [VP(), Flow(), VE()], ids=lambda s: type(s).__name__)
def test_log_likelihood_of_a_mixture_is_exact(schedule):
    torch.manual_seed(0)
    data = EachPixel(TWO)
    x0 = TWO.sample(48).view(12, 1, 2, 2)
    true = data.log_density(x0, least_noisy(schedule))
    found = log_likelihood(data, x0, schedule, "exact", 1e-5, 1e-5)
    torch.testing.assert_close(found, true, rtol=0, atol=0.02)


def test_hutchinson_is_unbiased():
    """With coupled pixels a single probe is noisy, and the mean of many is the exact trace."""
    mix = torch.tensor([[0.9, 0.5], [-0.3, 0.6]], dtype=torch.float64)

    def coupled(x, t):
        t = t.like(x)
        return predict(x, t.alpha * (x.flatten(1) @ mix).view_as(x) / (t.alpha**2 + t.sigma**2), t)

    x0 = torch.tensor([0.3, -0.2], dtype=torch.float64).view(1, 1, 1, 2).expand(400, 1, 1, 2)
    torch.manual_seed(0)
    exact = log_likelihood(coupled, x0[:1], VP(), "exact")
    found = log_likelihood(coupled, x0, VP())
    error = float(found.std()) / 20
    assert error > 1e-3  # the probes differ
    assert float(found.mean()) == pytest.approx(float(exact), abs=3 * error)


def test_log_likelihood_does_not_depend_on_the_batch():
    x0 = MEAN + STD * torch.randn(5, 1, 2, 2, dtype=torch.float64)
    many = log_likelihood(EachPixel(TWO), x0, VP(), noise=ImageDraws(3, range(5)))
    one = log_likelihood(EachPixel(TWO), x0[3:4], VP(), noise=ImageDraws(3, [3]))
    torch.testing.assert_close(one, many[3:4], rtol=1e-10, atol=1e-10)


def test_bits_of_uniform_pixels_are_eight():
    """Every one of 256 values equally likely: the dequantised density is 255 / 512 on a one bin wider range."""
    x0 = torch.arange(256, dtype=torch.float64).view(256, 1, 1, 1) / 127.5 - 1
    torch.manual_seed(0)
    x = dequantise(x0)
    assert float((x - x0).abs().max()) < 1 / 255 and float((x - x0).std()) == pytest.approx(2 / 255 / 12**0.5, rel=0.1)
    density = torch.full((256,), math.log(255 / 512), dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(density, 1), torch.full((256,), 8.0, dtype=torch.float64))


def test_gaussian_bits_match_the_entropy():
    """On real draws, rounded to pixel values: mean bits against the entropy, within three standard errors."""
    torch.manual_seed(0)
    x0 = ((MEAN + STD * torch.randn(3000, 1, 1, 1, dtype=torch.float64) + 1) * 127.5).round() / 127.5 - 1
    bits = bits_per_dim(log_likelihood(GAUSSIAN, dequantise(x0), VP(), rtol=1e-3, atol=1e-3), 1)
    entropy = GAUSSIAN.entropy() / math.log(2) + math.log2(127.5)
    assert float(bits.mean()) == pytest.approx(entropy, abs=3 * float(bits.std()) / 3000**0.5 + 0.005)


def test_rk45_matches_known_solutions():
    """dy/du = 3 y cos(3 u), each row from its own start: y = y_0 exp(sin 3u)."""
    y = torch.tensor([[1.0, -2.0], [0.1, 50.0]], dtype=torch.float64)
    calls = []

    def f(u, y):
        calls.append(u)
        return 3 * y * torch.cos(3 * u)[:, None]

    errors = []
    for tolerance in (1e-4, 1e-7, 1e-10):
        calls.clear()
        found = rk45(f, y, tolerance, tolerance)
        errors.append(float((found / y / math.exp(math.sin(3)) - 1).abs().max()))
        assert errors[-1] < 20 * tolerance
        assert len(calls) < 400
    assert errors[0] > errors[1] > errors[2]


def test_rk45_is_of_order_five():
    """With tolerances that accept every step: the error of n steps of length 1 / n."""
    errors = []
    for n in (4, 8):
        y = torch.ones(1, 1, dtype=torch.float64)
        for _ in range(n):  # dy/du = -y / n: a step of 1 / n in y' = -y
            y = rk45(lambda u, y, n=n: -y / n, y, 1e3, 1e3, first=1.0)
        errors.append(abs(float(y) - math.exp(-1)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(5, abs=0.3)


def test_rk45_errors_name_the_reason():
    with pytest.raises(RuntimeError, match="not enough"):
        rk45(lambda u, y: y * 100, torch.ones(1, 1), 1e-6, 1e-6, limit=5)
    with pytest.raises(RuntimeError, match="finite"):
        rk45(lambda u, y: y / 0, torch.ones(1, 1))
