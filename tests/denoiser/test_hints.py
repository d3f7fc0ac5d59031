"""Hints: values by hand, reproducible randomness, and users' pictures."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.denoiser import Denoiser
from diffusion.denoiser.hints import Hint, LowResolution, Masked, Paired, blurred, channels, uniform
from diffusion.noise import Cosine
from diffusion.noise.draws import ImageDraws
from diffusion.support.specs import build, concrete, spec

KINDS = sorted(concrete(Hint, "diffusion") - {Paired}, key=lambda k: k.__name__)
ALL = [*(kind() for kind in KINDS), LowResolution(2, noise=0.3), LowResolution(4, 0.3, True), Masked(0.1, 0.5, holes=3)]


@pytest.mark.parametrize("hint", ALL, ids=lambda h: f"{type(h).__name__}{list(vars(h).values())}")
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 8)])
def test_every_hint_has_its_shape_range_spec_and_per_image_draws(hint, shape):
    """The declared shape, range [-1, 1], spec, and draws that do not depend on the batch."""
    again = build(spec(hint))
    assert vars(again) == vars(hint) and type(again) is type(hint)
    x0 = torch.rand(6, *shape) * 2 - 1
    whole = hint(x0, ImageDraws(3, range(6)))
    assert whole.shape == (6, *hint.shape(shape)) and whole.dtype == x0.dtype
    parts = torch.cat([again(x0[:2], ImageDraws(3, range(2))), again(x0[2:], ImageDraws(3, range(2, 6)))])
    assert torch.equal(whole, parts)
    assert hint.show(whole, shape).shape == x0.shape
    other = hint(x0, ImageDraws(4, range(6)))
    assert torch.equal(other, whole) == (isinstance(hint, LowResolution) and not hint.noise)


def test_hint_uniform_draws_are_uniform():
    u = uniform(torch.randn_like, torch.empty(200_000)).double().sort().values
    assert 0 <= u[0] and u[-1] < 1
    assert float((u - (torch.arange(200_000) + 0.5) / 200_000).abs().max()) < 1.95 / 200_000**0.5  # Kolmogorov, 0.1 %
    assert float(uniform(lambda x: torch.full_like(x, 9), torch.empty(1))) < 1


def test_low_resolution_is_the_mean_of_blocks():
    x0 = torch.arange(32.0).reshape(1, 2, 4, 4) / 16 - 1
    by_hand = [[x0[0, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for i in (0, 1) for j in (0, 1)] for c in (0, 1)]
    assert torch.equal(LowResolution(2)(x0).flatten(2)[0], torch.tensor(by_hand))
    shown = LowResolution(2).show(LowResolution(2)(x0), (2, 4, 4))
    assert torch.equal(shown[0, 0, :2, :2], torch.full((2, 2), float(by_hand[0][0])))  # a pixel fills its block


def test_noise_augmentation_reports_its_strength():
    """Half of the strengths are below 0.2 of at most 0.4; an image's last channel is the strength of its noise."""
    torch.manual_seed(0)
    hint, x0 = LowResolution(2, noise=0.4), torch.zeros(500, 3, 32, 32)
    low, strength = hint(x0).split((3, 1), dim=1)
    assert torch.equal(strength, strength[:, :, :1, :1].expand_as(strength))
    s = strength[:, 0, 0, 0]
    assert 0 <= s.min() and s.max() <= 0.4 and 0.18 < s.median() < 0.22
    assert (low.flatten(1).std(1) / s - 1).abs().max() < 0.12  # 768 numbers: 2.6 % of standard error
    assert hint.read(torch.zeros(1, 3, 16, 16), (3, 32, 32))[:, 3].abs().max() == 0  # a user's picture has strength 0


def test_generated_images_receive_noise_of_the_given_strength():
    """The strength is in the last channel; without noise in training there is no such channel, and 0 is allowed."""
    torch.manual_seed(0)
    hint, low = LowResolution(2, noise=0.4), torch.rand(4, 3, 64, 64)
    noised = hint.augmented(low, 0.3)
    assert noised.shape == (4, 4, 64, 64) and torch.equal(noised[:, 3], torch.full((4, 64, 64), 0.3))
    assert float((noised[:, :3] - low).std()) == pytest.approx(0.3, rel=0.02)
    assert torch.equal(hint.augmented(low, 0)[:, :3], low)
    assert torch.equal(LowResolution(2).augmented(low, 0), low)
    for model, strength in ((hint, 0.41), (hint, -0.1), (LowResolution(2), 0.1)):
        with pytest.raises(ValueError, match="the strength of the noise must lie in 0"):
            model.augmented(low, strength)


def test_blur_is_a_gaussian_of_the_given_width(float64):
    """A single bright pixel becomes the outer product of two sampled Gaussians, cut off at 2 pixels; by hand."""
    x = torch.zeros(2, 1, 9, 9)
    x[:, :, 4, 4] = 1
    std = torch.tensor([0.4, 0.6]).reshape(2, 1, 1, 1)
    for image, s in zip(blurred(x, std), (0.4, 0.6), strict=True):
        w = torch.tensor([math.exp(-(k**2) / (2 * s**2)) for k in range(-2, 3)])
        w /= w.sum()
        torch.testing.assert_close(image[0, 2:7, 2:7], w[:, None] * w)
        assert float(image.sum()) == pytest.approx(1) and not image[0, :2].any()
    flat = torch.full((2, 3, 4, 5), 0.7)
    torch.testing.assert_close(blurred(flat, std), flat)  # the border too


def test_half_of_the_small_images_are_blurred_in_training_and_none_later():
    torch.manual_seed(0)
    x0 = torch.rand(600, 1, 8, 8)
    hint, mean = LowResolution(2, blur=True), LowResolution(2)(x0)
    same = (hint(x0) == mean).flatten(1).all(1)
    assert 240 < int(same.sum()) < 360
    assert torch.equal(hint.read(mean, (1, 8, 8)), mean) and torch.equal(hint.augmented(mean, 0), mean)


def test_masks_are_rectangles_of_the_requested_sizes():
    torch.manual_seed(0)
    x0 = torch.rand(2000, 3, 10, 20) + 0.1  # nowhere 0
    picture, known = Masked(0.3, 0.6)(x0).split((3, 1), dim=1)
    assert set(known.unique().tolist()) == {0, 1}
    assert torch.equal(picture, x0 * known)
    rows, columns = (known == 0).any(3)[:, 0], (known == 0).any(2)[:, 0]  # the hole's extent
    assert torch.equal(known[:, 0] == 0, rows[:, :, None] & columns[:, None, :])  # one full rectangle
    assert set(rows.sum(1).tolist()) == {3, 4, 5, 6} and set(columns.sum(1).tolist()) == set(range(6, 13))
    for extent in (rows, columns):
        edges = extent.float().mean(0)
        assert edges[0] > 0.05 and abs(float(edges[0] - edges[-1])) < 0.05  # every position, symmetric
    assert float((Masked(0.3, 0.6, holes=4)(x0)[:, 3] == 0).float().mean()) > 1.8 * float((known == 0).float().mean())
    assert Masked(1, 1)(x0)[:, 3].max() == 0 and Masked(0.01, 0.01)(x0)[:, 3].sum() == 2000 * (200 - 1)


def test_hints_read_users_pictures():
    x0 = torch.rand(2, 1, 8, 8) * 2 - 1
    small = LowResolution(4)(x0)
    assert torch.equal(LowResolution(4).read(x0, (1, 8, 8)), small)  # a full-size picture is reduced
    assert torch.equal(LowResolution(4).read(small, (1, 8, 8)), small)
    alpha = torch.ones(2, 1, 8, 8)
    alpha[:, :, 2:5] = -1
    hint = Masked().read(torch.cat([x0, alpha], dim=1), (1, 8, 8))
    assert torch.equal(hint[:, 1:], (alpha + 1) / 2)
    assert torch.equal(hint[:, :1], torch.where(alpha > 0, x0, torch.zeros(())))


@pytest.mark.parametrize("make, words", [
    (lambda: LowResolution(1), "factor must be at least 2"),
    (lambda: LowResolution(2, -1), "noise at least 0"),
    (lambda: LowResolution(3).shape((1, 8, 8)), "factor 3 does not divide images of 8x8"),
    (lambda: LowResolution(2).read(torch.zeros(1, 1, 5, 5), (1, 8, 8)), "pictures of 4x4 pixels, or 8x8"),
    (lambda: LowResolution(2).read(torch.zeros(1, 1, 4, 4), (3, 8, 8)), "with 3 channels; got 4x4 with 1"),
    (lambda: Masked(0.5, 0.4), "low <= high"),
    (lambda: Masked(holes=0), "holes >= 1"),
    (lambda: Masked().read(torch.zeros(1, 1, 8, 8), (1, 8, 8)), "transparent where"),
    (lambda: Masked().read(torch.ones(1, 2, 8, 8), (1, 8, 8)), "opaque everywhere"),
])  # fmt: skip
def test_hint_errors_state_the_remedy(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


def test_a_larger_hint_is_folded_beside_latents():
    """2x2 pixels become channels, so that nothing of a mask is lost; smaller ones and other ratios are resized."""
    latent, hint = (2, 4, 4), torch.randn(3, 2, 8, 8)
    assert channels((2, 8, 8), latent) == 8 and channels((2, 4, 4), latent) == channels((2, 2, 2), latent) == 2
    assert channels((2, 6, 6), latent) == channels((2, 8, 4), latent) == 2
    x = torch.zeros(3, *latent)
    net = nn.Conv2d(10, 2, 1)
    net.image_channels = 8
    assert torch.equal(Denoiser(net, Cosine(20)).fitted(hint, x), F.pixel_unshuffle(hint, 2))
    net.image_channels = 2
    assert torch.equal(Denoiser(net, Cosine(20)).fitted(hint, x), F.interpolate(hint, (4, 4)))
    with pytest.raises(ValueError, match=r"expected a condition image \(3, 8, H, W\), got \(3, 2, 12, 12\)"):
        net.image_channels = 8
        Denoiser(net, Cosine(20)).fitted(torch.randn(3, 2, 12, 12), x)
