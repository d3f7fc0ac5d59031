"""The reference network: its parameter table, and the same function on the same weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.nets import AttentionUNet


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_attention_unet_parameter_table():
    net = AttentionUNet()
    assert count(net) == 12_919_041
    assert count(net.inc) == 37_696
    assert [count(m) for m in net.downs] == [295_680, 1_181_184, 2_361_344]
    assert [count(m) for m in net.ups] == [6_195_968, 1_549_696, 406_272]
    assert count(net.outc) == 65
    assert [count(m) for m in net.attentions] == [0, 395_776, 395_776, 99_584, 0, 0]


class Reference(nn.Module):
    """The original network, reimplemented from its description with torch's own attention."""

    def __init__(self):
        super().__init__()

        def double(i, o, mid=None):
            mid = mid or o
            return nn.Sequential(
                nn.Conv2d(i, mid, 3, padding=1, bias=False), nn.GroupNorm(1, mid), nn.GELU(),
                nn.Conv2d(mid, o, 3, padding=1, bias=False), nn.GroupNorm(1, o),
            )  # fmt: skip

        self.inc = double(1, 64)
        self.down = nn.ModuleList(
            nn.ModuleList([double(i, i), double(i, o)]) for i, o in ((64, 128), (128, 256), (256, 256))
        )
        self.up = nn.ModuleList(
            nn.ModuleList([double(i, i), double(i, o, i // 2)]) for i, o in ((512, 128), (256, 64), (128, 64))
        )
        self.outc = nn.Conv2d(64, 1, 1)
        self.sa = nn.ModuleList(
            nn.ModuleDict({
                "mha": nn.MultiheadAttention(c, 4, batch_first=True), "ln": nn.LayerNorm(c),
                "ff": nn.Sequential(nn.LayerNorm(c), nn.Linear(c, c), nn.GELU(), nn.Linear(c, c)),
            }) for c in (256, 256, 128)
        )  # fmt: skip

    def code(self, t, c, x):
        w = 1.0 / (10000 ** (torch.arange(0, c, 2).float() / c))
        return torch.cat([torch.sin(t[:, None] * w), torch.cos(t[:, None] * w)], -1)[:, :, None, None].expand(
            -1, -1, *x.shape[-2:]
        )

    def attend(self, m, x):
        B, C, H, W = x.shape
        z = x.view(B, C, H * W).swapaxes(1, 2)
        n = m["ln"](z)
        a = m["mha"](n, n, n)[0] + z
        return (m["ff"](a) + a).swapaxes(2, 1).view(B, C, H, W)

    def forward(self, x, t):
        def go_down(m, x):
            x = F.max_pool2d(x, 2)
            x = m[1](F.gelu(x + m[0](x)))
            return x + self.code(t, x.shape[1], x)

        def go_up(m, x, skip):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([skip, x], 1)
            x = m[1](F.gelu(x + m[0](x)))
            return x + self.code(t, x.shape[1], x)

        x1 = self.inc(x)
        x2 = go_down(self.down[0], x1)
        x3 = self.attend(self.sa[0], go_down(self.down[1], x2))
        x4 = self.attend(self.sa[1], go_down(self.down[2], x3))
        x = self.attend(self.sa[2], go_up(self.up[0], x4, x3))
        x = go_up(self.up[1], x, x2)
        return self.outc(go_up(self.up[2], x, x1))


def test_attention_unet_matches_the_reference_on_the_same_weights(float64):
    torch.manual_seed(0)
    reference, net = Reference().eval(), AttentionUNet().eval()
    for p in reference.parameters():  # norms and biases too, so that swapped ones are detected
        nn.init.normal_(p, std=0.05) if p.ndim > 1 else nn.init.uniform_(p, 0.5, 1.5)

    def copy(source, target):
        a, b = list(source.parameters()), list(target.parameters())
        assert [p.shape for p in a] == [p.shape for p in b]
        for p, q in zip(a, b, strict=True):
            q.data.copy_(p)

    copy(reference.inc, net.inc), copy(reference.outc, net.outc)
    for theirs, ours in zip([*reference.down, *reference.up], [*net.downs, *net.ups], strict=True):
        copy(theirs, ours)
    for theirs, ours in zip(reference.sa, [net.attentions[i] for i in (1, 2, 3)], strict=True):
        ours.qkv.weight.data.copy_(theirs["mha"].in_proj_weight)
        ours.qkv.bias.data.copy_(theirs["mha"].in_proj_bias)
        copy(theirs["mha"].out_proj, ours.proj), copy(theirs["ln"], ours.norm), copy(theirs["ff"], ours.mlp)
    x, t = torch.randn(2, 1, 32, 32), torch.tensor([3.0, 977.0])
    with torch.no_grad():
        a, b = reference(x, t), net(x, t)
    assert float((a - b).norm() / a.norm()) < 1e-5


SMALL = {"widths": (8, 16, 16), "heads": 2, "attention": 1}


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("size", [(8, 8), (16, 8), (4, 12)])
def test_attention_unet_takes_any_channels_and_sizes(channels, size):
    net = AttentionUNet(channels, **SMALL)
    x = torch.randn(2, channels, *size)
    net(x, torch.tensor([1.0, 2.0])).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_attention_unet_has_gradients_everywhere():
    net = AttentionUNet(1, **SMALL, num_classes=3, ones=True)
    net(
        torch.randn(4, 1, 8, 8), torch.rand(4) * 100, torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 1, 0]).bool()
    ).sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A sum over GroupNorm's output is invariant to shifts and scales before it; everything else needs a gradient.
    assert not [n for n in dead if "condition" in n or "maps" in n or "qkv" in n], dead


def test_attention_unet_depends_on_clock_label_and_null(float64):
    torch.manual_seed(0)
    net = AttentionUNet(1, **SMALL, num_classes=3).eval()
    x, t = torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1), torch.full((4,), 7.0)
    y = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        out = net(x, t, y)
        null = net(x, t, y, torch.zeros(4, dtype=torch.bool))
        assert torch.equal(out, net(x, t, y))  # eval is deterministic
        torch.testing.assert_close(null, net(x, t))  # keep = False equals no label
        torch.testing.assert_close(out[0], out[3])
        assert all((out[i] - out[j]).abs().max() > 1e-4 for i, j in ((0, 1), (1, 2)))
        assert (null[0] - out[0]).abs().max() > 1e-4 and (net(x, t + 100, y) - out).abs().max() > 1e-4


def test_attention_unet_null_is_not_the_zero_context():
    torch.manual_seed(0)
    net = AttentionUNet(3, **SMALL, context_dim=5).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.zeros(2)
    with torch.no_grad():
        assert (net(x, t, torch.zeros(2, 5)) - net(x, t)).abs().max() > 1e-4
        mix = net(x, t, torch.tensor([[1, 0.6, 0, 0, 0]] * 2))
        assert (mix - net(x, t, torch.eye(5)[:2])).abs().max() > 1e-4


def test_ones_channel_preserves_the_scale_of_the_input():
    """The first GroupNorm removes the scale; a constant channel allows the network to recover it."""
    torch.manual_seed(0)
    x, t = torch.randn(2, 1, 8, 8), torch.zeros(2)
    with torch.no_grad():
        blind, seeing = (AttentionUNet(1, **SMALL, ones=o).eval() for o in (False, True))
        assert (blind(2 * x, t) - blind(x, t)).norm() / blind(x, t).norm() < 1e-3
        assert (seeing(2 * x, t) - seeing(x, t)).norm() / seeing(x, t).norm() > 1e-2


def test_attention_unet_dropout_is_off_in_eval():
    net = AttentionUNet(1, **SMALL, dropout=0.5)
    x, t = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


@pytest.mark.parametrize("make, words", [
    (lambda: AttentionUNet()(torch.zeros(1, 1, 28, 28), torch.zeros(1)), "28x28 is not divisible by 8; pad to 32x32"),
    (lambda: AttentionUNet()(torch.zeros(1, 3, 32, 32), torch.zeros(1)), "expected 1 channels, got images of 3"),
    (lambda: AttentionUNet(widths=(64,)), "at least two even"),
    (lambda: AttentionUNet(widths=(63, 64)), "at least two even"),
    (lambda: AttentionUNet(widths=(30, 30, 30), heads=4), "4 heads do not divide 30"),
    (lambda: AttentionUNet(num_classes=3, context_dim=2), "labels or context"),
])  # fmt: skip
def test_attention_unet_errors_state_the_remedy(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


def test_attention_unet_doubles_channels_in_and_out():
    """A learned variance outputs 2C channels, self-conditioning takes 2C; the rest of the network is unchanged."""
    plain = AttentionUNet(3, (8, 16), heads=2, attention=1)
    net = AttentionUNet(3, (8, 16), heads=2, attention=1, learn_variance=True, self_condition=True)
    assert net(torch.randn(2, 6, 8, 8), torch.zeros(2)).shape == (2, 6, 8, 8)
    more = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 3 * 8 * 9 + 3 * (8 + 1)  # three more inputs of the first convolution, outputs of the last
    with pytest.raises(ValueError, match="expected 6 channels"):
        net(torch.randn(2, 3, 8, 8), torch.zeros(2))
