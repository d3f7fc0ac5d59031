import math

import pytest
import torch
from torch import nn

from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.targets import X0
from diffusion.guidance import APG, Clamp, ClassifierFree, Interval, Plain, Unbounded
from diffusion.noise import VP, Linear


class Net(nn.Module):
    """Outputs the class number, or -1 for no condition, plus half of x; counts its calls."""

    calls = 0

    def forward(self, x, clock, y=None, keep=None):
        self.calls += 1
        value = torch.full((len(x),), -1.0) if y is None else y.float()
        if keep is not None:
            value = torch.where(keep, value, -1.0)
        return value[:, None, None, None] + 0.5 * x


@pytest.fixture
def setting(float64):
    net = Net()
    x, y = torch.randn(5, 1, 2, 2), torch.arange(5)
    return net, Denoiser(net, Linear(), X0()), x, y, Linear().level(torch.tensor(0.5).double())


@pytest.mark.parametrize("scale, gap", [(0, 0), (0.5, 0.5), (1, 1), (3, 3), (-1, -1)])
def test_classifier_free_is_linear_in_scale(setting, scale, gap):
    net, denoiser, x, y, t = setting
    pred = ClassifierFree(scale)(denoiser, Condition(y))(x, t)
    expected = 0.5 * x - 1 + gap * (y + 1.0)[:, None, None, None]
    torch.testing.assert_close(pred.x0, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((t.alpha * pred.x0 + t.sigma * pred.eps), x)
    assert net.calls == 1  # one fused batch


def test_classifier_free_is_off_at_scale_one_and_without_labels(setting):
    net, denoiser, x, y, t = setting
    assert torch.equal(ClassifierFree(1)(denoiser, Condition(y))(x, t).x0, Plain()(denoiser, Condition(y))(x, t).x0)
    assert torch.equal(ClassifierFree(5)(denoiser, Condition())(x, t).x0, 0.5 * x - 1)


def test_classifier_free_doubles_per_image_levels(setting):
    net, denoiser, x, y, t = setting
    many = Linear().level(torch.full((5,), 0.5).double())
    a = ClassifierFree(2)(denoiser, Condition(y))
    torch.testing.assert_close(a(x, many).x0, a(x, t).x0)


def test_clamp_limits_x0_and_keeps_x(setting):
    net, denoiser, x, y, t = setting
    free, pred = denoiser(x, t, Condition(y)), Clamp()(denoiser.bind(Condition(y)))(x, t)
    assert float(free.x0.max()) > 1 and float(pred.x0.abs().max()) <= 1
    torch.testing.assert_close(pred.x0, free.x0.clamp(-1, 1))
    torch.testing.assert_close((t.alpha * pred.x0 + t.sigma * pred.eps), x)
    assert torch.equal(Unbounded()(denoiser.bind(Condition(y)))(x, t).x0, free.x0)


def test_clamp_rejects_an_empty_interval():
    with pytest.raises(ValueError, match="below"):
        Clamp(1, -1)


def test_w_is_the_papers_scale():
    assert ClassifierFree(w=2).scale == 3 and ClassifierFree(w=0).scale == 1 and ClassifierFree().scale == 2
    for bad in (lambda: ClassifierFree(2, w=1), lambda: ClassifierFree(2.0, 1.0, 0.5)):
        with pytest.raises(ValueError, match="give scale or w, not both"):
            bad()


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescale_restores_the_contrast(setting, share):
    net, denoiser, _, y, t = setting
    x = torch.randn(5, 1, 4, 4)
    std = lambda v: v.std((1, 2, 3))  # noqa: E731
    for level in (t, Linear().level(torch.full((5,), 0.5).double())):
        given = denoiser(x, level, Condition(y)).x0
        raw = Wide(3)(denoiser, Condition(y))(x, level).x0
        pred = Wide(3, rescale=share)(denoiser, Condition(y))(x, level)
        assert (std(raw) > 1.5 * std(given)).all()
        torch.testing.assert_close(std(pred.x0), share * std(given) + (1 - share) * std(raw))
        angle = (pred.x0 * raw).flatten(1).sum(1) / (pred.x0.flatten(1).norm(dim=1) * raw.flatten(1).norm(dim=1))
        torch.testing.assert_close(angle, torch.ones(5))  # only the norm changes
        torch.testing.assert_close((t.alpha * pred.x0 + t.sigma * pred.eps), x)


class Wide(ClassifierFree):
    """The worse prediction is half of the model's own, so that guidance raises the contrast."""

    def pair(self, denoiser, cond):
        own = denoiser.bind(cond)
        return lambda x, t: (pred := own(x, t), 0.5 * pred.x0)


def test_rescale_is_finite_for_a_constant_image(setting):
    net, denoiser, x, y, t = setting
    flat = torch.zeros(5, 1, 2, 2)
    assert ClassifierFree(3, rescale=1)(denoiser, Condition(y))(flat, t).x0.isfinite().all()
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"rescale must lie in \[0, 1\]"):
            ClassifierFree(3, rescale=share)


def test_apg_with_parallel_one_is_classifier_free(setting):
    net, denoiser, x, y, t = setting
    free = ClassifierFree(4)(denoiser, Condition(y))
    denoise = APG(4, parallel=1, momentum=0)(denoiser, Condition(y))
    for _ in range(2):
        torch.testing.assert_close(denoise(x, t).x0, free(x, t).x0, rtol=1e-9, atol=1e-9)


def test_apg_removes_the_parallel_component(setting):
    """d = y + 1 everywhere; the remainder is orthogonal to x0_cond, and parallel 0.3 keeps that fraction."""
    net, denoiser, x, y, t = setting
    own = denoiser(x, t, Condition(y)).x0
    d = (y + 1.0)[:, None, None, None].expand_as(x)
    push = (APG(3, momentum=0)(denoiser, Condition(y))(x, t).x0 - own) / 2
    inner = lambda a, b: (a * b).flatten(1).sum(1)  # noqa: E731
    torch.testing.assert_close(inner(push, own), torch.zeros(5), rtol=0, atol=1e-9)
    along = (inner(d, own) / inner(own, own))[:, None, None, None] * own
    torch.testing.assert_close(push, d - along, rtol=1e-9, atol=1e-9)
    some = (APG(3, parallel=0.3, momentum=0)(denoiser, Condition(y))(x, t).x0 - own) / 2
    torch.testing.assert_close(some, d - 0.7 * along, rtol=1e-9, atol=1e-9)


def test_apg_threshold_limits_the_norm(setting):
    """|d| = 2 (y + 1) over 4 pixels, limited to 3; shorter ones are unchanged."""
    net, denoiser, x, y, t = setting
    own = denoiser(x, t, Condition(y)).x0
    push = APG(2, parallel=1, threshold=3, momentum=0)(denoiser, Condition(y))(x, t).x0 - own
    expected = (2 * (y + 1.0)).clamp(max=3)
    torch.testing.assert_close(push.flatten(1).norm(dim=1), expected, rtol=1e-9, atol=1e-9)


def test_apg_momentum_is_kept_within_a_walk(setting):
    """d_1 = d, d_2 = d - d / 2, d_3 = d - d / 4; another walk starts from zero."""
    net, denoiser, x, y, t = setting
    own = denoiser(x, t, Condition(y)).x0
    d = (y + 1.0)[:, None, None, None].expand_as(x)
    guidance = APG(2, parallel=1, momentum=-0.5)
    for _ in range(2):
        denoise = guidance(denoiser, Condition(y))
        for factor in (1, 0.5, 0.75):
            torch.testing.assert_close(denoise(x, t).x0 - own, factor * d, rtol=1e-9, atol=1e-9)
    for bad in ({"threshold": -1}, {"momentum": 1}):
        with pytest.raises(ValueError, match="APG: expected threshold >= 0 and momentum"):
            APG(2, **bad)


def test_self_conditioning_follows_the_conditional_half_across_an_interval(setting):
    """The previous prediction is that of the conditional half, in and out of a doubled batch."""
    seen = []

    class Remembering(Net):
        self_condition, num_classes = True, 5

        def forward(self, x, clock, y=None, keep=None):
            x, guess = x.chunk(2, 1)
            seen.append(guess)
            return super().forward(x, clock, y, keep)

    _, _, x, y, _ = setting
    denoiser = Denoiser(Remembering(), VP(), X0())
    denoise = Interval(ClassifierFree(3), 0.2, 5)(denoiser.walk(), Condition(y))
    at = [VP().time(torch.tensor(-2 * math.log(r)).double()) for r in (9.0, 2.0, 1.0, 0.1)]  # out, in, in, out
    preds = [denoise(x, VP().level(t)) for t in at]
    assert [len(g) for g in seen] == [5, 10, 10, 5] and not seen[0].any()
    torch.testing.assert_close(seen[1], torch.cat([preds[0].x0, preds[0].x0]))
    torch.testing.assert_close(seen[3], (0.5 * x + y[:, None, None, None]))  # the conditional half of the last
