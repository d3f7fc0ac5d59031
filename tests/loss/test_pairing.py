import pytest
import torch

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import Velocity
from diffusion.loss.objective import Objective
from diffusion.loss.pairing import Independent, OptimalTransport
from diffusion.noise import Flow
from diffusion.noise.draws import StepDraws


def cost(x0, eps):
    return (x0 - eps).flatten(1).square().sum(1)


def test_optimal_transport_sorts_points_on_a_line():
    """In one dimension the best pairing keeps the order."""
    torch.manual_seed(0)
    x0, eps = torch.randn(100, 1, 1, 1), torch.randn(100, 1, 1, 1)
    paired = OptimalTransport()(x0, eps)
    assert torch.equal(paired.flatten()[x0.flatten().argsort()], eps.flatten().sort().values)
    assert torch.equal(Independent()(x0, eps), eps)


def test_optimal_transport_cost_cannot_be_lowered_by_a_swap():
    torch.manual_seed(0)
    x0, eps = torch.rand(32, 3, 4, 4), torch.randn(32, 3, 4, 4)
    paired = OptimalTransport()(x0, eps)
    assert float(cost(x0, paired).sum()) < float(cost(x0, eps).sum())
    assert torch.equal(paired.flatten(1).unique(dim=0), eps.flatten(1).unique(dim=0))  # a permutation
    all_pairs = torch.cdist(x0.flatten(1), paired.flatten(1)).square()
    swapped = all_pairs + all_pairs.T - all_pairs.diag()[:, None] - all_pairs.diag()[None]
    assert float(swapped.min()) > -1e-3


def test_targets_use_the_paired_noise():
    """A network that knows the pairing has zero loss: the target is the velocity of the paired noise."""
    torch.manual_seed(0)
    x0 = torch.rand(16, 1, 4, 4) * 2 - 1
    eps = StepDraws(0, 0, 0).normal(x0)
    paired = OptimalTransport()(x0, eps)

    class Knows(torch.nn.Module):
        def forward(self, x, clock, y=None, keep=None):
            t = (clock / 1000).view(-1, 1, 1, 1)
            assert torch.allclose(x, (1 - t) * x0 + t * paired, atol=1e-5)
            return paired - x0

    draws = StepDraws(0, 0, 0)
    objective = Objective(pairing=OptimalTransport())
    terms = objective(Denoiser(Knows(), Flow(), Velocity()), x0, noise=draws.normal, uniform=draws.uniform)
    assert float(terms.loss) < 1e-9


def test_optimal_transport_paths_are_straighter():
    """The marginal velocity between two distant clusters is straighter, so one Euler step is more accurate."""
    torch.manual_seed(0)
    x0 = torch.where(torch.rand(256, 1, 1, 2) < 0.5, -2.0, 2.0)
    eps = torch.randn_like(x0)
    plain, paired = cost(x0, eps).mean(), cost(x0, OptimalTransport()(x0, eps)).mean()
    # Between N(0, I) and two independent signs times 2 the least cost is 2 E(|z| - 2)^2 = 2 (5 - 8 / sqrt(2 pi)).
    assert float(plain) == pytest.approx(2 * 5, rel=0.1)
    assert float(paired) == pytest.approx(2 * (5 - 8 / (2 * torch.pi) ** 0.5), rel=0.1)
