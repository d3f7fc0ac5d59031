import pytest
import torch
from torch import nn

from diffusion.denoiser import Condition, Denoiser
from diffusion.guidance import Clamp, ClassifierFree, Plain, Unbounded
from diffusion.noise import Linear
from diffusion.targets import X0


class Net(nn.Module):
    """Says the class number, or -1 for no condition, plus half of x; counts its calls."""

    calls = 0

    def forward(self, x, clock, y=None, keep=None):
        self.calls += 1
        value = torch.full((len(x),), -1.0) if y is None else y.float()
        if keep is not None:
            value = torch.where(keep, value, -1.0)
        return value[:, None, None, None] + 0.5 * x


@pytest.fixture
def setting():
    net = Net()
    x, y = torch.randn(5, 1, 2, 2), torch.arange(5)
    return net, Denoiser(net, Linear(), X0()), x, y, Linear().level(torch.tensor(0.5).double())


@pytest.mark.parametrize("scale, gap", [(0, 0), (0.5, 0.5), (1, 1), (3, 3), (-1, -1)])
def test_classifier_free_is_a_straight_line(setting, scale, gap):
    net, denoiser, x, y, t = setting
    pred = ClassifierFree(scale)(denoiser, Condition(y))(x, t)
    expected = 0.5 * x - 1 + gap * (y + 1.0)[:, None, None, None]
    torch.testing.assert_close(pred.x0, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((t.alpha * pred.x0 + t.sigma * pred.eps).float(), x)
    assert net.calls == 1  # one fused batch


def test_scale_one_is_plain_and_no_label_is_left_alone(setting):
    net, denoiser, x, y, t = setting
    assert torch.equal(ClassifierFree(1)(denoiser, Condition(y))(x, t).x0, Plain()(denoiser, Condition(y))(x, t).x0)
    assert torch.equal(ClassifierFree(5)(denoiser, Condition())(x, t).x0, 0.5 * x - 1)


def test_levels_of_one_an_image_are_doubled_too(setting):
    net, denoiser, x, y, t = setting
    many = Linear().level(torch.full((5,), 0.5).double())
    a = ClassifierFree(2)(denoiser, Condition(y))
    torch.testing.assert_close(a(x, many).x0, a(x, t).x0)


def test_clamp_limits_x0_and_keeps_x(setting):
    net, denoiser, x, y, t = setting
    free, pred = denoiser(x, t, Condition(y)), Clamp()(denoiser.bind(Condition(y)))(x, t)
    assert float(free.x0.max()) > 1 and float(pred.x0.abs().max()) <= 1
    torch.testing.assert_close(pred.x0, free.x0.clamp(-1, 1))
    torch.testing.assert_close((t.alpha * pred.x0 + t.sigma * pred.eps).float(), x)
    assert torch.equal(Unbounded()(denoiser.bind(Condition(y)))(x, t).x0, free.x0)


def test_clamp_needs_an_interval():
    with pytest.raises(ValueError, match="below"):
        Clamp(1, -1)
