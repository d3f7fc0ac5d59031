"""The second clock of networks: off by default, initially without effect, trained, saved."""

import pytest
import torch

from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.targets import V
from diffusion.nets import AttentionUNet
from diffusion.nets.onnx_graph import graph_of
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.support.specs import build, spec
from tests.nets.test_contract import NETS, awake

ALL = {**NETS, "attention": (AttentionUNet, {"widths": (8, 8), "heads": 2, "attention": 1})}
all_nets = pytest.mark.parametrize("name", ALL)


def pair(name, **more):
    """A network, and one with a second clock and the same weights where both have them."""
    kind, options = ALL[name]
    plain = awake(kind(1, **(options | more)))
    net = kind(1, **(options | more), second_clock=True)
    missing = net.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys and all(k.startswith("second") for k in missing.missing_keys)
    assert missing.missing_keys
    return plain.eval(), net.eval()


@all_nets
def test_trained_denoiser_with_a_second_clock_is_ddim_to_the_bit(name):
    """The untrained flow map between any two levels is DDIM's step of the network whose weights it has."""
    plain, net = (Denoiser(n, Cosine(), V()) for n in pair(name, num_classes=3))
    x, cond = torch.randn(4, 1, 8, 8), Condition(torch.tensor([0, 1, 2, 0]))
    t, s = (Cosine().level(torch.tensor(v, dtype=torch.float64)) for v in (0.8, 0.3))
    with torch.no_grad():
        for end in (None, s, Cosine().clean(), t):
            assert torch.equal(net(x, t, cond, end).x0, plain(x, t, cond).x0)
        for steps in (1, 4):
            walk = [DDIM(steps).sample(d.bind(cond), x, Cosine()) for d in (plain, net)]
            assert torch.equal(*walk)


@all_nets
def test_second_clock_is_heard_once_trained(name, float64):
    """A changed last layer makes the output depend on it, and without a second clock it is the first."""
    net = awake(pair(name)[1])
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 7.0)
    with torch.no_grad():
        out, same = net(x, t, to=torch.full((2,), 300.0)), net(x, t)
        assert torch.equal(same, net(x, t, to=t)) and (out - same).abs().max() > 1e-4
    net.train()
    net(x, t, to=t + 1).square().sum().backward()
    dead = [n for n, p in net.named_parameters() if n.startswith("second") and (p.grad is None or not p.grad.any())]
    assert not dead
    assert build(spec(net)).second_clock and spec(build(spec(net))) == spec(net)


def test_denoiser_tells_the_network_the_clock_of_each_images_end(float64):
    net = awake(pair("unet")[1])
    denoiser, schedule, x = Denoiser(net, Cosine(), V()), Cosine(), torch.randn(3, 1, 8, 8)
    t, s = (schedule.level(torch.tensor(v)) for v in ([0.9, 0.5, 0.7], [0.4, 0.0, 0.7]))
    with torch.no_grad():
        many = denoiser(x, t, to=s).x0
        assert torch.equal(denoiser(x, t.until(s)).x0, many)
        for k in range(3):
            one, end = (type(t)(*(v[k] for v in level)) for level in (t, s))
            torch.testing.assert_close(denoiser(x[k : k + 1], one, to=end).x0[0], many[k])
        torch.testing.assert_close(denoiser(x, t).x0[2], many[2])  # to its own level it is the denoiser
    with pytest.raises(ValueError, match="one noise level or one per image"):
        denoiser(x, t, to=schedule.level(torch.rand(2)))


def test_graph_refuses_a_second_clock():
    with pytest.raises(ValueError, match="no input for its second clock; export to .safetensors"):
        graph_of(pair("mlp")[1], (1, 8, 8))


def test_a_level_with_an_end_is_a_level():
    t, s = (Cosine().level(torch.tensor(v)) for v in (0.9, 0.4))
    there = t.until(s)
    assert there == t and there.end == s and t.end is None and there.like(torch.zeros(1)).end is None
