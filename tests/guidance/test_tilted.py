"""On known distributions, guidance gives exactly the score of the tilted density p(x) p(y | x)^scale."""

import pytest
import torch

from diffusion.denoiser import Condition
from diffusion.guidance import APG, AutoGuidance, ClassifierFree, ClassifierGuidance

TIMES = [0.02, 0.2, 0.5, 0.8, 1.0]
EACH = torch.linspace(0.02, 1, 30, dtype=torch.float64)  # a separate level per image


def same_score(pred, score, x, t):
    torch.testing.assert_close(-pred.eps / t.like(x).sigma, score, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(t.like(x).alpha * pred.x0 + t.like(x).sigma * pred.eps, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("time", [*TIMES, EACH], ids=[*map(str, TIMES), "each"])
@pytest.mark.parametrize("scale", [0, 0.5, 1, 3, -1])
def test_classifier_free_gives_the_tilted_score(setting, scale, time):
    x, t = setting.x, setting.level(time)
    pred = ClassifierFree(scale)(setting.denoiser, setting.cond)(x, t)
    same_score(pred, setting.world.tilted(x, t, setting.y, scale), x, t)


@pytest.mark.parametrize("time", [*TIMES, EACH], ids=[*map(str, TIMES), "each"])
@pytest.mark.parametrize("known", [True, False], ids=["conditional", "unconditional"])
@pytest.mark.parametrize("scale", [0, 0.5, 1, 3])
def test_classifier_guidance_gives_the_tilted_score(setting, scale, known, time):
    """The same score for conditional and unconditional networks."""
    x, t = setting.x, setting.level(time)
    denoiser = setting.denoiser if known else setting.unconditional
    with torch.no_grad():
        pred = ClassifierGuidance(setting.classifier, scale)(denoiser, setting.cond)(x, t)
    same_score(pred, setting.world.tilted(x, t, setting.y, scale), x, t)


def test_contexts_are_class_weights(setting):
    """A mixed context gives the weighted mean of log p, one-hot the label's; a dropped context has no effect."""
    x, t, y = setting.x, setting.level(0.3), setting.y
    guide = ClassifierGuidance(setting.classifier, 2)
    label = guide(setting.unconditional, setting.cond)(x, t).x0
    shares = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(guide(setting.unconditional, Condition(shares[y]))(x, t).x0, label)
    mixed = guide(setting.unconditional, Condition((0.25 * shares[0] + 0.75 * shares[1]).expand(30, -1)))(x, t)
    parts = [setting.world.tilted(x, t, torch.full((30,), k), 2) for k in (0, 1)]
    same_score(mixed, 0.25 * parts[0] + 0.75 * parts[1], x, t)
    keep = torch.arange(30) < 10
    half = guide(setting.unconditional, Condition(y, keep))(x, t).x0
    free = setting.unconditional(x, t).x0
    torch.testing.assert_close(half[:10], label[:10])
    torch.testing.assert_close(half[10:], free[10:])


def test_classifier_guidance_requires_labels(setting):
    with pytest.raises(ValueError, match="no labels to steer to"):
        ClassifierGuidance(setting.classifier)(setting.unconditional, Condition())


def test_auto_guidance_is_the_line_through_two_models(setting):
    x, t, worse = setting.x, setting.level(0.4), setting.worse()
    pred = AutoGuidance(worse, 2.5)(setting.denoiser, setting.cond)(x, t)
    own, theirs = setting.denoiser(x, t, setting.cond), worse(x, t, setting.cond)
    same_score(pred, torch.lerp(-theirs.eps, -own.eps, 2.5) / t.sigma, x, t)
    assert float((own.x0 - theirs.x0).abs().max()) > 0.05
    itself = AutoGuidance(setting.denoiser, 7)(setting.denoiser, setting.cond)(x, t)
    torch.testing.assert_close(itself.x0, own.x0, rtol=0, atol=1e-12)


def test_auto_guidance_works_on_an_unconditional_model(setting):
    x, t = setting.x, setting.level(0.4)
    pred = AutoGuidance(setting.worse(), 2)(setting.unconditional, Condition())(x, t)
    torch.testing.assert_close(pred.x0, 2 * setting.unconditional(x, t).x0 - setting.worse()(x, t).x0)
    by_free = AutoGuidance(setting.unconditional, 3)(setting.denoiser, setting.cond)(x, t)  # is classifier-free
    torch.testing.assert_close(by_free.x0, ClassifierFree(3)(setting.denoiser, setting.cond)(x, t).x0)


@pytest.mark.parametrize("make", [
    lambda s: ClassifierFree(1), lambda s: ClassifierFree(w=0), lambda s: ClassifierFree(1, rescale=0.7),
    lambda s: APG(1), lambda s: AutoGuidance(s.worse(), 1), lambda s: ClassifierGuidance(s.classifier, 1),
])  # fmt: skip
def test_guidance_with_scale_one_is_off(setting, make):
    """The plain prediction, bit for bit, and no second evaluation."""
    for t in (setting.level(0.3), setting.level(EACH)):
        pred = make(setting)(setting.denoiser, setting.cond)(setting.x, t)
        assert setting.net.asked == 30
        assert torch.equal(pred.x0, setting.denoiser(setting.x, t, setting.cond).x0)
        setting.net.asked = 0
