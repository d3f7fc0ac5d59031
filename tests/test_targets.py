import pytest
import torch

from diffusion.noise import Cosine
from diffusion.targets import Target
from diffusion.tools import concrete


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 9, 3, 4, 4, generator=g, dtype=torch.float64)
    t = Cosine().level(torch.linspace(0.001, 1, 9, dtype=torch.float64)).like(x0)
    return x0, eps, t, t.alpha * x0 + t.sigma * eps


@pytest.mark.parametrize("kind", sorted(concrete(Target), key=lambda c: c.__name__))
def test_round_trip(kind, batch):
    """x0 read from the right answer is x0, at every level."""
    x0, eps, t, x = batch
    target = kind()
    torch.testing.assert_close(target.x0(x, target.of(x0, eps, t), t), x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(concrete(Target), key=lambda c: c.__name__))
def test_linear(kind, batch):
    """The objective relies on it: of(a x0, a eps) + of(b x0', b eps') = of(sum)."""
    x0, eps, t, _ = batch
    target = kind()
    whole = target.of(2 * x0 - 3 * eps, 2 * eps - 3 * x0, t)
    torch.testing.assert_close(whole, 2 * target.of(x0, eps, t) - 3 * target.of(eps, x0, t), rtol=1e-12, atol=1e-12)
