"""The interface of every network: shapes, gradients, clock, condition, and errors."""

import math

import pytest
import torch
from torch import nn

from diffusion.nets import AttentionUNet, BlockUNet, ContextUNet, DiT, LinearUNet, Net, ResidualMLP, UNet
from diffusion.nets.block_unet import ChannelAttention, ClassAttention
from diffusion.nets.diffusers_unet import DiffusersUNet
from diffusion.nets.dit import angles, rotated
from diffusion.nets.embed import ClockEmbedding
from diffusion.nets.layers import PixelAttention
from diffusion.support.specs import build, concrete, spec

BLOCKS = ("res", "conv", "atn", "chnAtn")
NETS = {
    "context": (ContextUNet, {"width": 16, "pool": 2}),
    "blocks": (BlockUNet, {"blocks": BLOCKS, "width": 8, "t_dim": 16, "c_dim": 16, "head_width": 4}),
    "class": (BlockUNet, {"blocks": ("conv", "clsAtn"), "width": 8, "t_dim": 16, "c_dim": 16, "num_classes": 3}),
    "unet": (UNet, {"width": 8, "mults": (1, 2), "blocks": 1, "head_width": 8}),
    "adm": (UNet, {"width": 8, "mults": (2, 1, 2), "attention": (0, 2), "resample_in_blocks": True}),
    "patched": (UNet, {"width": 8, "mults": (1, 2), "blocks": 1, "head_width": 8, "patch": 2}),
    "ddpm": (UNet, {"width": 8, "mults": (1, 2), "scale_shift": False, "dropout": 0.1}),
    "dit": (DiT, {"width": 16, "depth": 2, "heads": 2}),
    "jit": (DiT, {"width": 16, "depth": 2, "heads": 2, "bottleneck": 6, "modern": True}),
    "tokens": (DiT, {"width": 16, "depth": 2, "heads": 2, "context": 2, "since": 1, "modern": True}),
    "in-context": (DiT, {"width": 16, "depth": 2, "heads": 2, "context": 1, "modulated": False}),
    "in-context jit": (DiT, {"width": 16, "depth": 2, "heads": 2, "context": 1, "modulated": False, "modern": True}),
    "linear": (LinearUNet, {"width": 8, "mults": (1, 2), "heads": 2, "head_width": 4}),
    "mlp": (ResidualMLP, {"size": (8, 8), "width": 16, "depth": 2}),
}


def test_every_network_of_the_package_is_in_the_list():
    elsewhere = {Net, AttentionUNet, DiffusersUNet}  # tests/nets/test_attention_unet.py, test_adapters.py
    missing = concrete(Net, "diffusion") - {kind for kind, _ in NETS.values()} - elsewhere
    assert not missing, f"add a line to NETS for {missing}: a name, the class, and options that make it small"


def make(name, channels=1, **more):
    kind, options = NETS[name]
    if more.get("context_dim"):
        more = {"num_classes": 0} | more
    return kind(channels, **(options | more))


def awake(net):
    """Randomise parameters that are initially 0 (or nearly), so that no branch is inactive."""
    torch.manual_seed(0)
    for p in net.parameters():
        if p.abs().max() < 1e-3:
            nn.init.normal_(p, std=0.2)
    return net


def all_nets(f):
    return pytest.mark.parametrize("name", NETS)(f)


@pytest.mark.parametrize("make, published", [
    # DDPM's CIFAR-10 network: 35.7 million. Source: Ho et al. 2020, arXiv:2006.11239, app. B.
    (lambda: UNet(3, scale_shift=False, head_width=256), (35.7e6, 35_746_307)),
    # DiT-S/2, B/2, L/2, XL/2 on 4x32x32, 1,000 classes, learned variance. Source: Peebles and Xie 2023,
    # arXiv:2212.09748, tab. 4.
    (lambda: DiT(4, 2, 384, 12, 6, learn_variance=True, num_classes=1000), (33e6, 32_865_056)),
    (lambda: DiT(4, 2, 768, 12, 12, learn_variance=True, num_classes=1000), (130e6, 130_315_808)),
    (lambda: DiT(4, 2, 1024, 24, 16, learn_variance=True, num_classes=1000), (458e6, 457_840_672)),
    (lambda: DiT(4, 2, 1152, 28, 16, learn_variance=True, num_classes=1000), (675e6, 674_834_720)),
])  # fmt: skip
def test_networks_have_the_published_numbers_of_parameters(make, published):
    with torch.device("meta"):
        count = sum(p.numel() for p in make().parameters())
    assert count == published[1] and count == pytest.approx(published[0], rel=5e-3)


def test_context_unet_parameters_by_hand():
    """Width 64, 5 features, C = 3: convolutions o(9i + 1), norms 2c, Linear o(i + 1), transposed o(k^2 i) + o."""
    conv = lambda i, o: o * (9 * i + 1) + 2 * o  # noqa: E731  with its norm
    two = lambda i, o: conv(i, o) + conv(o, o)  # noqa: E731
    linear = lambda i, o: o * (i + 1)  # noqa: E731
    net, w = ContextUNet(3, 64, context_dim=5), 64
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert count(net.inc) == two(3, w) + linear(3, w)
    assert count(net.down1) == 2 * two(w, w) and count(net.down2) == two(w, 2 * w) + two(2 * w, 2 * w)
    assert count(net.up0) == 16 * (2 * w) ** 2 + 2 * w + 2 * 2 * w
    assert count(net.up1) == 4 * 4 * w * w + w + 2 * two(w, w) and count(net.up2) == 4 * 2 * w * w + w + 2 * two(w, w)
    for c, factor, clock in zip((2 * w, w), net.factors, net.clocks, strict=True):
        assert count(factor) == linear(5, c) + linear(c, c) + c  # the last is the null embedding
        assert count(clock) == linear(w, c) + linear(c, c)
    assert count(net.outc) == conv(2 * w, w) + 3 * (9 * w + 1)


def test_context_scales_and_clock_shifts_in_context_unet():
    """With factors of 0 an up stage ignores its input, and the output depends on the clock alone."""
    net = ContextUNet(3, 16, 1, context_dim=5).eval()
    x, other = torch.randn(2, 1, 3, 8, 8)
    seen = []
    net.up1.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, :32]))
    for factor in net.factors:
        nn.init.zeros_(factor.map.weight), nn.init.zeros_(factor.map.bias)
    with torch.no_grad():
        for image, clock in ((x, 3.0), (other, 3.0), (x, 700.0)):
            net(image, torch.tensor([clock]), torch.eye(5)[:1])
        added = net.clocks[0](torch.tensor([3.0]))[:, :, None, None].expand_as(seen[0])
    assert torch.equal(seen[0], added) and torch.equal(seen[1], added) and not torch.equal(seen[2], added)


def test_class_attention_depends_on_the_class_and_the_pixel():
    torch.manual_seed(0)
    block = awake(ClassAttention(8, 6, 4))
    x, a, b = torch.randn(1, 8, 4, 4), torch.randn(1, 6), torch.randn(1, 6)
    with torch.no_grad():
        one, two = block(x, a) - x, block(x, b) - x
    assert (one - two).norm() / one.norm() > 0.1  # the output depends on the class
    assert one.std((2, 3)).norm() / one.norm() > 1e-3  # and on the pixel


def test_patch_attention_is_attention_among_patch_tokens(float64):
    """A patch of p x p pixels is a token of p^2 C numbers."""
    torch.manual_seed(0)
    block = awake(PixelAttention(8, 4, patch=2))
    x = torch.randn(1, 8, 4, 6)
    with torch.no_grad():
        h, out = block.norm(x), block(x)
        cells = [h[0, :, i : i + 2, j : j + 2].flatten() for i in (0, 2) for j in (0, 2, 4)]
        said = block.attend(torch.stack(cells)[None])[0]
    last = x[0, :, 2:4, 4:6] + said[-1].view(8, 2, 2)
    torch.testing.assert_close(out[0, :, 2:4, 4:6], last)


def test_channel_attention_is_its_formula(float64):
    block = ChannelAttention(64)
    assert block.conv.kernel_size == (3,) and ChannelAttention(512).conv.kernel_size == (5,)  # the paper's k(C)
    x = torch.randn(2, 64, 3, 5)
    w, mean = block.conv.weight.detach().flatten(), nn.functional.pad(x.mean((2, 3)), (1, 1))
    gate = torch.sigmoid(sum(w[i] * mean[:, i : i + 64] for i in range(3)))
    torch.testing.assert_close(block(x).detach(), x * gate[:, :, None, None])


@all_nets
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (16, 8)])
def test_networks_take_channels_and_sizes_with_all_gradients(name, channels, size):
    more = {"size": size} if name == "mlp" else {}
    net = awake(make(name, channels, num_classes=3, **more))
    y, keep = torch.tensor([0, 1, 2, 0]), torch.tensor([True, True, True, False])
    x = torch.randn(4, channels, *size)
    out = net(x, torch.tensor([0.0, 30.0, 500.0, 999.0]), y, keep)
    assert out.shape == x.shape
    (out * torch.randn_like(out)).sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not dead


@all_nets
def test_networks_survive_their_spec_with_their_weights(name):
    net = make(name, 3, learn_variance=True, self_condition=True)
    again = build(spec(net))
    assert spec(again) == spec(net)
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, 6, 8, 8)
    assert torch.equal(again.eval()(x, torch.ones(2)), net.eval()(x, torch.ones(2)))


@all_nets
def test_networks_double_channels_in_and_out(name):
    net = awake(make(name, 3, learn_variance=True, self_condition=True)).eval()
    x = torch.randn(2, 6, 8, 8)
    out = net(x, torch.zeros(2))
    assert out.shape == (2, 6, 8, 8)
    changed = net(torch.cat([x[:, :3], -x[:, 3:]], dim=1), torch.zeros(2))
    assert (changed - out).abs().max() > 1e-3  # it uses the previous prediction
    with pytest.raises(ValueError, match=f"{type(net).__name__}: expected 6 channels, got images of 3"):
        net(x[:, :3], torch.zeros(2))


@all_nets
def test_conditioning_images_are_used_and_cost_only_their_input_channels(name):
    """K more channels for the first layer, none by default."""
    kind, options = NETS[name]
    plain, net = kind(3, **options), awake(kind(3, **options, image_channels=2))
    assert build(spec(net)).image_channels == 2
    shapes = {n: p.shape for n, p in plain.named_parameters()}
    grown = {n: p for n, p in net.named_parameters() if p.shape != shapes[n]}
    assert set(grown) <= {"inc.weight", "inc.0.weight", "inc.body.0.weight", "inc.shortcut.weight"} and grown
    for n, p in grown.items():  # 5 input channels instead of 3, and nothing else
        assert p.numel() * 3 == shapes[n].numel() * 5
    x = torch.randn(2, 5, 8, 8)
    changed = x.clone()
    changed[:, 3:] += 1
    with torch.no_grad():
        out = net.eval()(x, torch.zeros(2))
        assert out.shape == (2, 3, 8, 8) and (net(changed, torch.zeros(2)) - out).abs().max() > 1e-3
    with pytest.raises(ValueError, match=f"{kind.__name__}: expected 5 channels, got images of 3"):
        net(x[:, :3], torch.zeros(2))


@all_nets
def test_networks_depend_on_clock_label_and_null(name, float64):
    net = awake(make(name, num_classes=3)).eval()
    x, t = torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1), torch.full((4,), 7.0)
    y = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        out = net(x, t, y)
        null = net(x, t, y, torch.zeros(4, dtype=torch.bool))
        assert torch.equal(out, net(x, t, y))  # eval is deterministic
        torch.testing.assert_close(null, net(x, t))  # keep = False equals no label
        torch.testing.assert_close(out[0], out[3])
        # images do not depend on their batch
        torch.testing.assert_close(net(x[:2], t[:2], y[:2]), out[:2])
        far = lambda a, b: float((a - b).norm() / b.norm()) > 1e-4  # noqa: E731
        assert far(out[0], out[1]) and far(out[1], out[2]) and far(null[0], out[0])
        assert all(far(net(x, t + d, y), out) for d in (1, 500))
        assert far(net(x, torch.full((4,), -1.2), y), net(x, torch.full((4,), -1.0), y))  # EDM's clock, log(sigma) / 4


@all_nets
def test_null_is_not_the_zero_context_in_any_network(name):
    net = awake(make(name, 3, context_dim=5)).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.zeros(2)
    with torch.no_grad():
        zeros = net(x, t, torch.zeros(2, 5))
        assert (zeros - net(x, t)).norm() / zeros.norm() > 1e-3
        mix = net(x, t, torch.tensor([[1, 0.6, 0, 0, 0]] * 2))
        assert (mix - net(x, t, torch.eye(5)[:2])).norm() / mix.norm() > 1e-3


@all_nets
def test_channels_last_weights_give_the_same_output(name, float64):
    net = awake(make(name, 3)).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        out = net(x, t)
        net.to(memory_format=torch.channels_last)
        for order in (torch.contiguous_format, torch.channels_last):
            torch.testing.assert_close(net(x.to(memory_format=order), t), out)


@all_nets
@pytest.mark.parametrize("how", ["double", "bfloat16", "autocast"])
def test_networks_run_in_every_precision(name, how):
    net, x, t = awake(make(name)).eval(), torch.randn(2, 1, 8, 8), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        out = net(x, t)
        if how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                other = net(x, t)
        else:
            other = net.to(getattr(torch, how))(x.to(getattr(torch, how)), t)
            assert other.dtype == getattr(torch, how)
        assert (other.float() - out).norm() / out.norm() < (1e-4 if how == "double" else 0.1)


@pytest.mark.parametrize("name", ["blocks", "ddpm", "mlp"])
def test_dropout_is_off_in_eval_in_every_network(name):
    net = awake(make(name, dropout=0.5))
    x, t = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


@pytest.mark.parametrize("name", ["blocks", "class", "unet", "adm", "ddpm", "dit", "tokens", "in-context", "mlp"])
def test_networks_initially_output_zero(name):
    """The last layer is initially 0, so the loss of a target of variance 1 starts at 1."""
    assert make(name)(torch.randn(2, 1, 8, 8), torch.zeros(2)).abs().max() == 0


@all_nets
def test_networks_preserve_the_scale_of_the_input(name):
    """Norms remove scales; biases allow the network to recover them."""
    net = awake(make(name)).eval()
    for n, p in net.named_parameters():
        if n in ("inc.bias", "inc.body.0.bias"):
            nn.init.normal_(p, std=0.5)
    x, t = torch.randn(2, 1, 8, 8), torch.zeros(2)
    with torch.no_grad():
        a, b = net(x, t), net(2 * x, t)
        assert (a - b).norm() / a.norm() > 1e-2


KARRAS = (math.log(0.002) / 4, math.log(80) / 4)


@pytest.mark.parametrize("span", [(0, 999), (1, 1000), KARRAS], ids=["index", "1000 t", "log(sigma) / 4"])
def test_clock_embedding_resolves_every_schedules_clock(span):
    """A linear map of a fresh embedding fits the position in the span, a bump 5% wide, and four periods over it."""
    torch.manual_seed(0)
    u = torch.linspace(0, 1, 1000, dtype=torch.float64)
    embed = nn.Sequential(ClockEmbedding(64, 256), nn.SiLU())
    with torch.no_grad():
        f = embed(span[0] + (span[1] - span[0]) * u).double()
    f = f - f.mean(0)
    cov = f.T @ f / len(f)
    cov += 1e-4 * cov.diagonal().mean() * torch.eye(len(cov), dtype=torch.float64)
    wanted = torch.stack([u, torch.exp(-(((u - 0.35) / 0.05) ** 2) / 2), torch.sin(8 * math.pi * u)], dim=1)
    wanted = wanted - wanted.mean(0)
    read = f @ torch.linalg.solve(cov, f.T @ wanted / len(f))
    assert ((read - wanted).square().mean(0) / wanted.square().mean(0) < 0.03).all()


@pytest.mark.parametrize("make, words", [
    (lambda: UNet(1, 8, head_width=8)(torch.zeros(1, 1, 28, 28), torch.zeros(1)),
     "UNet: 28x28 is not divisible by 8; pad to 32x32 or give fewer than 4 mults"),
    (lambda: UNet(attention=(4,)), "attention at levels 0 .. 3"),
    (lambda: UNet(width=80), "head_width 64 does not divide 160 channels"),
    (lambda: UNet(width=30), "multiple of 4"),
    (lambda: DiT(1, 4, 16, 1, 2)(torch.zeros(1, 1, 8, 6), torch.zeros(1)), "8x6 is not divisible by 4; pad to 8x8"),
    (lambda: DiT(width=30), "width a multiple of 4"),
    (lambda: DiT(width=16, heads=3), "3 heads do not divide 16"),
    (lambda: DiT(bottleneck=-1), "bottleneck >= 0; got 384, 2, 12 and -1"),
    (lambda: DiT(context=-1), "context >= 0, since in [0, depth), and without modulated context >= 1 and since 0; got"),
    (lambda: DiT(context=2, since=12), "got context 2, since 12 of 12, modulated True"),
    (lambda: DiT(modulated=False), "got context 0, since 0 of 12, modulated False"),
    (lambda: DiT(width=12, heads=2, modern=True), "heads of a multiple of 4 channels, got 12 channels, 2 heads"),
    (lambda: ResidualMLP(2)(torch.zeros(1, 2, 3, 1), torch.zeros(1)), "expected images of size [1, 1], got [3, 1]"),
    (lambda: ResidualMLP(2)(torch.zeros(1, 3, 1, 1), torch.zeros(1)), "expected 2 channels, got images of 3"),
    (lambda: ContextUNet()(torch.zeros(1, 3, 8, 8), torch.zeros(1)), "8x8 is not divisible by 16; pad to 16x16 or"),
    (lambda: BlockUNet()(torch.zeros(1, 1, 6, 8), torch.zeros(1)), "6x8 is not divisible by 4; pad to 8x8"),
    (lambda: BlockUNet(blocks=["res", "rez"]), "blocks must be among res, conv, clsAtn, atn, chnAtn; got rez"),
    (lambda: BlockUNet(blocks=["atn"]), "must include res or conv"),
    (lambda: BlockUNet(blocks=["res", "clsAtn"]), "give num_classes or leave clsAtn out"),
    (lambda: BlockUNet(patch=3), "patch a power of 2"),
    (lambda: DiT(num_classes=3, context_dim=2), "labels or context"),
])  # fmt: skip
def test_network_errors_state_the_remedy(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


def test_products_of_rotated_features_depend_on_the_distance_alone():
    """A query and a key two rows down and one column to the left, anywhere in the grid."""
    torch.manual_seed(0)
    by = angles(6, 5, 8, torch.device("cpu")).double()
    q, k = (rotated(torch.randn(8).double().expand(30, 8), by).reshape(6, 5, 8) for _ in range(2))
    products = (q[:4, 1:] * k[2:, :4]).sum(-1)
    torch.testing.assert_close(products, products[0, 0].expand(4, 4), rtol=1e-6, atol=1e-6)
    assert (q[:4, 1:] * k[1:5, :4]).sum(-1)[0, 0] != pytest.approx(float(products[0, 0]), rel=1e-3)
    torch.testing.assert_close(q.norm(dim=-1), q[0, 0].norm().expand(6, 5))
    assert torch.equal(by[0], torch.zeros(4).double())
    torch.testing.assert_close(by[7], torch.tensor([1, 0.01, 2, 0.02]).double())  # row 1, column 2


def test_a_bottleneck_is_a_linear_map_of_low_rank():
    net = make("jit")
    weight = net.inc[1].weight @ net.inc[0].weight
    assert weight.shape == (16, 4) and net.inc[0].weight.shape == (6, 4)
    assert net(torch.randn(2, 1, 6, 10), torch.zeros(2)).shape == (2, 1, 6, 10)


def test_tokens_in_context_are_of_clock_and_condition(float64):
    """As many of each, repeated with positions of their own; from the block where they enter, the image sees them."""
    net = awake(make("tokens", num_classes=3)).eval()
    assert net.places.shape == (4, 16) and make("tokens").places.shape == (2, 16)
    seen = {}
    for k, block in enumerate(net.blocks):
        block.register_forward_pre_hook(lambda module, args, k=k: seen.update({k: args[0]}))
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([0, 2])
    with torch.no_grad():
        net(x, t, y)
        told = torch.stack([net.clock(t), net.condition(y, None, 2)], 1).repeat_interleave(2, 1)
    assert seen[0].shape == (2, 16, 16) and seen[1].shape == (2, 20, 16)
    torch.testing.assert_close(seen[1][:, :4], told + net.places)


@pytest.mark.parametrize("name", ["in-context", "in-context jit"])
def test_blocks_without_modulation_are_initially_the_identity(name):
    net = make(name)
    x = torch.randn(2, 5, 16)
    by = (torch.zeros(5, 4),) if net.modern else ()
    assert net.tell is None and all(torch.equal(block(x, None, *by), x) for block in net.blocks)
