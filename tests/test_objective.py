import pytest
import torch
from torch import nn

from diffusion.denoiser import Condition, Denoiser
from diffusion.noise import Cosine, Linear
from diffusion.noise.draws import StepDraws
from diffusion.objective import Objective
from diffusion.targets import X0, Eps, V


class Recorder(nn.Module):
    """Answers with a fixed map and remembers what it was asked."""

    num_classes = 10

    def forward(self, x, clock, y=None, keep=None):
        self.asked = (x, clock, y, keep)
        self.out = torch.tanh(0.7 * x.roll(1, -1) + clock[:, None, None, None] / 1000)
        return self.out


@pytest.mark.parametrize("target", [Eps(), X0(), V()])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_the_loss_is_the_error_of_the_networks_own_words(target, schedule):
    net, x0 = Recorder(), torch.rand(32, 1, 8, 8) * 2 - 1
    draws, same = StepDraws(0, 0, 0), StepDraws(0, 0, 0)
    terms = Objective()(Denoiser(net, schedule, target), x0, Condition(), draws.normal, draws.uniform)
    eps = same.normal(x0)
    t = schedule.level(schedule.quantile(same.uniform(32))).like(x0)
    torch.testing.assert_close(net.asked[0], t.alpha * x0 + t.sigma * eps)
    expected = (target.of(x0, eps, t) - net.out).square().flatten(1).mean(1)
    torch.testing.assert_close(terms.mse, expected, rtol=2e-4, atol=1e-6)
    assert float(terms.loss) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_a_perfect_network_has_no_loss():
    """The ideal answer for a single image as data set: x0 is known, so eps is."""
    x0 = torch.rand(1, 1, 4, 4).expand(64, 1, 4, 4) * 2 - 1

    class Perfect(nn.Module):
        def forward(self, x, clock, y=None, keep=None):
            t = Linear().level((clock.double() + 1) / 1000).like(x)
            return (x - t.alpha * x0) / t.sigma

    assert float(Objective()(Denoiser(Perfect(), Linear()), x0).loss) < 1e-6


def test_labels_are_dropped_image_by_image():
    net, x0, y = Recorder(), torch.zeros(4000, 1, 2, 2), torch.arange(4000) % 10
    Objective(drop=0.2)(Denoiser(net, Linear()), x0, Condition(y))
    keep = net.asked[3]
    assert keep.dtype == torch.bool and 0.17 < 1 - keep.float().mean() < 0.23
    Objective(drop=0.0)(Denoiser(net, Linear()), x0, Condition(y))
    assert net.asked[3] is None


@pytest.mark.parametrize("drop", [-0.1, 1.1])
def test_drop_is_a_probability(drop):
    with pytest.raises(ValueError, match="probability"):
        Objective(drop=drop)


def test_one_level_or_one_an_image():
    denoiser, x = Denoiser(Recorder(), Linear()), torch.randn(6, 1, 4, 4)
    level = Linear().level(torch.tensor(0.3, dtype=torch.float64))
    many = Linear().level(torch.full((6,), 0.3, dtype=torch.float64))
    one, six = denoiser(x, level), denoiser(x, many)
    torch.testing.assert_close(one.x0, six.x0)
    torch.testing.assert_close(level.alpha * one.x0 + level.sigma * one.eps, x.double(), check_dtype=False)
    with pytest.raises(ValueError, match="one noise level or one an image"):
        denoiser(x, Linear().level(torch.rand(3).double()))
