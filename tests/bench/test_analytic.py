"""The ideal denoisers against brute force: integrals over x_0, gradients of the density, importance weights."""

import math

import pytest
import torch

from diffusion.bench.analytic import CLEAN, Empirical, Gaussian, Mixture
from diffusion.noise import VE, VP, Cosine, Flow, Linear
from diffusion.noise.level import Level
from diffusion.samplers import DDIM, DPMSolver

ONE = {
    "gaussian": Gaussian(0.3, 0.4),
    "mixture": Mixture([-0.6, 0.2, 0.9], [0.1, 0.3, 0.2], [1, 2, 3]),
    "empirical": Empirical(torch.tensor([-0.7, -0.1, 0.4, 0.8]).reshape(-1, 1, 1, 1)),
}
MANY = {
    "gaussian": Gaussian(torch.linspace(-1, 1, 12).reshape(3, 2, 2), torch.tensor([0.2, 0.5, 0.9]).reshape(3, 1, 1)),
    "mixture": Mixture(torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)), [0.2, 0.4, 0.3, 0.5]),
    "empirical": Empirical(torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(2))),
}
LEVELS = [
    schedule.level(torch.tensor(t, dtype=torch.float64))
    for schedule, t in [(VP(), 0.1), (VP(), 0.6), (VE(), 0.5), (VE(), 0.9), (Flow(), 0.4), (Linear(), 0.3005)]
]
NONE = Flow().level(torch.ones((), dtype=torch.float64))  # alpha = 0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def prior(name, x0):
    """p(x_0) on a grid of numbers, from the definitions; delta functions have weights instead."""
    if name == "gaussian":
        return torch.exp(-0.5 * ((x0 - 0.3) / 0.4) ** 2) / (0.4 * math.sqrt(2 * math.pi))
    parts = zip([-0.6, 0.2, 0.9], [0.1, 0.3, 0.2], [1 / 6, 2 / 6, 3 / 6], strict=True)
    return sum(w * torch.exp(-0.5 * ((x0 - m) / s) ** 2) / (s * math.sqrt(2 * math.pi)) for m, s, w in parts)


@pytest.mark.parametrize("t", [*LEVELS, NONE], ids=lambda t: f"{float(t.ratio):.2g}")
@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_posterior_mean_and_density_match_integrals_over_x0(name, t):
    """Bayes' rule by the trapezium rule: E[x_0 | x] = int x_0 p(x_0) N(x; alpha x_0, sigma^2) / p_t(x)."""
    x0 = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).reshape(-1, 1, 1, 1) * max(1, float(t.sigma))
    kernel = torch.exp(-0.5 * ((x.flatten()[:, None] - t.alpha * x0) / t.sigma) ** 2) / t.sigma / math.sqrt(2 * math.pi)
    joint = prior(name, x0) * kernel
    density = torch.trapezoid(joint, x0)
    mean = torch.trapezoid(joint * x0, x0) / density
    pred = ONE[name](x, t)
    torch.testing.assert_close(pred.x0.flatten(), mean, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ONE[name].log_density(x, t).exp(), density, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("t", [*LEVELS, NONE], ids=lambda t: f"{float(t.ratio):.2g}")
@pytest.mark.parametrize("name", MANY)
def test_ideal_denoisers_satisfy_tweedies_formula(name, t):
    """eps is -sigma times the gradient of the log density, x = alpha x_0 + sigma eps, and the score is the gradient."""
    data = MANY[name]
    x = (t.alpha * data.sample(5, generator()) + t.sigma * normal(5, 3, 2, 2)).requires_grad_()
    (slope,) = torch.autograd.grad(data.log_density(x, t).sum(), x)
    x = x.detach()
    pred = data(x, t)
    assert pred.x0.shape == pred.eps.shape == x.shape and data.log_density(x, t).shape == (5,)
    torch.testing.assert_close(pred.eps, -t.sigma * slope, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(data.score(x, t), slope, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(t.alpha * pred.x0 + t.sigma * pred.eps, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MANY)
def test_prediction_at_pure_noise_is_the_data_mean(name):
    data = MANY[name]
    mean = {
        "gaussian": lambda: data.mean,
        "mixture": lambda: data.means.mean(0),
        "empirical": lambda: data.images.mean(0),
    }
    x = normal(4, 3, 2, 2)
    torch.testing.assert_close(data(x, NONE).x0, mean[name]().expand_as(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(data(x, NONE).eps, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("t", [*LEVELS, NONE], ids=lambda t: f"{float(t.ratio):.2g}")
def test_densities_integrate_to_one(name, t):
    reach = 6 * float((t.alpha**2 + t.sigma**2).sqrt())
    x = torch.linspace(-reach, reach, 40_001, dtype=torch.float64)
    density = ONE[name].log_density(x.reshape(-1, 1, 1, 1), t).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-7)


def test_empirical_posterior_matches_importance_weights():
    """Each image is weighted with the likelihood of x given it, one at a time."""
    data, t = MANY["empirical"], LEVELS[1]
    x = normal(6, 3, 2, 2)
    for image, guess in zip(x, data(x, t).x0, strict=True):
        weights = [math.exp(float(-0.5 * ((image - t.alpha * y) ** 2).sum() / t.sigma**2)) for y in data.images]
        expected = sum(w * y for w, y in zip(weights, data.images, strict=True)) / sum(weights)
        torch.testing.assert_close(guess, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MANY)
def test_ideal_denoisers_take_per_image_levels(name):
    data, t = MANY[name], VP().level(torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64))
    x = normal(3, 3, 2, 2)
    singly = [(data(x[k : k + 1], u), data.log_density(x[k : k + 1], u), data.score(x[k : k + 1], u))
              for k, u in enumerate(VP().level(v) for v in t.t)]  # fmt: skip
    torch.testing.assert_close(data(x, t).x0, torch.cat([p.x0 for p, *_ in singly]))
    torch.testing.assert_close(data(x, t).eps, torch.cat([p.eps for p, *_ in singly]))
    torch.testing.assert_close(data.log_density(x, t), torch.cat([d for _, d, _ in singly]))
    torch.testing.assert_close(data.score(x, t), torch.cat([s for *_, s in singly]))


@pytest.mark.parametrize("name", MANY)
def test_ideal_denoisers_preserve_the_dtype_of_images(name):
    pred = MANY[name](torch.randn(2, 3, 2, 2), LEVELS[0])
    assert pred.x0.dtype == pred.eps.dtype == torch.float32


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_samples_match_their_density(name):
    """Mean and variance of the draws against those of the density, by the trapezium rule; 5 standard errors."""
    data, n = ONE[name], 100_000
    x = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    density = data.log_density(x.reshape(-1, 1, 1, 1)).exp()
    draws = data.sample(n, generator()).flatten()
    for power in (1, 2, 3):
        moment, spread = (float(torch.trapezoid(density * x ** (power * k), x)) for k in (1, 2))
        assert float((draws**power).mean()) == pytest.approx(moment, abs=5 * math.sqrt((spread - moment**2) / n))


def test_samples_have_the_shape_of_the_data():
    assert [d.sample(5).shape for d in MANY.values()] == [(5, 3, 2, 2)] * 3
    assert [d.sample(5).shape for d in ONE.values()] == [(5, 1, 1, 1)] * 3
    assert torch.equal(Gaussian(0, 1).sample(3, generator()), Gaussian(0, 1).sample(3, generator()))


def test_entropy_is_the_mean_negative_log_density():
    """The entropy of one pixel by the trapezium rule, and log(2 pi e) for two pixels of unit variance."""
    for t in (CLEAN, *LEVELS):
        reach = 12 * float((t.alpha**2 * 0.16 + t.sigma**2).sqrt())
        x = torch.linspace(-reach, reach, 100_001, dtype=torch.float64) + float(t.alpha * 0.3)
        log_p = ONE["gaussian"].log_density(x.reshape(-1, 1, 1, 1), t)
        assert ONE["gaussian"].entropy(t) == pytest.approx(float(torch.trapezoid(-log_p * log_p.exp(), x)), rel=1e-9)
    assert Gaussian(torch.zeros(1, 1, 2), 1.0).entropy() == pytest.approx(math.log(2 * math.pi * math.e))


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_exact_flow_solves_the_ode(name):
    """d(x / alpha) / d(sigma / alpha) = eps along `at`, by a central difference."""
    data, z, h = ONE[name], torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1), 1e-4
    for ratio in (0.05, 0.3, 1.0, 4.0):
        here, before, after = (
            Level(*torch.tensor([0.5, 0.7, 0.7 * r], dtype=torch.float64)) for r in (ratio, ratio - h, ratio + h)
        )
        speed = (data.at(z, after) - data.at(z, before)) / 0.7 / (2 * h)
        torch.testing.assert_close(speed, data(data.at(z, here), here).eps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_exact_flow_preserves_quantiles(name):
    """The mass of p_t below at(z, t) is Phi(z), at every level; `quantile` inverts `at`, `transport` joins them."""
    data, z = ONE[name], torch.linspace(-2.5, 2.5, 6, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for t in (CLEAN, *LEVELS, NONE):
        ends = data.at(z, t).flatten()
        for end, phi in zip(ends.tolist(), torch.special.ndtr(z).flatten().tolist(), strict=True):
            x = torch.linspace(end - 12 * float((t.alpha**2 + t.sigma**2).sqrt()), end, 40_001, dtype=torch.float64)
            mass = torch.trapezoid(data.log_density(x.reshape(-1, 1, 1, 1), t).exp(), x)
            assert float(mass) == pytest.approx(phi, abs=1e-5)
        torch.testing.assert_close(data.quantile(data.at(z, t), t), z, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(data.transport(data.at(z, NONE), NONE, t), data.at(z, t), rtol=1e-8, atol=1e-8)


def test_dpm_solver_reaches_the_quantiles_of_a_mixture():
    """DPMSolver from the prior to three modes: the exact quantiles to a thousandth."""
    data, z = ONE["mixture"], torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    start = VP().level(torch.ones((), dtype=torch.float64))
    x = DPMSolver(200, grid="log_snr").sample(data, data.at(z, start), VP())
    torch.testing.assert_close(x, data.at(z, CLEAN), rtol=0, atol=2e-3)


def test_walks_with_empirical_data_end_at_its_images():
    """The ideal denoiser of a set behaves like a network that memorised it."""
    data = MANY["empirical"]
    x = DDIM(50).sample(data, normal(20, 3, 2, 2), Cosine())
    nearest = (x[:, None] - data.images).flatten(2).norm(dim=2)
    assert float(nearest.min(1).values.max()) < 1e-6
    assert len(nearest.argmin(1).unique()) > 3


@pytest.mark.parametrize("bad, words", [
    (lambda: Gaussian(0, 0), "std must be positive"),
    (lambda: Mixture([0, 1], 0.1, [1, -1]), "positive weights"),
    (lambda: Mixture([0, 1], 0.1, [1, 1, 1]), "2 positive weights"),
    (lambda: ONE["empirical"].log_density(torch.zeros(1, 1, 1, 1)), "no density"),
    (lambda: MANY["mixture"].at(torch.zeros(2, 3, 2, 2), CLEAN), "one pixel"),
])  # fmt: skip
def test_analytic_data_reject_invalid_arguments(bad, words):
    with pytest.raises(ValueError, match=words):
        bad()
