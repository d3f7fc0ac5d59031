"""Guidance between two noise levels: exact inside; the plain prediction at no extra cost outside."""

import math

import pytest
import torch

from diffusion.denoiser.codecs import Identity
from diffusion.guidance import ClassifierFree, ClassifierGuidance, Interval, Steer
from diffusion.samplers import DDIM


def at_ratio(setting, *ratios):
    """The level, or levels, of given sigma / alpha."""
    wanted = -2 * torch.tensor(ratios, dtype=torch.float64).log()
    return setting.level(setting.world.schedule.time(wanted if len(ratios) > 1 else wanted[0]))


@pytest.mark.parametrize("ratio, on", [(0.19, False), (0.21, True), (1.0, True), (1.99, True), (2.01, False)])
def test_interval_guides_inside_only_at_no_cost_outside(setting, ratio, on):
    x, t = setting.x, at_ratio(setting, ratio)
    pred = Interval(ClassifierFree(3), 0.2, 2)(setting.denoiser, setting.cond)(x, t)
    assert setting.net.asked == (60 if on else 30)
    score = setting.world.tilted(x, t, setting.y, 3 if on else 1)
    torch.testing.assert_close(-pred.eps / t.sigma, score, rtol=1e-8, atol=1e-8)


def test_interval_is_open_below_and_closed_above(setting):
    t = at_ratio(setting, 1.0)
    end = float(t.ratio)
    for low, high, on in ((0.5, end, True), (end, 2, False)):
        setting.net.asked = 0
        Interval(ClassifierFree(3), low, high)(setting.denoiser, setting.cond)(setting.x, t)
        assert setting.net.asked == (60 if on else 30)


def test_interval_with_per_image_levels(setting):
    """Each image is treated by its own level; if all are on one side, only that prediction is evaluated."""
    x, y = setting.x, setting.y
    many = at_ratio(setting, *[0.05, 0.5, 9.0] * 10)
    pred = Interval(ClassifierFree(3), 0.2, 2)(setting.denoiser, setting.cond)(x, many)
    inside, outside = setting.world.tilted(x, many, y, 3), setting.world.tilted(x, many, y, 1)
    on = torch.tensor([False, True, False] * 10)[:, None, None, None]
    score = -pred.eps / many.like(x).sigma
    torch.testing.assert_close(score, torch.where(on, inside, outside), rtol=1e-8, atol=1e-8)
    setting.net.asked = 0
    low = at_ratio(setting, *[0.05] * 30)
    Interval(ClassifierFree(3), 0.2, 2)(setting.denoiser, setting.cond)(x, low)
    assert setting.net.asked == 30


def test_interval_saves_evaluations_in_a_walk(setting):
    """A walk evaluates twice at the levels inside, and once at the others."""
    sampler = DDIM(20)
    ratios = [float(level.ratio) for level in walked(sampler, setting)]
    inside = sum(0.2 < r <= 2 for r in ratios)
    assert 0 < inside < 20
    setting.net.asked = 0
    sampler.sample(Interval(ClassifierFree(3), 0.2, 2)(setting.denoiser, setting.cond), setting.x,
                   setting.world.schedule)  # fmt: skip
    assert setting.net.asked == 30 * (20 + inside)


def walked(sampler, setting):
    """The levels that a walk evaluates."""
    seen = []

    def denoise(x, t):
        seen.append(t)
        return setting.denoiser(x, t, setting.cond)

    sampler.sample(denoise, setting.x, setting.world.schedule)
    return seen


def test_interval_delegates_scale_classes_and_off(setting):
    """Scale, classes, and the prediction when off: a classifier's labels are not passed to the network."""
    wrapped = Interval(ClassifierGuidance(setting.classifier, 3), 0.2, 2)
    assert wrapped.scale == 3 and wrapped.num_classes == 3
    x, t = setting.x, at_ratio(setting, 9.0)
    plain = setting.unconditional(x, t).x0
    assert torch.equal(wrapped(setting.unconditional, setting.cond)(x, t).x0, plain)
    assert "images of 1x1x2" in wrapped.refuse(setting.world.schedule, (3, 1, 2), ("a", "b", "c"), Identity())
    steered = Interval(Steer(lambda x0, t: 0 * x0 + 1, guidance=ClassifierFree(3)), 0.2, 2)
    guided = ClassifierFree(3)(setting.denoiser, setting.cond)(x, t).x0
    assert torch.equal(steered(setting.denoiser, setting.cond)(x, t).x0, guided)  # Steer is off, its base is not


@pytest.mark.parametrize("low, high", [(-1, 2), (2, 2), (3, 2), (math.nan, 2)])
def test_interval_rejects_invalid_ends(low, high):
    with pytest.raises(ValueError, match="expected 0 <= low < high"):
        Interval(ClassifierFree(), low, high)
