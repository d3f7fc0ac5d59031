"""Sliced Wasserstein distance and power spectrum against closed forms, on images of any size and number of channels."""

import math

import pytest
import torch

from diffusion.metrics.base import Features, Reference, bootstrap
from diffusion.metrics.spectrum import ROUNDING, Spectrum, frequencies, rings, spectra
from diffusion.metrics.swd import SWD, blurred, cut, pyramid, wasserstein

SHAPES = [(1, 8, 8), (3, 32, 32), (5, 48, 80), (2, 9, 31), (4, 3, 20), (1, 1, 12), (1, 28, 28), (3, 1, 1)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(x, labels=None):
    return Features(x, x.flatten(1), x.new_zeros(len(x), 0), labels)


def smooth(n, channels=1, side=16, seed=0):
    return blurred(blurred(normal(n, channels, side, side, seed=seed)))


# --- Wasserstein ------------------------------------------------------------------------------------------------------


def test_distance_of_shifted_numbers_is_the_shift():
    x = normal(500, 3).double()
    shift = torch.tensor([0.0, 0.25, -2.0]).double()
    value, pull = wasserstein(x + shift, x[torch.randperm(500)])
    torch.testing.assert_close(value, shift.abs(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pull[:, 0], torch.zeros(500).double())
    # Far away from all of b, a number adds its own distance: the influence is x less its mean.
    value, pull = wasserstein(x + 100, x)
    torch.testing.assert_close(pull, x - x.mean(0), rtol=1e-9, atol=1e-9)


def test_distance_of_scaled_normals_is_its_closed_form():
    """W(N(0, s^2), N(0, 1)) = |s - 1| (2 / pi)^(1/2), on exact quantiles, with unequal numbers."""
    quantiles = lambda n: torch.special.ndtri((torch.arange(n).double() + 0.5) / n)[:, None]  # noqa: E731
    value, _ = wasserstein(1.5 * quantiles(40_000), quantiles(30_000))
    assert float(value) == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=1e-3)


def test_distance_of_few_numbers_by_hand():
    value, _ = wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [3.0]]))
    assert float(value) == pytest.approx(1 / 6 * 1 + 1 / 3 * 2)  # F - G is -1/6 up to 1, then 1/3 up to 3


def test_influence_is_the_derivative():
    a, b = normal(30, 1).double(), 0.3 + 1.2 * normal(41, 1, seed=1).double()
    value, pull = wasserstein(a, b)
    for k in (0, 11, 29):  # one of 3,001 numbers; F and G differ by 1/1230 or more, so W is linear in so small a weight
        more = torch.cat([a.repeat(100, 1), a[k : k + 1]])
        slope = (wasserstein(more, b)[0] - value) * len(more)
        assert float(slope) == pytest.approx(float(pull[k]), rel=1e-8, abs=1e-8)


# --- SWD --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 28, 45), (1, 13, 13)])
def test_pyramid_is_complete_and_a_constant_has_no_details(shape):
    x = normal(2, *shape).double()
    *details, last = pyramid(x)
    assert min(last.shape[-2:]) >= 7 > (min(last.shape[-2:]) + 1) // 2 - 1
    for level in reversed(details):
        wide = level.new_zeros(*last.shape[:2], 2 * last.shape[2], 2 * last.shape[3])
        wide[..., ::2, ::2] = 4 * last
        last = level + blurred(wide)[..., : level.shape[2], : level.shape[3]]
    torch.testing.assert_close(last, x, rtol=1e-12, atol=1e-12)
    *details, last = pyramid(torch.full((1, *shape), 0.7).double())
    assert all(float(v.abs().max()) < 1e-12 for v in details)
    torch.testing.assert_close(last, torch.full_like(last, 0.7))


def test_patches_are_cut_from_the_image():
    x = torch.arange(2 * 3 * 20 * 30).view(2, 3, 20, 30).float()
    found = cut(x, 5, torch.Generator().manual_seed(0))
    assert found.shape == (2, 5, 7, 7, 3)
    for n in range(2):
        for p in range(5):
            corner = int(found[n, p, 0, 0, 0]) - int(x[n, 0, 0, 0])
            i, j = divmod(corner, 30)
            torch.testing.assert_close(found[n, p], x[n, :, i : i + 7, j : j + 7].permute(1, 2, 0))
    assert cut(x[..., :8, :8], 5, torch.Generator()).shape == (2, 4, 7, 7, 3)  # all that there are


def test_swd_of_a_brighter_set_is_its_closed_form():
    """Images shifted by s deviations: mean over directions r of |s sum r|, which is s (2 / pi)^(1/2) on average."""
    x = normal(60, 2, 8, 8)
    moved = SWD(directions=1500).scores(images(x + 0.5 * x.std()), images(x))["swd"]
    assert moved.value == pytest.approx(500 * math.sqrt(2 / math.pi), rel=0.06)


@pytest.mark.parametrize("shape", SHAPES)
def test_swd_of_any_shape_is_zero_for_equal_sets_and_grows(shape):
    x = normal(20, *shape)
    found = [SWD(4, 8).scores(images(x + far), images(x)) for far in (0, 0.5, 1)]
    for name in SWD.better:
        zero, one, two = (f[name].value for f in found)
        details = name == "swd_fine" and min(shape[1:]) >= 13  # which a shift leaves as they are
        assert zero == 0 and (details and one < 1e-3 or 0 < one < two)
    assert SWD(4, 8).scores(images(x), images(x + 1))["swd"].terms.shape == (20,)


def test_swd_finds_the_level_of_a_defect():
    real, fake = smooth(150), smooth(150, seed=1)
    floor, noisy, flat = (
        SWD(8, 32).scores(images(v), images(real)) for v in (fake, fake + 0.1 * normal(*fake.shape, seed=2), 0.5 * fake)
    )
    assert noisy["swd_fine"].value > 5 * floor["swd_fine"].value
    assert noisy["swd_fine"].value > 3 * noisy["swd_coarse"].value and flat["swd_coarse"].value > 100


def test_swd_is_a_function_of_the_images_and_the_seed():
    x, y = smooth(100), smooth(100, seed=1)
    first, again = (SWD(8, 32).scores(images(x), images(y))["swd"] for _ in range(2))
    other = SWD(8, 32, seed=1).scores(images(x), images(y))["swd"]
    assert first.value == again.value and torch.equal(first.terms, again.terms)
    assert other.value != first.value and other.value == pytest.approx(first.value, rel=0.3)


# --- spectrum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("H, W, ky, kx", [(32, 32, 0, 5), (16, 48, 3, 0), (32, 32, 6, 8)])
def test_spectrum_of_a_sine_is_one_ring(H, W, ky, kx):
    """A sin: |FFT|^2 / HW is A^2 HW / 4 at two frequencies, divided by the number in their ring."""
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    wave = 0.8 * torch.sin(2 * math.pi * (ky * y / H + kx * x / W) + 0.3) + 0.1
    power = spectra(wave[None, None])[0, 0]
    k = int((frequencies(H, W) - math.hypot(ky / H, kx / W)).abs().argmin())
    assert frequencies(H, W)[k] == pytest.approx(math.hypot(ky / H, kx / W))
    assert float(power[k]) == pytest.approx(0.8**2 * H * W / 4 * 2 / int((rings(H, W) == k + 1).sum()), rel=1e-5)
    power[k] = 0
    assert float(power.max()) < 1e-9


def test_spectrum_of_white_noise_is_flat():
    power = spectra(0.3 * normal(500, 3, 24, 40))
    assert power.shape == (500, 3, len(frequencies(24, 40)))
    torch.testing.assert_close(power.mean((0, 1)), torch.full((power.shape[2],), 0.09).double(), rtol=0.06, atol=0)


@pytest.mark.parametrize("H, W", [(h, w) for h in (1, 2, 3, 4, 5, 8, 9, 28, 64) for w in (1, 2, 3, 7, 8, 31, 80)])
def test_rings_leave_none_empty(H, W):
    ring = rings(H, W)
    count = torch.bincount(ring.flatten())
    assert count[0] == 1 and (count > 0).all() and len(count) == len(frequencies(H, W)) + 1
    assert H * W == 1 or (frequencies(H, W) >= 0.25).any()


def test_spectrum_of_a_louder_set_is_in_decibels():
    """c times the images: 20 log10 c in every ring, but for the rounding noise."""
    x = normal(100, 2, 16, 24)
    found = Spectrum().scores(images(2 * x), images(x))
    assert found["spectrum"].value == pytest.approx(20 * math.log10(2), rel=1e-4)
    assert found["spectrum_high"].value == pytest.approx(20 * math.log10(2), rel=1e-4)
    quiet = Spectrum().scores(images(x * 0), images(x))["spectrum_high"].value
    assert quiet == pytest.approx(10 * math.log10(ROUNDING / (1 + ROUNDING)), rel=0.01)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1:] != (1, 1)])
def test_spectrum_of_any_shape_is_zero_for_equal_sets(shape):
    x = normal(30, *shape)
    found = Spectrum().scores(images(x), images(x))
    assert found["spectrum"].value == found["spectrum_high"].value == 0 and found["spectrum"].terms.shape == (30,)
    assert Spectrum().scores(images(x), images(3 * x))["spectrum_high"].value < -9


def test_spectrum_refuses_single_pixels():
    x = images(normal(30, 3, 1, 1))
    with pytest.raises(ValueError, match="spectrum: needs images of more than one pixel"):
        Spectrum().figures(x, Reference(x, x))


def test_spectrum_tells_blur_from_noise():
    x, y = (blurred(normal(200, 3, 16, 16, seed=seed)) for seed in range(2))
    high = [
        Spectrum().scores(images(v), images(x))["spectrum_high"].value
        for v in (y, blurred(y), y + 0.1 * normal(*y.shape, seed=2))
    ]
    assert abs(high[0]) < 0.5 and high[1] < -3 and high[2] > 3


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SWD(4, 16), Spectrum()], ids=lambda kind: kind.key)
@pytest.mark.parametrize("classes", [0, 3])
def test_intervals_have_the_width_of_the_spread(kind, classes):
    """Over 40 sets the standard deviation is what the intervals say, with labels whose shares are fixed, too."""
    y = torch.arange(60) % classes if classes else None
    shift = torch.zeros(60, 1, 1, 1) if y is None else y.view(-1, 1, 1, 1).float()

    def draw(seed):
        return images((1 + 0.3 * normal(60, 1, 1, 1, seed=seed)) * smooth(60, seed=seed + 1000) * 1.4 + shift, y)

    real = images(smooth(60, seed=7) + shift, y)
    found = [kind.scores(draw(seed), real) for seed in range(40)]
    for name in kind.better:
        between = torch.tensor([f[name].value for f in found]).std()
        half = torch.tensor([(lambda e: e[1] - e[0])(bootstrap(f[name])) / (2 * 1.96) for f in found[:3]]).mean()
        assert 0.7 < float(half / between) < 1.4, name


@pytest.mark.parametrize("kind", [SWD(8, 32), Spectrum()], ids=lambda kind: kind.key)
def test_figures_have_floors_at_equal_numbers(kind):
    reference = Reference(images(smooth(300, 3)), images(smooth(50, 3, seed=1)))
    figures = {f.name: f for f in kind.figures(images(1.3 * smooth(200, 3, seed=2)), reference)}
    assert set(figures) == set(kind.better)
    for f in figures.values():
        assert f.m == 50 and f.low < f.value < f.high and f.better == kind.better[f.name]
    main = figures[kind.key]
    assert main.matched > main.floor > 0
