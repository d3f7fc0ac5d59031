"""Networks that read text: the null condition, padding, batches, and networks without text."""

import pytest
import torch

from diffusion.denoiser import Condition, Denoiser
from diffusion.nets.attention_unet import AttentionUNet
from diffusion.nets.dit import DiT
from diffusion.nets.text import TextEncoder
from diffusion.nets.unet import UNet
from diffusion.noise import Cosine
from diffusion.support.specs import build, spec
from diffusion.support.tokens import Tokens

TOKENS = Tokens(("a", "red", "cat", "blue", "dog"), 8)


def unet(**more):
    return UNet(3, width=16, mults=[1, 2], blocks=1, attention=[1], head_width=16, **more)


def dit(**more):
    return DiT(3, patch=4, width=32, depth=2, heads=2, **more)


def reading(make):
    """A network that reads text, without the zeros that hide it at first."""
    torch.manual_seed(0)
    net = make(tokens=TOKENS.plain, text_width=16, text_depth=2)
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return net.eval()


def inputs(n):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=draw), torch.linspace(0, 900, n)


@pytest.fixture(params=[unet, dit], ids=["UNet", "DiT"])
def net(request):
    return reading(request.param)


@torch.no_grad()
def test_dropped_missing_and_empty_texts_are_the_same_null_condition(net):
    x, clock = inputs(3)
    y = TOKENS.encode(["a red cat", "", "a blue dog"])
    null = net(x, clock, None)
    assert torch.equal(net(x, clock, TOKENS.encode([""] * 3)), null)
    assert torch.equal(net(x, clock, y, torch.zeros(3, dtype=torch.bool)), null)
    told = net(x, clock, y)
    changed = (told - null).abs().amax((1, 2, 3))
    assert changed[1] == 0 and changed[0] > 1e-3 and changed[2] > 1e-3
    kept = net(x, clock, y, torch.tensor([True, True, False]))
    assert torch.equal(kept[0], told[0]) and torch.equal(kept[2], null[2])


@torch.no_grad()
def test_a_prediction_does_not_depend_on_the_other_texts_of_the_batch(net):
    x, clock = inputs(3)
    y = TOKENS.encode(["a red cat", "a", "a blue dog a red cat"])
    together = net(x, clock, y)
    for k in range(3):
        torch.testing.assert_close(net(x[k : k + 1], clock[k : k + 1], y[k : k + 1])[0], together[k], rtol=0, atol=1e-4)


@torch.no_grad()
def test_order_of_words_matters(net):
    x, clock = inputs(1)
    one, other = (net(x, clock, TOKENS.encode([text])) for text in ("red cat blue dog", "blue cat red dog"))
    assert (one - other).abs().max() > 1e-4


@torch.no_grad()
def test_encoded_text_is_used_as_it_is(net):
    x, clock = inputs(2)
    y = TOKENS.encode(["a red cat", "a blue dog"])
    denoiser = Denoiser(net, Cosine())
    once = denoiser.encoded(y)
    assert once.shape == (2, 9, 16) and denoiser.encoded(once) is once
    assert torch.equal(net(x, clock, once), net(x, clock, y)) and denoiser.conditional
    level = denoiser.schedule.level(torch.tensor(0.5, dtype=torch.float64))
    assert denoiser(x, level, Condition(y)).x0.shape == x.shape


def test_every_weight_of_the_text_has_a_gradient(net):
    x, clock = inputs(2)
    net(x, clock, TOKENS.encode(["a red cat", ""]), torch.tensor([True, True])).square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in without if "text" in name or "whole" in name or "read" in name]


def test_a_network_that_reads_text_is_rebuilt_from_its_spec(net):
    plain = spec(net)
    assert plain["init_args"]["tokens"] == TOKENS.plain
    build(plain).load_state_dict(net.state_dict())


@pytest.mark.parametrize("make", [unet, dit])
def test_a_network_without_text_has_no_weights_for_it_and_the_same_start(make):
    torch.manual_seed(0)
    net = make(num_classes=3)
    assert not [name for name in net.state_dict() if "text" in name or "read" in name or "whole" in name]
    torch.manual_seed(0)
    other = make(num_classes=3, text_width=64, text_depth=1)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def test_text_starts_without_effect_on_pixels():
    """The attention to the text ends in zeros, so training starts from the network without it."""
    net = unet(tokens=TOKENS.plain)
    assert all(not part.read.proj.weight.any() for part in net.middle if part.read is not None)


def test_text_where_it_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="AttentionUNet: reads no text; use UNet or DiT"):
        AttentionUNet(3, tokens=TOKENS.plain)
    with pytest.raises(ValueError, match="got several"):
        unet(tokens=TOKENS.plain, num_classes=3)
    with pytest.raises(ValueError, match="even width"):
        TextEncoder(TOKENS.plain, width=6)
    x, clock = inputs(1)
    with pytest.raises(ValueError, match=r"expected tokens \(B, 8\)"):
        reading(unet)(x, clock, torch.ones(1, 9, dtype=torch.int64))
