"""The variational bound: its terms against closed forms, its sum against the evidence of Gaussian data."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion.bench.analytic import Gaussian
from diffusion.denoiser import Prediction
from diffusion.likelihood import vlb
from diffusion.noise import VE, VP, Cosine, Flow, Linear, forward_var, learned_var, posterior_var

MEAN, STD = 0.1, 0.25  # hardly any pixel outside [-1, 1], where the outermost bins take all the mass


GAUSSIAN = Gaussian(MEAN, STD)


def at(schedule, *t):
    return [schedule.level(torch.tensor(v, dtype=torch.float64)) for v in t]


def test_kl_matches_torch():
    m1, v1, m2, v2 = torch.randn(4, 200, dtype=torch.float64)
    other = kl_divergence(Normal(m1, (v1 / 2).exp()), Normal(m2, (v2 / 2).exp()))
    torch.testing.assert_close(vlb.kl(m1, v1, m2, v2), other)


PIXELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize("mean, std", [(0.0, 0.3), (-0.97, 0.02), (0.99, 0.004), (1.5, 0.1), (0.2, 3.0)])
def test_probabilities_of_all_pixel_bins_sum_to_one(mean, std):
    logvar = torch.full_like(PIXELS, 2 * math.log(std))
    log_mass = vlb.discretised_log_likelihood(PIXELS, torch.full_like(PIXELS, mean), logvar)
    assert float(log_mass.exp().sum()) == pytest.approx(1, abs=1e-9)
    law = Normal(torch.tensor(mean, dtype=torch.float64), std)
    near = (PIXELS[1:-1] - mean).abs() < 3 * std  # where the plain difference of two cdfs is still accurate
    plain = (law.cdf(PIXELS + 1 / 255) - law.cdf(PIXELS - 1 / 255))[1:-1]
    torch.testing.assert_close(log_mass.exp()[1:-1][near], plain[near], rtol=1e-6, atol=0)


def test_log_likelihood_of_a_bin_in_the_far_tail_is_finite_and_exact():
    x0, mean = torch.tensor([0.0, 0.0]), torch.tensor([20 / 127.5, -20 / 127.5], requires_grad=True)
    log_mass = vlb.discretised_log_likelihood(x0, mean, torch.full((2,), 2 * math.log(0.01)))
    # the edge of the bin that is nearer to the mean, 19.5 / 127.5 away, dominates: -z^2 / 2 - log(z sqrt(2 pi))
    z = 19.5 / 127.5 / 0.01
    assert log_mass.tolist() == pytest.approx([-z * z / 2 - math.log(z * math.sqrt(2 * math.pi))] * 2, rel=1e-3)
    (grad,) = torch.autograd.grad(log_mass.sum(), mean)
    assert grad.tolist() == pytest.approx([-z / 0.01, z / 0.01], rel=0.02)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("schedule", [Linear(100), Cosine(60), VP()])
def test_vlb_terms_of_gaussian_data_match_closed_forms(schedule, variance):
    """E KL has a closed form: the two means differ by gain (x_0 - x_0_hat), and Var[x_0 | x_t] is known."""
    steps = 20
    torch.manual_seed(0)
    x0 = MEAN + STD * torch.randn(4000, 1, 2, 2, dtype=torch.float64)
    found = torch.stack(list(vlb.terms(GAUSSIAN, x0, schedule, steps, variance))).mean(1)  # (steps + 1,)
    assert len(found) == steps + 1
    levels = [schedule.level(t) for t in vlb.times("trailing", schedule, steps).flip(0)]
    for k in (1, 5, 12, steps - 1):
        s, t = levels[k - 1], levels[k]
        low, high = posterior_var(s, t), forward_var(s, t)
        var = low if variance == "small" else high
        left = STD**2 * t.sigma**2 / (t.alpha**2 * STD**2 + t.sigma**2)  # Var[x_0 | x_t]
        gap = (s.alpha * high / t.sigma**2) ** 2 * left
        exact = 0.5 * ((var / low).log() + low / var - 1 + gap / var) / math.log(2)
        assert float(found[k]) == pytest.approx(float(exact), rel=0.03)
    end = levels[-1]
    second = STD**2 + MEAN**2  # E x_0^2
    last = 0.5 * (-2 * end.sigma.log() + end.sigma**2 + end.alpha**2 * second - 1) / math.log(2)
    assert float(found[-1]) == pytest.approx(float(last), rel=0.1, abs=1e-9)


def evidence():
    """Bits per dimension of Gaussian pixels, rounded to 256 values: the entropy, in bins 2 / 255 wide."""
    return GAUSSIAN.entropy() / math.log(2) + math.log2(127.5)


@pytest.mark.parametrize(
    "schedule, steps, gap", [(Linear(), 1000, 0.01), (Linear(), 50, 0.15), (Cosine(), 200, 0.03), (VE(), 500, 0.15)]
)
def test_vlb_is_a_tight_upper_bound_of_the_entropy(schedule, steps, gap):
    torch.manual_seed(1)
    x0 = MEAN + STD * torch.randn(10_000, 1, 1, 1, dtype=torch.float64)
    x0 = (x0 - x0.mean()) / x0.std(correction=0) * STD + MEAN  # its cross-entropy is the entropy to the bit
    bits = sum(vlb.terms(GAUSSIAN, x0, schedule, steps, "large"))
    noise = 3 * float(bits.std()) / 10_000**0.5  # three standard errors
    assert noise < 0.06
    assert -noise < float(bits.mean()) - evidence() < gap + noise


@pytest.mark.parametrize("index", [1, 30, 99])
def test_vlb_is_smallest_at_the_true_reverse_variance(index):
    """The KL is least where the variance is that of x_s given x_t: Var[x_s | x_t, x_0] + gain^2 Var[x_0 | x_t]."""
    schedule = Linear(100)
    s, t, up = at(schedule, index / 100, (index + 1) / 100, min(1.0, (index + 2) / 100))
    low, high = posterior_var(s, t), forward_var(s, t)
    gain = s.alpha * high / t.sigma**2
    best = low + gain**2 * STD**2 * t.sigma**2 / (t.alpha**2 * STD**2 + t.sigma**2)
    torch.manual_seed(0)
    x0 = MEAN + STD * torch.randn(200_000, 1, 1, 1, dtype=torch.float64)
    pred = GAUSSIAN(t.alpha * x0 + t.sigma * torch.randn_like(x0), t)
    guess = 2 * (best / low).log() / (high / low).log() - 1
    assert -1 <= float(guess) <= 1
    torch.testing.assert_close(learned_var(guess, low, high), best)
    v = guess.clone().requires_grad_()
    (slope,) = torch.autograd.grad(vlb.term(pred._replace(var=v), x0, s, t, up).mean(), v)
    off = (guess + 0.2).requires_grad_()
    (steep,) = torch.autograd.grad(vlb.term(pred._replace(var=off), x0, s, t, up).mean(), off)
    assert float(slope.abs()) < 0.05 * float(steep.abs())


def test_learned_variance_ranges_from_small_to_large(float64):
    schedule, x0 = Cosine(50), torch.rand(6, 1, 4, 4) * 2 - 1
    levels = at(schedule, 0.4, 0.42, 0.44)
    pred = Prediction(x0 + 0.1, x0, -torch.ones_like(x0))
    torch.testing.assert_close(vlb.term(pred, x0, *levels), vlb.term(pred, x0, *levels, "small"))
    pred = pred._replace(var=torch.ones_like(x0))
    torch.testing.assert_close(vlb.term(pred, x0, *levels), vlb.term(pred, x0, *levels, "large"))


def test_vlb_term_of_mixed_levels_equals_separate_batches(float64):
    """Training mixes first steps, which end in the decoder, with others."""
    schedule = Linear(100)
    x0 = (torch.randint(0, 256, (4, 1, 4, 4)) / 127.5 - 1).requires_grad_()
    t = torch.tensor([0.01, 0.5, 0.02, 1.0], dtype=torch.float64)
    s, up = vlb.neighbours(schedule, t)
    assert s.sigma.eq(0).tolist() == [True, False, False, False]
    torch.testing.assert_close(s.alpha[1:], schedule.alphas[torch.tensor([48, 0, 98])])
    pred = Prediction(0.9 * x0, x0, torch.linspace(-1, 1, 64).view(4, 1, 4, 4))
    level = schedule.level(t)
    found = vlb.term(pred, x0.detach(), s, level, up)
    for k in range(4):
        one = [type(level)(*(v[k] for v in other)) for other in (s, level, up)]
        alone = vlb.term(Prediction(*(v[k : k + 1] for v in pred)), x0[k : k + 1], *one)
        torch.testing.assert_close(found[k], alone[0])
    (grad,) = torch.autograd.grad(found.sum(), x0)
    assert grad.isfinite().all() and grad.abs().flatten(1).sum(1).gt(0).all()


def test_vlb_rejects_invalid_use():
    x0 = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="2C channels"):
        vlb.term(Prediction(x0, x0), x0, *at(Linear(), 0.4, 0.5, 0.6))
    with pytest.raises(ValueError, match="at least 2"):
        list(vlb.terms(GAUSSIAN, x0, Flow(), 1))
