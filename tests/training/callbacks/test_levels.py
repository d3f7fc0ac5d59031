"""Errors by noise level: the unit in closed form, the ideal denoiser, ratios and error bars, training times."""

import math

import pytest
import torch

from diffusion.bench.analytic import Empirical, Gaussian
from diffusion.denoiser import Condition, Denoiser, Prediction
from diffusion.denoiser.targets import EDM, V, Velocity
from diffusion.loss.objective import Objective
from diffusion.loss.weights import Huber, MinSNR
from diffusion.noise import VE, Cosine, Flow, Karras, Linear
from diffusion.noise.draws import FixedDraws
from diffusion.noise.times import LogitNormal, LogNormal, LossAware, Stratified, Uniform
from diffusion.training.callbacks.levels import BINS, NAMES, Probe, Spectrum, bins, ideal, law, ratio, spread


def smooth(n, size=8):
    """Images whose power falls with frequency, with a mean that is not zero, from a fixed seed."""
    g = torch.Generator().manual_seed(0)
    f = torch.fft.fft2(torch.randn(n, 2, size, size, generator=g))
    k = torch.fft.fftfreq(size)
    return 0.2 + 0.3 * torch.fft.ifft2(f / (1 + 30 * (k[:, None] ** 2 + k**2))).real


def test_bins_have_names_and_ends():
    assert bins(torch.tensor([-math.inf, -30, -8.01, -8, -0.1, 0, 7.9, 8, 99])).tolist() == [0, 0, 0, 1, 4, 5, 8, 9, 9]
    assert len(NAMES) == BINS and NAMES[0] == "0_log_snr_below_-8"
    assert NAMES[5] == "5_log_snr_0_to_2" and NAMES[9] == "9_log_snr_above_8"


@pytest.mark.parametrize("log_snr", [-6.0, -1.0, 0.0, 3.0, 8.0])
def test_the_linear_error_matches_the_linear_denoiser(log_snr):
    """The Monte Carlo error on the images of the spectrum, against the closed form."""
    images = smooth(2000)
    spectrum, schedule = Spectrum(images), Linear()
    t = schedule.level(schedule.time(torch.full((len(images),), log_snr))).like(images)
    x = t.alpha * images + t.sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    error = (spectrum.denoise(x, t) - images).square().mean()
    assert float(error) == pytest.approx(float(spectrum.error(torch.tensor([log_snr]))), rel=0.02)


def test_the_linear_denoiser_of_white_images_is_the_ideal_one():
    """Independent Gaussian pixels: the closed form s^2 / (snr s^2 + 1), and the denoiser of `Gaussian`."""
    images = 0.1 + 0.5 * torch.randn(20000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    spectrum, log_snr = Spectrum(images), torch.tensor([-5.0, 0.0, 4.0])
    expected = 0.25 / (0.25 * log_snr.exp() + 1)
    torch.testing.assert_close(spectrum.error(log_snr).float(), expected, rtol=0.02, atol=0)
    t = Cosine().level(torch.tensor([0.3, 0.6, 0.9])).like(images[:3])
    x = t.alpha * images[:3] + t.sigma
    torch.testing.assert_close(spectrum.denoise(x, t), Gaussian(0.1, 0.5)(x, t).x0, rtol=0, atol=0.03)


def test_the_table_of_the_linear_error_is_fine_enough():
    spectrum = Spectrum(smooth(100))
    log_snr = torch.linspace(-25, 29, 997, dtype=torch.float64)
    var = spectrum.var.double().flatten()
    expected = (var / (log_snr.exp()[:, None] * var + 1)).mean(1)
    torch.testing.assert_close(spectrum.error(log_snr), expected, rtol=1e-4, atol=0)
    assert float(spectrum.error(torch.tensor([-math.inf]))) == pytest.approx(float(var.mean()), rel=1e-6)


def test_no_linear_denoiser_is_better():
    """Other gains at each frequency have a larger error."""
    images = smooth(2000)
    spectrum = Spectrum(images)
    var = spectrum.var.double()
    best = float(spectrum.error(torch.zeros(1)))
    for factor in (0.8, 0.9, 1.1, 1.2):
        gain = factor * var / (var + 1)  # alpha = sigma = 1: error of gain g is (1 - g)^2 var + g^2
        assert float(((1 - gain) ** 2 * var + gain**2).mean()) > best


def test_the_ideal_denoiser_matches_the_empirical_posterior():
    """Against `analytic.Empirical` in float64, from certainty to a mean of all."""
    images = smooth(300)
    schedule = Linear()
    t = schedule.level(spread(schedule, torch.linspace(0, 0.999, 20).double()))
    x0 = images[:20]
    level = t.like(x0)
    x = level.alpha * x0 + level.sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    expected = Empirical(images)(x.double(), t).x0.float()
    torch.testing.assert_close(ideal(x, level, images), expected, rtol=0, atol=1e-4)
    assert (expected - x0)[-5:].abs().max() < 1e-4 < (expected - x0)[:5].abs().max()  # both ends are covered


@pytest.mark.parametrize("schedule, low, high", [(Linear(), -10, 9.2), (Flow(), -10, 10), (Karras(), -8.8, 10)])
def test_levels_of_a_probe_are_even_in_log_snr(schedule, low, high):
    log_snr = schedule.level(spread(schedule, (torch.arange(200).double() + 0.5) / 200)).log_snr
    even = torch.linspace(low, high, 200).double()
    assert (log_snr - even).abs().max() < 0.75  # tables are coarse at their clean end
    if schedule.T:
        t = spread(schedule, torch.rand(50).double()) * schedule.T
        assert torch.equal(t, t.round())


def test_ratios_and_error_bars_match_values_by_hand():
    """Values by hand, and coverage: the error bar equals the standard deviation over many sets."""
    k = torch.tensor([0] * 4 + [5] * 3)
    top, bottom = torch.tensor([1.0, 2, 3, 4, 9, 9, 9]), torch.ones(7)
    got = ratio(top.double(), bottom.double(), k)
    assert float(got.value[0]) == 2.5 and float(got.error[0]) == pytest.approx((5 * 4 / 3) ** 0.5 / 4)
    assert got.value[5].isnan() and got.mean == 2.5 and got.margin == pytest.approx(float(got.error[0]))
    g = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(400):
        bottom = 1 + torch.rand(50, generator=g, dtype=torch.float64)
        top = 3 * bottom + 0.3 * torch.randn(50, generator=g, dtype=torch.float64)
        one = ratio(top, bottom, torch.zeros(50, dtype=torch.long))
        values.append(float(one.value[0])), errors.append(float(one.error[0]))
    spread_ = float(torch.tensor(values).std())
    assert sum(errors) / 400 == pytest.approx(spread_, rel=0.1)
    assert sum(values) / 400 == pytest.approx(3, abs=4 * spread_ / 20)


def test_ratio_of_ratios_is_relative():
    k = torch.zeros(100, dtype=torch.long)
    a, b = (ratio(torch.full((100,), v).double(), torch.ones(100).double(), k) for v in (1.5, 1.2))
    assert a.over(b).mean == pytest.approx(0.25) and a.over(b).margin == 0


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Flow(), Karras(), VE()], ids=lambda s: type(s).__name__)
def test_the_linear_denoiser_scores_one_and_the_ideal_one_less(schedule):
    images = smooth(400)
    spectrum = Spectrum(images)
    probe = Probe(images[:200], torch.zeros(200), schedule, 0, spectrum)
    linear = probe.score(probe.of(spectrum.denoise(probe.x, probe.t)))
    assert linear.mean == pytest.approx(1, abs=1e-6)
    assert float(probe.linear.mean()) == pytest.approx(1, abs=0.1)  # the unit is its expected error
    best = probe.score(probe.of(ideal(probe.x, probe.t, images)))
    assert best.mean < 0.7 and float(best.value[~best.value.isnan()].max()) < 1.02


def test_probe_uses_its_own_levels_and_labels_in_any_batches():
    images, y = smooth(50), torch.arange(50)
    probe = Probe(images, y, Cosine(), 0, Spectrum(images))
    asked = []

    def knows(x, t, cond):
        asked.append((len(x), cond.y))
        eps = (x - t.like(x).alpha * images[cond.y]) / t.like(x).sigma
        torch.testing.assert_close(eps, FixedDraws(0, cond.y).normal(x), rtol=1e-3, atol=0.01)
        return Prediction(images[cond.y], eps)

    assert float(probe.errors(knows, y, torch.device("cpu"), 20).max()) == 0
    assert [n for n, _ in asked] == [20, 20, 10] and torch.equal(torch.cat([c for _, c in asked]), y)


@pytest.mark.parametrize("weight, distance", [(MinSNR(), Huber()), (MinSNR(1.0), Huber(1.0))])
@pytest.mark.parametrize("schedule, target", [(Cosine(), V()), (Flow(), Velocity()), (Karras(), EDM())])
def test_the_error_of_a_step_is_independent_of_weight_distance_and_target(schedule, target, weight, distance):
    """A network that outputs 0 under V, Velocity and EDM, and its error of x_0 by hand."""

    class Silent(torch.nn.Module):
        def forward(self, x, clock, y=None, keep=None):
            return torch.zeros_like(x)

    x0 = smooth(16)
    draws = FixedDraws(3, torch.arange(16))
    denoiser = Denoiser(Silent(), schedule, target)
    terms = Objective(weight=weight, distance=distance)(denoiser, x0, Condition(), draws.normal, draws.uniform)
    t = schedule.level(schedule.quantile(draws.uniform(16))).like(x0)
    x = t.alpha * x0 + t.sigma * draws.normal(x0)
    expected = (target.x0(x, torch.zeros_like(x), t) - x0).square().mean((1, 2, 3))
    torch.testing.assert_close(terms.error, expected)
    assert not terms.error.requires_grad


def test_shares_of_log_normal_times_match_the_normal_law():
    """LogNormal's shares are those of a normal law of mean 2.4 and deviation 2.4 in log-SNR."""
    share, low, high = law(LogNormal(), Karras())
    ends = torch.special.ndtr((torch.arange(-8, 10, 2).double() - 2.4) / 2.4)
    expected = torch.diff(ends, prepend=torch.zeros(1), append=torch.ones(1))
    torch.testing.assert_close(share, expected, rtol=0, atol=2 / 4096)
    z = float(torch.special.ndtri(torch.tensor(1e-5, dtype=torch.float64)))
    assert float(low) == pytest.approx(2.4 + 2.4 * z, abs=0.01) and float(high) == pytest.approx(12.43, abs=0.01)


@pytest.mark.parametrize("times", [Uniform(), Stratified(), LogitNormal(), LossAware()], ids=lambda t: type(t).__name__)
def test_shares_of_every_distribution_of_times_add_up_to_one(times):
    share, low, high = law(times, Flow())
    assert float(share.sum()) == pytest.approx(1) and low < -7 and high > 7
    if not isinstance(times, LogitNormal):  # t < sigmoid(-v) for log-SNR above 2 v
        assert float(share[9]) == pytest.approx(1 / (1 + math.exp(4)) - 1e-3, abs=1e-3)


def test_the_ideal_denoiser_with_labels_is_that_of_the_class():
    images = smooth(60)
    label = torch.arange(60) % 3
    t = Cosine().level(torch.full((6,), 0.6, dtype=torch.float64)).like(images[:6])
    x = t.alpha * images[:6] + t.sigma * torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    told = ideal(x, t, images, label[:6, None] == label)
    for i in range(6):
        one = type(t)(*(v[[i]] for v in t))
        torch.testing.assert_close(told[[i]], ideal(x[[i]], one, images[label == label[i]]))
