"""Parity of networks and their parts with published implementations, on copied weights, in float64: <= 1e-5."""

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlock

from diffusion.exchange.rows import read
from diffusion.exchange.unet2d import table
from diffusion.nets import DiT, UNet
from diffusion.nets.block_unet import ConvBlock
from diffusion.nets.embed import features
from diffusion.nets.layers import MultiHead

pytestmark = pytest.mark.usefixtures("float64")


def close(a, b):
    assert (a - b).norm() / b.norm() < 1e-5, float((a - b).norm() / b.norm())


def copy(ours, theirs):
    """Copy the parameters in order; their shapes must be equal."""
    a, b = list(ours.parameters()), list(theirs.parameters())
    assert [p.shape for p in a] == [p.shape for p in b]
    for p, q in zip(a, b, strict=True):
        p.data.copy_(q)


def copy_attention(ours, theirs):
    """Copy an attention layer, merging their three projections into one."""
    three = (theirs.to_q, theirs.to_k, theirs.to_v)
    ours.qkv.weight.data.copy_(torch.cat([m.weight for m in three]))
    ours.qkv.bias.data.copy_(torch.cat([m.bias for m in three]))
    copy(ours.proj, theirs.to_out[0])


def randomise(net):
    """Randomise all parameters, also norms, biases and zero-initialised ones, to detect swapped ones."""
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.05) if p.ndim > 1 else nn.init.uniform_(p, -0.5, 1.0)
    return net.eval()


class OurFeatures(nn.Module):
    """Our features of the clock in place of theirs: the one deviation, see `embed.features`."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, clock):
        return features(clock, self.width)


def test_multi_head_attention_matches_torch():
    torch.manual_seed(0)
    theirs, ours = nn.MultiheadAttention(32, 4, batch_first=True), MultiHead(32, 4)
    ours.qkv.weight.data.copy_(theirs.in_proj_weight)
    ours.qkv.bias.data.copy_(theirs.in_proj_bias.data.normal_())
    copy(ours.proj, theirs.out_proj)
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        close(ours(x), theirs(x, x, x)[0])


def test_conv_block_matches_torchvision():
    """Without conditioning (its Linear is initially 0); theirs has a norm, a mean and a scale, too."""
    ours, theirs = ConvBlock(12, 8), randomise(CNBlock(12, layer_scale=1.0, stochastic_depth_prob=0.0))
    copy(ours.depthwise, theirs.block[0]), copy(ours.norm, theirs.block[2])
    copy(ours.mlp[0], theirs.block[3]), copy(ours.mlp[3], theirs.block[5])
    ours.scale.data.copy_(theirs.layer_scale.flatten())
    x = torch.randn(2, 12, 9, 5)
    with torch.no_grad():
        close(ours(x, torch.randn(2, 8)), theirs(x))


@pytest.mark.parametrize("variant", ["ddpm", "adm"])
def test_unet_matches_diffusers(variant):
    """DDPM's and ADM's options; widths for which both have 32 groups."""
    unet2d = pytest.importorskip("diffusers.models.unets.unet_2d", reason="pip install -e '.[test]'")
    adm = variant == "adm"
    options = {
        "down_block_types": ("ResnetDownsampleBlock2D" if adm else "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D" if adm else "UpBlock2D"),
        "resnet_time_scale_shift": "scale_shift" if adm else "default",
        "downsample_type": "resnet" if adm else "conv",
        "upsample_type": "resnet" if adm else "conv",
        "attn_norm_num_groups": 32,
        "num_class_embeds": 3 if adm else None,
    }
    theirs = randomise(
        unet2d.UNet2DModel(
            in_channels=3, out_channels=3, block_out_channels=(128, 256), layers_per_block=2,
            attention_head_dim=64, **options,
        )
    )  # fmt: skip
    theirs.time_proj = OurFeatures(128)
    ours = UNet(
        3, 128, (1, 2), 2, attention=(1,), head_width=64, scale_shift=adm, resample_in_blocks=adm,
        num_classes=3 if adm else 0,
    ).eval()  # fmt: skip
    ours.load_state_dict(read(ours, table(ours), theirs.state_dict(), "theirs"))  # every part has its counterpart
    x, t, y = torch.randn(2, 3, 8, 12), torch.tensor([3.0, 977.0]), torch.tensor([2, 0]) if adm else None
    with torch.no_grad():
        close(ours(x, t, y), theirs(x, t, y).sample)


def test_dit_matches_diffusers():
    dit = pytest.importorskip("diffusers.models.transformers.dit_transformer_2d", reason="pip install -e '.[test]'")
    width, p, C = 64, 2, 3
    theirs = dit.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=C, out_channels=2 * C, num_layers=2, sample_size=8,
        patch_size=p, num_embeds_ada_norm=5, norm_eps=1e-6,
    )  # fmt: skip
    randomise(theirs)
    ours = DiT(C, p, width, 2, 2, learn_variance=True, num_classes=5).eval()
    embed = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:  # each of theirs has its own embedding; ours has one per network
        block.norm1.emb = embed
    embed.time_proj = OurFeatures(256)
    copy(ours.clock, embed.timestep_embedder)
    table = embed.class_embedder.embedding_table.weight
    ours.condition.embed.weight.data.copy_(table[:5]), ours.condition.null.data.copy_(table[5])
    ours.inc.weight.data.copy_(theirs.pos_embed.proj.weight.flatten(1))
    ours.inc.bias.data.copy_(theirs.pos_embed.proj.bias)

    def swap(x):
        """Theirs is (shift, scale), ours (scale, shift)."""
        parts = list(x.chunk(len(x) // width))
        for i in (0, 3)[: len(parts) // 2]:
            parts[i], parts[i + 1] = parts[i + 1], parts[i]
        return torch.cat(parts)

    for mine, block in zip(ours.blocks, theirs.transformer_blocks, strict=True):
        mine.tell.weight.data.copy_(swap(block.norm1.linear.weight))
        mine.tell.bias.data.copy_(swap(block.norm1.linear.bias))
        copy_attention(mine.attend, block.attn1)
        copy(mine.mlp[0], block.ff.net[0].proj), copy(mine.mlp[2], block.ff.net[2])
    ours.tell.weight.data.copy_(swap(theirs.proj_out_1.weight)), ours.tell.bias.data.copy_(swap(theirs.proj_out_1.bias))
    # The numbers of a patch: theirs are (p, p, channels), ours (channels, p, p).
    order = torch.arange(p * p * 2 * C).view(p, p, 2 * C).permute(2, 0, 1).flatten()
    (
        ours.outc.weight.data.copy_(theirs.proj_out_2.weight[order]),
        ours.outc.bias.data.copy_(theirs.proj_out_2.bias[order]),
    )
    x, t, y = torch.randn(2, C, 8, 8), torch.tensor([3.0, 977.0]), torch.tensor([4, 1])
    with torch.no_grad():
        close(ours(x, t, y), theirs(x, t, y).sample)
        close(ours(x, t), theirs(x, t, torch.tensor([5, 5])).sample)  # their null is the class after the last
