"""Our `UNet` as diffusers' `UNet2DModel`: its arguments and its weights. Imports no diffusers.

Where our clock's features are none of theirs, theirs has a table of them, `time_proj`; the clocks are 0 .. T - 1.
"""

from typing import Any

import torch
from torch import Tensor, nn

from diffusion.exchange.rows import write
from diffusion.exchange.unet2d import CLASSES, CLOCKS, table
from diffusion.nets.embed import features
from diffusion.nets.layers import PixelAttention
from diffusion.nets.unet import UNet

FEATURES = {  # of the clock, by `UNet.sinusoids`
    "any": {"time_embedding_type": "learned"},
    "ddpm": {"time_embedding_type": "positional", "freq_shift": 1, "flip_sin_to_cos": False},
    "adm": {"time_embedding_type": "positional", "freq_shift": 0, "flip_sin_to_cos": True},
}


def unmapped(net: nn.Module) -> str:
    """Why a network is no `UNet2DModel`; "" if it is one."""
    if type(net) is not UNet:
        return f"{type(net).__name__} is not a UNet"
    if net.context_dim or net.self_condition or net.image_channels:
        return "UNet2DModel takes neither context vectors, nor previous predictions, nor images as a condition"
    if net.patch != 1:
        return f"UNet2DModel works on pixels, this network on patches of {net.patch}"
    if net.clock_scale != 1:
        return f"UNet2DModel does not scale its clock, this network by {net.clock_scale:g}"
    groups = sorted({m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)})
    if len(groups) > 1:
        return f"its norms have {', '.join(map(str, groups))} groups, those of UNet2DModel all the same number"
    widths = attended(net)
    if net.heads and len(set(widths)) > 1:
        return "its levels have heads of different widths, those of UNet2DModel all the same"
    if not net.heads and min(widths) < net.head_width < max(widths):
        return f"head_width {net.head_width} is above some levels' channels, which have one head in ours alone"
    return ""


def attended(net: UNet) -> list[int]:
    """The channels of the attention layers."""
    return [m.norm.num_channels for m in net.modules() if isinstance(m, PixelAttention)]


def options(net: UNet, T: int, size: Any, variance: bool) -> dict[str, Any]:
    """The arguments of the `UNet2DModel` that a network is.

    Args:
        T: number of clocks.
        size: height and width of the images, or one number.
        variance: output the variance of the reverse step as well, if the network does.
    """
    levels, inside, widths = range(len(net.mults)), net.resample_in_blocks, attended(net)

    def kind(level: int, way: str) -> str:
        plain = f"Resnet{'Downsample' if way == 'Down' else 'Upsample'}Block2D" if inside else f"{way}Block2D"
        return f"Attn{way}Block2D" if level in net.attention else plain

    head = widths[0] // net.heads if net.heads else net.head_width if min(widths) >= net.head_width else None
    return FEATURES[net.sinusoids] | {
        "sample_size": size,
        "in_channels": net.channels,
        "out_channels": net.channels * (1 + (variance and net.learn_variance)),
        "num_train_timesteps": T,
        "block_out_channels": [round(net.width * m) for m in net.mults],
        "layers_per_block": net.blocks,
        "down_block_types": [kind(level, "Down") for level in levels],
        "up_block_types": [kind(level, "Up") for level in reversed(levels)],
        "downsample_type": "resnet" if inside else "conv",
        "upsample_type": "resnet" if inside else "conv",
        "downsample_padding": 0 if net.pad_end else 1,
        "dropout": net.dropout,
        "attention_head_dim": head,
        "norm_num_groups": net.norm.num_groups,
        "attn_norm_num_groups": net.norm.num_groups,
        "norm_eps": net.eps,
        "resnet_time_scale_shift": "scale_shift" if net.scale_shift else "default",
        "num_class_embeds": net.num_classes + 1 if net.num_classes else None,
    }


def weights(net: UNet, T: int, variance: bool) -> dict[str, Tensor]:
    """The state of the `UNet2DModel` of `options`; the null label is the one after the last."""
    ours = net.state_dict()
    theirs = write(table(net), ours)
    if net.sinusoids == "any":
        theirs[CLOCKS] = features(torch.arange(T), net.width)
    if net.num_classes:
        theirs[CLASSES] = torch.cat([theirs[CLASSES], ours["condition.null"][None]])
    if net.learn_variance and not variance:
        for kind in ("weight", "bias"):
            theirs[f"conv_out.{kind}"] = theirs[f"conv_out.{kind}"][: net.channels]
    return {name: value.detach().cpu().contiguous() for name, value in theirs.items()}
