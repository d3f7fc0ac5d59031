"""Cascades: closed forms for Gaussian pixels, streams, every sampler and guidance, and refusals."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusion import Denoiser, Pipeline
from diffusion.bench.analytic import Gaussian
from diffusion.denoiser.hints import LowResolution, Masked
from diffusion.denoiser.targets import V
from diffusion.generation.cascade import Cascade
from diffusion.generation.choices import Choices
from diffusion.guidance import APG, ClassifierFree, Interval, Plain, Unbounded
from diffusion.nets import ResidualMLP
from diffusion.noise import Cosine, Shifted
from diffusion.samplers import DDIM, DPMSolver, Sampler
from diffusion.support.scaling import Scaling
from diffusion.support.specs import concrete

STD, KAPPA = 0.5, 1.3
SCHEDULE = Cosine()
SAMPLERS = sorted(concrete(Sampler, "diffusion"), key=lambda k: k.__name__)


class Wide(nn.Module):
    """The ideal network for pixels of deviation KAPPA STD."""

    def forward(self, x, clock, y=None, keep=None):
        t = SCHEDULE.level((clock.double() + 1) / 1000).like(x)
        pred = Gaussian(0.0, KAPPA * STD)(x, t)
        return V().of(pred.x0, pred.eps, t)


class Enlarging(nn.Module):
    """The ideal network for pixels of deviation STD, given each pixel with noise of the strength in the last channel.

    x | y ~ N(w y, (1 - w) STD^2), w = STD^2 / (STD^2 + strength^2).
    """

    image_channels = 2

    def forward(self, x, clock, y=None, keep=None):
        t = SCHEDULE.level((clock.double() + 1) / 1000).like(x)
        x, seen, strength = x.split(1, dim=1)
        w = STD**2 / (STD**2 + strength.double() ** 2)
        var = (1 - w) * STD**2
        x0 = w * seen + t.alpha * var * (x - t.alpha * w * seen) / (t.alpha**2 * var + t.sigma**2)
        return V().of(x0, (x - t.alpha * x0) / t.sigma, t)


def gaussian(augment=0.0, noise=1.0, side=8):
    walk = DPMSolver(60)
    base = Pipeline(Denoiser(Wide(), SCHEDULE, V()), walk, clamp=Unbounded(), shape=(1, side, side))
    denoiser = Denoiser(Enlarging(), SCHEDULE, V())
    hint, shape = LowResolution(2, noise), (1, 2 * side, 2 * side)
    return Cascade.of(base, Pipeline(denoiser, walk, clamp=Unbounded(), hint=hint, shape=shape), augment=augment)


@pytest.mark.parametrize("augment, variance", [(0, 0.4225), (0.25, 0.3604), (0.5, 0.2931), (1, 0.2569)])
def test_noise_on_the_input_repairs_a_base_that_is_too_wide(augment, variance, float64):
    """s^2 + w^2 (kappa^2 - 1) s^2, w = s^2 / (s^2 + augment^2): from the base's variance towards the data's, 0.25."""
    w = STD**2 / (STD**2 + augment**2)
    assert STD**2 + w**2 * (KAPPA**2 - 1) * STD**2 == pytest.approx(variance, abs=6e-5)
    x = gaussian(augment).sample(1500, seed=1)
    assert x.shape == (1500, 1, 16, 16)
    # 96,000 independent pixels of the base: a standard error of 0.46 %
    assert float(x.var()) == pytest.approx(variance, rel=0.015)
    same = x[:, :, ::2, ::2] * x[:, :, 1::2, ::2]  # of one block: what both have from the base, and from the noise
    assert float(same.mean()) == pytest.approx(w**2 * (KAPPA**2 * STD**2 + augment**2), rel=0.02, abs=1e-3)


def trained(shape, hint=None, classes=0, image_channels=0, schedule=None, seed=0, names=(), **options):
    """A pipeline of a small network with random weights."""
    torch.manual_seed(seed)
    net = ResidualMLP(shape[0], shape[1:], width=16, depth=1, num_classes=classes, image_channels=image_channels)
    for weight in net.parameters():  # some are initially 0
        nn.init.normal_(weight, std=0.2)
    denoiser = Denoiser(net, schedule or Cosine(50), V()).eval()
    return Pipeline(denoiser, DDIM(4), hint=hint, shape=shape, class_names=names, **options)


def small(**options):
    return trained((1, 4, 4), **options)


def large(noise=0.5, **options):
    return trained((1, 8, 8), LowResolution(2, noise), image_channels=1 + (noise > 0), seed=1, **options)


def test_a_cascade_is_its_stages_one_after_the_other(float64):
    """By hand: the base's images are those without a cascade; noise and walk of the second have their own streams."""
    base, stage = small(), large()
    whole = Cascade.of(base, stage, augment=0.3)
    x = whole.sample(5, seed=7)
    low = base.sample(5, seed=7)
    hint = whole.enlarging(low, 7)
    assert torch.equal(hint[:, 1], torch.full((5, 4, 4), 0.3))
    assert float((hint[:, :1] - low).std()) == pytest.approx(0.3, rel=0.3) and hint[:, :1].mean() != low.mean()
    assert torch.equal(x, stage.sample(5, seed=whole.stream(7), image=hint))
    start, other = whole.start(5, 7), base.start(5, 7)
    assert torch.equal(start, stage.start(5, whole.stream(7)))
    assert not torch.equal(start.flatten(1)[:, :16], other.flatten(1))  # not the same numbers again
    exact = Cascade.of(base, stage, augment=0).enlarging(low, 7)
    assert torch.equal(exact[:, :1], low) and not exact[:, 1].any()


def test_images_of_a_cascade_do_not_depend_on_their_batch(float64):
    whole = Cascade.of(small(), large(), augment=0.3)
    x = whole.sample(7, seed=2)
    torch.testing.assert_close(whole.sample(7, seed=2, batch_size=3), x)
    torch.testing.assert_close(whole.sample(3, seed=2, first=4), x[4:])
    assert (whole.sample(7, seed=3) - x).abs().max() > 0.05
    assert (replace(whole, augment=0.1).sample(7, seed=2) - x).abs().max() > 1e-3


def test_a_cascade_of_three_stages():
    third = trained((1, 16, 16), LowResolution(2), image_channels=1, seed=2)
    whole = Cascade.of(small(), large(), third, augment=(0.3, 0))
    assert whole.depth == 2 and whole.shape == (1, 16, 16) and whole.sample(2).shape == (2, 1, 16, 16)
    assert (whole.base.augment, whole.augment) == (0.3, 0) and whole.first.shape == (1, 4, 4)
    assert whole.with_augment([0.1, 0]).base.augment == 0.1
    assert whole.stream(0) != whole.base.stream(0)
    with pytest.raises(ValueError, match="trained with noise of 0 .. 0, got 0.2; train it with model.hint.noise"):
        whole.with_augment(0.2)
    with pytest.raises(ValueError, match=r"wanted one number or one per later stage \(2\)"):
        whole.with_augment("0.1,0.2,0.3")


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda k: k.__name__)
def test_every_sampler_walks_both_stages(kind):
    """And is chosen for the base, or for the last stage of the pipeline."""
    whole = Cascade.of(small(schedule=Shifted(Cosine(50), 32)), large(schedule=Cosine(50)), augment=0.2)
    sampler = kind() if kind.__name__ == "ProbabilityFlow" else kind(steps=4)
    chosen = Choices(sampler=sampler, augment=0.4).apply(whole)
    assert type(chosen.base.sampler) is kind and type(chosen.sampler) is DDIM and chosen.augment == 0.4
    both = replace(chosen, sampler=sampler).sample(2)
    assert both.shape == (2, 1, 8, 8) and both.isfinite().all() and not torch.equal(both, whole.sample(2))


@pytest.mark.parametrize("guidance", [ClassifierFree(2.0), APG(2.0), Interval(ClassifierFree(3.0), 0.1, 5), Plain()])
def test_every_guidance_steers_both_stages(guidance, float64):
    names = ("a", "b", "c")
    base, stage = (make(classes=3, names=names, guidance=guidance) for make in (small, large))
    whole = Cascade.of(base, stage, augment=0.2)
    y = torch.tensor([0, 1, 2, 0])
    x = whole.sample(4, y)
    assert (whole.sample(4, y.flip(0)) - x).abs().max() > 0.01
    assert torch.equal(whole.sample(4, whole.in_turn(4)), x) and whole.number("c") == 2
    low = base.sample(4, y)
    expected = stage.sample(4, y, whole.stream(0), image=whole.enlarging(low))
    assert torch.equal(expected, x)


def test_conditions_are_those_of_the_base():
    """A second stage without classes enlarges the pictures of a base that has them."""
    base = small(classes=3, names=("a", "b", "c"))
    whole = Cascade.of(base, large(), augment=0.1)
    assert whole.num_classes == 3 and whole.class_names == ("a", "b", "c") and not whole.denoiser.conditional
    assert not torch.equal(whole.sample(3, whole.in_turn(3, "a")), whole.sample(3, whole.in_turn(3, "b")))
    assert Choices(scale=2.0).apply(whole).base.guidance.scale == 2.0


def test_other_scalings_are_converted():
    """Both in the data's units: the raw image is what the stages have in common."""
    one, two = Scaling("float32", (1.0,), (2.0,)), Scaling("float32", (0.0,), (4.0,))
    base, stage = (replace(p, scaling=s, clamp=Unbounded()) for p, s in ((small(), one), (large(), two)))
    low = torch.randn(2, 1, 4, 4)
    hint = Cascade.of(base, stage).enlarging(low)[:, :1]
    torch.testing.assert_close(two.decode(hint), one.decode(low))


@pytest.mark.parametrize("make, words", [
    (lambda: Cascade.of(small(), small()), "a later stage enlarges images: train it with hint LowResolution"),
    (lambda: Cascade.of(small(), trained((1, 8, 8), Masked(), image_channels=2)), "LowResolution, not Masked"),
    (lambda: Cascade.of(trained((1, 8, 8)), large()), "the stage to 1x8x8 enlarges images of 1x4x4, but gets 1x8x8"),
    (lambda: Cascade.of(trained((3, 4, 4)), large()), "enlarges images of 1x4x4, but gets 3x4x4"),
    (lambda: Cascade.of(small(classes=2, names=("a", "b")), large(classes=2, names=("a", "c"))),
     "the base has 2 classes (a, b), the stage to 1x8x8 2 classes (a, c); train both on the same classes"),
    (lambda: Cascade.of(small(), large(classes=2)), "the base has no classes, the stage to 1x8x8 2 classes"),
    (lambda: Cascade.of(small(), large(), augment=0.6), "trained with noise of 0 .. 0.5, got 0.6"),
    (lambda: Cascade.of(small(), large(), augment=-0.1), "trained with noise of 0 .. 0.5, got -0.1"),
    (lambda: Cascade.of(small(), large(noise=0), augment=0.1), "train it with model.hint.noise, e.g. 0.5"),
    (lambda: Cascade.of(small(), large(), augment=[0.1, 0.2]), "wanted one number or one per later stage (1)"),
    (lambda: Cascade.of(small(), large(), augment="x"), "e.g. 0.3; got 'x'"),
    (lambda: Choices(augment=0.1).apply(small()), "augment: there is no later stage"),
    (lambda: Cascade.of(replace(small(), scaling=Scaling("float32", (0.0,), (1.0,))), large()),
     "makes images of float32, the next stage enlarges uint8"),
])  # fmt: skip
def test_cascades_that_do_not_fit_are_refused_in_one_line(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value) and "\n" not in str(error.value)
