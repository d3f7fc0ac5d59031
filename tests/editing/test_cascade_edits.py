"""Edits of a cascade: every stage performs them, the last one given the result of those before."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion import Denoiser, Pipeline
from diffusion.bench.analytic import Gaussian
from diffusion.denoiser.hints import LowResolution
from diffusion.denoiser.targets import V
from diffusion.generation.cascade import Cascade
from diffusion.generation.editing import from_noise, img2img, inpaint, interpolate, reconstruct, stop, to_noise, vary
from diffusion.guidance import ClassifierFree, Unbounded
from diffusion.samplers import DDIM, DDPM, Heun

from . import ideal

pytestmark = pytest.mark.usefixtures("float64")  # walks in both directions amplify rounding

STD = ideal.STD
SIZE = (1, 8, 8)


class Enlarging(nn.Module):
    """The ideal network for blocks of 2x2 equal pixels plus N(0, OWN^2), given the blocks with noise.

    Block values have a flat prior: x | seen ~ N(seen, strength^2 + OWN^2), pixel by pixel.
    """

    image_channels, OWN = 2, 0.1

    def forward(self, x, clock, y=None, keep=None):
        t = ideal.SCHEDULE.level((clock.double() + 1) / 1000).like(x)
        x, seen, strength = x.split(1, dim=1)
        pred = Gaussian(seen, (strength.double() ** 2 + self.OWN**2).sqrt())(x, t)
        return V().of(pred.x0, pred.eps, t)


class Copying(Enlarging):
    """The ideal network for blocks of exactly equal pixels."""

    OWN = 1e-6


def whole(sampler=None, augment=0.0, net=Enlarging, guidance=None):
    sampler = sampler or DDIM(50)
    base = ideal.model(sampler)
    base = replace(base, guidance=guidance) if guidance else base
    hint = LowResolution(2, 0.5)
    last = Pipeline(Denoiser(net(), ideal.SCHEDULE, V()), sampler, clamp=Unbounded(), hint=hint, shape=SIZE)
    return Cascade.of(base, last, augment=augment)


def enlarged(x):
    return F.interpolate(x, scale_factor=2)


def data(n, label=1, seed=0, own=0.0):
    draws = torch.randn(n, *SIZE, generator=torch.Generator().manual_seed(seed + 100))
    return enlarged(ideal.data(n, label, seed)) + own * draws


def test_the_small_images_and_masks_of_an_edit():
    """Means of blocks; a pixel is unknown if any of its pixels is."""
    model, x0 = whole(), data(3)
    torch.testing.assert_close(model.reduced(x0), ideal.data(3))
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2, 3] = mask[..., 4:6, 4:6] = True
    small = model.reduced_mask(mask)
    assert small.nonzero().tolist() == [[0, 0, 1, 1], [0, 0, 2, 2]]


@pytest.mark.parametrize("augment", [0.0, 0.3])
def test_inpaint_keeps_the_known_part_and_ignores_the_hidden_one(augment):
    model, x0 = whole(DDPM(10), augment), data(6, own=0.1)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 3:] = True  # through a column of blocks
    made = inpaint(model, x0, mask, seed=1, jumps=2, length=3)
    assert torch.equal(made[..., :3], x0[..., :3])
    assert (made[..., 3:] - x0[..., 3:]).abs().mean() > 0.1
    assert torch.equal(inpaint(model, x0.masked_fill(mask, 9.0), mask, seed=1, jumps=2, length=3), made)
    assert not torch.equal(inpaint(model, x0, mask, seed=2, jumps=2, length=3), made)
    torch.testing.assert_close(inpaint(model, x0, mask, seed=1, jumps=2, length=3, batch_size=4), made)
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    assert torch.equal(inpaint(model, x0, nothing, jumps=1), x0)


def test_edits_of_exact_enlargements_are_those_of_the_base():
    """A last stage that copies pixels: what the base makes of the small images, enlarged."""
    model, x0, y = whole(DDIM(20), net=Copying), data(4), torch.tensor([0, 1, 2, 1])
    small, base = model.reduced(x0), model.base
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[1:3, 1:] = True
    how = {"jumps": 2, "length": 3}
    wanted = {
        "inpaint": inpaint(base, small, hidden, y, 5, **how),
        "img2img": img2img(base, small, 0.6, y, 5),
        "reconstruct": reconstruct(base, small, y)[0],
        "vary": vary(base, small, 0.5, 2, y, 5),
        "interpolate": interpolate(base, small[:2], small[2:], 3, y[:2], y[2:]),
    }
    large = hidden.repeat_interleave(2, 0).repeat_interleave(2, 1)
    made = {
        "inpaint": inpaint(model, x0, large, y, 5, **how),
        "img2img": img2img(model, x0, 0.6, y, 5),
        "reconstruct": reconstruct(model, x0, y)[0],
        "vary": vary(model, x0, 0.5, 2, y, 5),
        "interpolate": interpolate(model, x0[:2], x0[2:], 3, y[:2], y[2:]),
    }
    for name, x in made.items():
        expected = wanted[name].repeat_interleave(2, -1).repeat_interleave(2, -2)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("augment", [0.0, 0.3])
def test_img2img_with_strength_0_is_the_input_and_1_is_sampling(augment):
    x0, y = data(5, own=0.1), torch.tensor([0, 1, 2, 0, 1])
    for sampler in (DDPM(10), DDIM(10), Heun(5)):
        model = whole(sampler, augment)
        assert torch.equal(img2img(model, x0, 0.0, y), x0)
        assert torch.equal(img2img(model, x0, 1.0, y, seed=7), model.sample(5, y, seed=7))
    made = img2img(model, x0, 0.5, y, seed=2)
    torch.testing.assert_close(img2img(model, x0, 0.5, y, seed=2, batch_size=2), made)
    assert not torch.equal(img2img(model, x0, 0.5, y, seed=3), made)
    other = img2img(model, x0, 0.9, y.flip(0) + 1 - y.flip(0), seed=2)  # all label 1
    assert (other - img2img(model, x0, 0.9, y, seed=2)).abs().max() > 0.1


@pytest.mark.parametrize("augment", [0.0, 0.3])
def test_inversion_finds_the_noise_of_every_stage(augment):
    """Closed form of each: (x_0 - mean) / std, where the last stage's mean is its input."""
    model, x0 = whole(DDIM(100), augment), data(8, own=0.1)
    base, added, last = to_noise(model, x0)
    assert base.shape == added.shape == (8, 1, 4, 4) and last.shape == (8, *SIZE)
    torch.testing.assert_close(base, (model.reduced(x0) - ideal.MEANS[1]) / STD, rtol=0.03, atol=0.03)
    assert torch.equal(added, model.hint_noise(added))  # that of seed 0
    seen = enlarged(model.reduced(x0) + augment * added)
    std = (augment**2 + Enlarging.OWN**2) ** 0.5
    torch.testing.assert_close(last, (x0 - seen) / std, rtol=0.1, atol=0.04)  # first order in the step
    torch.testing.assert_close(from_noise(model, [base, added, last]), x0, rtol=0, atol=1e-4)
    made, error = reconstruct(model, x0)
    torch.testing.assert_close(error, (made - x0).square().mean((1, 2, 3)).sqrt())
    assert float(error.max()) < 1e-4


def test_variations_go_from_the_image_to_a_sample():
    model, x0, y = whole(DDIM(15), 0.3), data(4, own=0.1), torch.tensor([0, 1, 2, 1])
    assert float((vary(model, x0, 0.0, 1, y)[:, 0] - x0).abs().max()) < 2e-3
    away = [float((vary(model, x0, amount, 1, y)[:, 0] - x0).square().mean().sqrt()) for amount in (0.1, 0.3, 0.6, 1)]
    assert away == sorted(away) and away[0] > 0.02
    made = vary(model, x0, 1.0, 2, y, seed=5)
    for k in range(2):
        torch.testing.assert_close(made[:, k], model.sample(4, y, 5 + k))
    torch.testing.assert_close(vary(model, x0[:2], 1.0, 2, y[:2], seed=5, batch_size=1), made[:2])


def test_interpolation_matches_its_ends():
    model, a, b = whole(DDIM(50), 0.3), data(3, 0, 1, own=0.1), data(3, 2, 2, own=0.1)
    path = interpolate(model, a, b, 4, torch.zeros(3).long(), torch.full((3,), 2))
    assert path.shape == (3, 4, *SIZE)
    torch.testing.assert_close(path[:, 0], a, rtol=0, atol=2e-3)
    torch.testing.assert_close(path[:, -1], b, rtol=0, atol=2e-3)
    middle = path.mean((0, 2, 3, 4))
    assert middle.tolist() == sorted(middle.tolist())  # the mean goes from one label's to the other's


def test_stop_shows_the_last_stage():
    model, y = whole(DDIM(10), 0.3), torch.tensor([0, 2])
    frames = stop(model, [1.0, 0.5, 0.0], 2, y, seed=3)
    assert [f.x.shape for f in frames] == [(2, *SIZE)] * 3
    assert torch.equal(frames[0].x, model.start(2, 3)) and torch.equal(frames[2].x, model.sample(2, y, 3))


def test_guidance_of_inversion_is_off_unless_given():
    """Given one, the stages before the last have their own."""
    plain, guided = whole(), whole(guidance=ClassifierFree(3.0))
    x0, y = data(2, 0), torch.tensor([0, 0])
    assert torch.equal(to_noise(guided, x0, y)[0], to_noise(plain, x0, y)[0])
    own = to_noise(guided, x0, y, guidance=guided.guidance)[0]
    torch.testing.assert_close(own, to_noise(guided.base, guided.reduced(x0), y, guidance=ClassifierFree(3.0)))
    assert (own - to_noise(plain, x0, y)[0]).abs().max() > 0.1


def test_images_of_a_wrong_size_are_refused():
    model, small = whole(), ideal.data(2)
    edits = [
        lambda: inpaint(model, small, torch.ones(4, 4, dtype=torch.bool)), lambda: img2img(model, small),
        lambda: reconstruct(model, small), lambda: vary(model, small),
    ]  # fmt: skip
    for edit in edits:
        with pytest.raises(ValueError, match=r"wanted images \(B, 1, 8, 8\)"):
            edit()
    with pytest.raises(ValueError, match="only DDIM with eta = 0"):
        reconstruct(model, data(2), sampler=Heun(5))
