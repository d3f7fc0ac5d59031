import pytest
import torch

from diffusion.denoiser.targets import Score, Target
from diffusion.noise import VE, Cosine
from diffusion.support.specs import concrete


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 9, 3, 4, 4, generator=g, dtype=torch.float64)
    t = Cosine().level(torch.linspace(0.001, 1, 9, dtype=torch.float64)).like(x0)
    return x0, eps, t, t.alpha * x0 + t.sigma * eps


TARGETS = [*(kind() for kind in sorted(concrete(Target), key=lambda c: c.__name__)), Score(scaled=True)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: type(t).__name__)
def test_x0_is_recovered_from_every_target(target, batch):
    """x0 recovered from the true target is x0, at every level."""
    x0, eps, t, x = batch
    torch.testing.assert_close(target.x0(x, target.of(x0, eps, t), t), x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: type(t).__name__)
def test_targets_are_linear_in_x0_and_eps(target, batch):
    """The objective relies on linearity: of(a x0, a eps) + of(b x0', b eps') = of(sum)."""
    x0, eps, t, _ = batch
    whole = target.of(2 * x0 - 3 * eps, 2 * eps - 3 * x0, t)
    torch.testing.assert_close(whole, 2 * target.of(x0, eps, t) - 3 * target.of(eps, x0, t), rtol=1e-12, atol=1e-12)


def test_scaled_score_is_sigma_times_the_score_with_unit_std():
    """At sigma .01 .. 50 the score's standard deviation is 1 / sigma, 100 .. .02; scaled it is 1."""
    x0, eps = torch.randn(2, 5, 1, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = VE().level(torch.linspace(0, 1, 5, dtype=torch.float64)).like(x0)
    score, scaled = (Score(scaled=s).of(x0, eps, t) for s in (False, True))
    torch.testing.assert_close(scaled / t.sigma, score)
    torch.testing.assert_close(score.std((1, 2, 3)) * t.sigma.flatten(), torch.ones(5).double(), rtol=0.1, atol=0)
    torch.testing.assert_close(scaled.std((1, 2, 3)), torch.ones(5).double(), rtol=0.1, atol=0)
