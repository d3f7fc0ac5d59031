"""The chain from sampler to network: the repr of its links, and plain user-defined modules."""

import pytest
import torch
from torch import nn

from diffusion.denoiser import AnyLevel, Condition, Denoiser
from diffusion.denoiser.targets import EDM, V
from diffusion.guidance import APG, Clamp, ClassifierFree, Interval, Likelihood, Plain, Steer
from diffusion.nets import AttentionUNet
from diffusion.noise import Flow, Linear


class Own(nn.Module):
    """A user-defined network that declares only its number of classes, four."""

    num_classes = 4

    def forward(self, x, clock, y=None, keep=None):
        return x * (1 if y is None else 1 + y[:, None, None, None])


class Dark(Likelihood):
    def log_p(self, x0, t):
        return -x0.flatten(1).sum(1)


def small(**facts):
    return Denoiser(AttentionUNet(1, (8, 16), heads=2, attention=1, **facts), Flow(), V())


@pytest.mark.parametrize("guidance, printed", [
    (Plain(), "Conditioned(AttentionUNet, Flow, V; y (2,))"),
    (ClassifierFree(3), "Contrasted(WithAndWithout(AttentionUNet, Flow, V; y (4,), keep (4,)), scale 3)"),
    (ClassifierFree(1), "Conditioned(AttentionUNet, Flow, V; y (2,))"),
    (APG(2, rescale=0.7), "Contrasted(WithAndWithout(AttentionUNet, Flow, V; y (4,), keep (4,)), scale 2, rescale 0.7, "
     "Projection(parallel=0.0, threshold=0.0, momentum=-0.5))"),
    (Interval(ClassifierFree(3), 0.2, 5), "Within(Contrasted(WithAndWithout(AttentionUNet, Flow, V; y (4,), keep (4,))"
     ", scale 3), else Conditioned(AttentionUNet, Flow, V; y (2,)), 0.2 < sigma / alpha <= 5)"),
    (Steer(Dark(), 2), "SteeredByGuess(Conditioned(AttentionUNet, Flow, V; y (2,)), Dark, scale 2, std 0.5)"),
    (Steer(Dark(), 2, "network"), "SteeredByNetwork(Conditioned(AttentionUNet, Flow, V; y (2,)), Dark, scale 2)"),
], ids=lambda v: type(v).__name__ if not isinstance(v, str) else "")  # fmt: skip
def test_repr_of_a_chain_shows_every_link_in_one_line(guidance, printed):
    denoiser = small(num_classes=4)
    chain = AnyLevel(Clamp()(guidance(denoiser.walk(), Condition(torch.tensor([0, 3])))), denoiser.schedule)
    assert repr(chain) == f"AnyLevel(Clamped({printed}, -1, 1))"


def test_self_conditioning_is_a_separate_link():
    denoiser = small(self_condition=True)
    walk = denoiser.walk()
    assert walk is not denoiser.walk() and walk.previous is None
    assert repr(walk.bind(Condition())) == "Conditioned(self-conditioned AttentionUNet, Flow, V; no condition)"
    assert small().walk().describe() == "AttentionUNet, Flow, V"


def test_denoiser_copies_the_networks_attributes():
    denoiser = small(num_classes=4, image_channels=2, learn_variance=True, self_condition=True)
    facts = denoiser.num_classes, denoiser.context_dim, denoiser.image_channels
    assert facts == (4, 0, 2) and denoiser.learn_variance and denoiser.self_condition and denoiser.conditional
    assert denoiser.net.in_channels == 4 and denoiser.net.out_channels == 2
    plain = small()
    assert not (plain.conditional or plain.learn_variance or plain.self_condition or plain.image_channels)


def test_denoiser_accepts_a_network_without_the_base_class():
    denoiser = Denoiser(Own(), Linear(), V())
    assert denoiser.num_classes == 4 and denoiser.conditional and denoiser.image_channels == 0
    x, level = torch.randn(2, 1, 4, 4), denoiser.schedule.level(torch.tensor(0.5).double())
    pred = denoiser(x, level, Condition(torch.tensor([0, 1])))
    torch.testing.assert_close(pred.x0[0], (level.alpha - level.sigma) * x[0])  # V: alpha x - sigma out
    torch.testing.assert_close(pred.x0[1], (level.alpha - 2 * level.sigma) * x[1])
    torch.testing.assert_close(level.alpha * pred.x0 + level.sigma * pred.eps, x)


def test_denoiser_applies_the_targets_input_factor():
    seen = []

    class Watches(nn.Module):
        def forward(self, x, clock, y=None, keep=None):
            seen.append(x)
            return x

    class Half(V):
        def c_in(self, t):
            return 0.5

    x, level = torch.randn(2, 1, 4, 4), Linear().level(torch.tensor(0.5).double())
    for target in (V(), Half(), EDM()):
        Denoiser(Watches(), Linear(), target)(x, level)
    assert torch.equal(seen[0], x) and torch.equal(seen[1], x / 2)
    torch.testing.assert_close(seen[2], x / float((level.alpha**2 / 4 + level.sigma**2).sqrt()))
