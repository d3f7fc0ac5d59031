"""The dispersive term: its closed form, its gradient, and its place in the objective."""

import math

import pytest
import torch

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.loss.dispersive import Dispersive
from diffusion.loss.flow_map import FlowMap
from diffusion.loss.objective import Objective
from diffusion.loss.paths import FromData, FromSelf
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.support.specs import build, spec


@pytest.mark.parametrize("D, a, tau", [(4, 1.0, 0.5), (16, 0.5, 0.5), (8, 1.0, 2.0)])
def test_gaussian_features_have_the_closed_form(D, a, tau, float64):
    """z ~ N(0, a^2 I): log E exp(-|z_i - z_j|^2 / (D tau)) = -D/2 log(1 + 4 a^2 / (D tau))."""
    torch.manual_seed(0)
    found = Dispersive("x", tau=tau)(a * torch.randn(4000, D))
    assert float(found) == pytest.approx(-D / 2 * math.log(1 + 4 * a**2 / (D * tau)), abs=0.02)


def test_two_points_and_equal_points():
    z = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]])
    assert float(Dispersive("x")(z)) == pytest.approx(-25 / (2 * 0.5))
    assert float(Dispersive("x")(torch.ones(3, 2))) == pytest.approx(0)
    assert float(Dispersive("x")(z[:1])) == 0


def test_the_gradient_drives_features_apart():
    z = torch.tensor([[-0.1], [0.1]], requires_grad=True)
    Dispersive("x")(z).backward()
    assert z.grad[0] > 0 > z.grad[1]  # descent moves them outwards


def objective_loss(dispersive, net=None):
    torch.manual_seed(0)
    net = net or AttentionUNet(1, (8, 8), heads=2, attention=1, dropout=0.0)
    torch.manual_seed(1)
    x0 = torch.randn(6, 1, 8, 8)
    return Objective(dispersive=dispersive)(Denoiser(net, Cosine(20)), x0), net


def test_the_objective_adds_the_weighted_term_of_the_layer():
    plain, net = objective_loss(None)
    seen = []
    with_term, net = objective_loss(Dispersive("inc", weight=0.25))
    net.inc.register_forward_hook(lambda module, inputs, out: seen.append(out))
    again, _ = objective_loss(None, net)
    term = 0.25 * Dispersive("inc")(seen[0])
    assert float(with_term.loss) == pytest.approx(float(plain.loss) + float(term), rel=1e-5)
    assert torch.equal(with_term.mse, plain.mse) and abs(float(term)) > 1e-3
    assert not net.outc._forward_hooks and len(net.inc._forward_hooks) == 1  # only the test's own


@pytest.mark.parametrize("path", [FromData(), FromSelf()])
def test_a_flow_map_adds_the_term_of_its_only_pass_with_a_gradient(path):
    net = AttentionUNet(1, (8, 8), heads=2, attention=1, dropout=0.0, second_clock=True)
    torch.nn.init.normal_(net.outc.weight, std=0.1)
    torch.manual_seed(1)
    x0, denoiser, seen = torch.randn(6, 1, 8, 8), Denoiser(net, Cosine(20), V()), []

    def terms(dispersive):
        torch.manual_seed(2)
        return FlowMap(path=path, dispersive=dispersive)(denoiser, x0, progress=0.5)

    plain, with_term = terms(None), terms(Dispersive("inc", weight=0.25))
    handle = net.inc.register_forward_hook(lambda module, inputs, out: seen.append(out))
    terms(None)
    handle.remove()
    with_gradient = [z for z in seen if z.requires_grad]
    assert len(seen) == (3 if isinstance(path, FromSelf) else 2) and len(with_gradient) == 1
    expected = 0.25 * Dispersive("inc")(with_gradient[0])
    assert float(with_term.loss) == pytest.approx(float(plain.loss) + float(expected), rel=1e-5)
    assert torch.equal(with_term.mse, plain.mse) and not net.inc._forward_hooks


def test_an_unknown_layer_and_invalid_numbers_are_refused():
    with pytest.raises(ValueError, match="AttentionUNet has no layer 'ink'; did you mean 'inc'"):
        objective_loss(Dispersive("ink"))
    with pytest.raises(ValueError, match="weight and tau must be above 0"):
        Dispersive("inc", tau=0)


def test_an_objective_of_an_older_file_has_no_such_term():
    old = spec(Objective())
    del old["init_args"]["dispersive"]
    assert build(old).dispersive is None
    assert build(spec(Objective(dispersive=Dispersive("inc", 0.1)))).dispersive.weight == 0.1
