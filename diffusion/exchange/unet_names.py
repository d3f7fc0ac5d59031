"""The weights of our `UNet` and diffusers' `UNet2DModel`: which of ours is which of theirs. Imports no diffusers.

Theirs has a table of the clock's features, `time_proj`, in place of our formula; the clocks are 0 .. T - 1.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.nets.embed import features
from diffusion.nets.layers import PixelAttention
from diffusion.nets.unet import UNet

RESNET = {
    "norm1": "norm1", "conv1": "conv1", "tell": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
    "shortcut": "conv_shortcut",
}  # fmt: skip
ATTENTION = {"norm": ("group_norm",), "attend.qkv": ("to_q", "to_k", "to_v"), "attend.proj": ("to_out.0",)}
Pair = tuple[str, tuple[str, ...]]  # our module, and theirs; of several, the weights are concatenated


def unmapped(net: nn.Module) -> str:
    """Why a network is no `UNet2DModel`; "" if it is one."""
    if type(net) is not UNet:
        return f"{type(net).__name__} is not a UNet"
    if net.context_dim or net.self_condition or net.image_channels:
        return "UNet2DModel takes neither context vectors, nor previous predictions, nor images as a condition"
    groups = sorted({m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)})
    if len(groups) > 1:
        return f"its norms have {', '.join(map(str, groups))} groups, those of UNet2DModel all the same number"
    widths = attended(net)
    if min(widths) < net.head_width < max(widths):
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
    levels = range(len(net.mults))
    inside = net.resample_in_blocks

    def kind(level: int, way: str) -> str:
        plain = f"Resnet{'Downsample' if way == 'Down' else 'Upsample'}Block2D" if inside else f"{way}Block2D"
        return f"Attn{way}Block2D" if level in net.attention else plain

    return {
        "sample_size": size,
        "in_channels": net.channels,
        "out_channels": net.channels * (1 + (variance and net.learn_variance)),
        "time_embedding_type": "learned",
        "num_train_timesteps": T,
        "block_out_channels": [net.width * m for m in net.mults],
        "layers_per_block": net.blocks,
        "down_block_types": [kind(level, "Down") for level in levels],
        "up_block_types": [kind(level, "Up") for level in reversed(levels)],
        "downsample_type": "resnet" if inside else "conv",
        "upsample_type": "resnet" if inside else "conv",
        "dropout": net.dropout,
        "attention_head_dim": net.head_width if min(attended(net)) >= net.head_width else None,
        "norm_num_groups": net.norm.num_groups,
        "attn_norm_num_groups": net.norm.num_groups,
        "resnet_time_scale_shift": "scale_shift" if net.scale_shift else "default",
        "num_class_embeds": net.num_classes + 1 if net.num_classes else None,
    }


def pairs(net: UNet) -> Iterator[Pair]:
    """Our modules with weights, and theirs, except the class embedding."""
    yield "clock.0", ("time_embedding.linear_1",)
    yield "clock.2", ("time_embedding.linear_2",)
    yield "inc", ("conv_in",)
    last, at = len(net.mults) - 1, 0
    for level in range(last + 1):
        block = f"down_blocks.{level}"
        for k in range(net.blocks):
            yield from _stage(f"downs.{at}", block, k, level in net.attention)
            at += 1
        if level < last:
            yield from _resampling(net, f"downs.{at}", f"{block}.downsamplers.0")
            at += 1
    yield from _stage("middle.0", "mid_block", 0, True)
    yield from _stage("middle.1", "mid_block", 1, False)
    at = 0
    for number, level in enumerate(reversed(range(last + 1))):
        block = f"up_blocks.{number}"
        for k in range(net.blocks + 1):
            yield from _stage(f"ups.{at}", block, k, level in net.attention)
            at += 1
        if level:
            yield from _resampling(net, f"ups.{at}", f"{block}.upsamplers.0")
            at += 1
    yield "norm", ("conv_norm_out",)
    yield "outc", ("conv_out",)


def _stage(ours: str, block: str, k: int, attends: bool) -> Iterator[Pair]:
    yield from ((f"{ours}.block.{a}", (f"{block}.resnets.{k}.{b}",)) for a, b in RESNET.items())
    if attends:
        names = ATTENTION.items()
        yield from ((f"{ours}.attention.{a}", tuple(f"{block}.attentions.{k}.{b}" for b in bs)) for a, bs in names)


def _resampling(net: UNet, ours: str, theirs: str) -> Iterator[Pair]:
    if net.resample_in_blocks:
        yield from ((f"{ours}.{a}", (f"{theirs}.{b}",)) for a, b in RESNET.items())
    else:
        yield ours, (f"{theirs}.conv",)


def to_diffusers(net: UNet, T: int, variance: bool) -> dict[str, Tensor]:
    """The state of the `UNet2DModel` of `options`; the null label is the one after the last."""
    ours, theirs = net.state_dict(), {}
    for name, others in pairs(net):
        for kind in ("weight", "bias"):
            if (value := ours.get(f"{name}.{kind}")) is not None:
                for other, part in zip(others, value.chunk(len(others)), strict=True):
                    theirs[f"{other}.{kind}"] = part
    theirs["time_proj.weight"] = features(torch.arange(T), net.width)
    if net.num_classes:
        null = ours["condition.null"][None]
        theirs["class_embedding.weight"] = torch.cat([ours["condition.embed.weight"], null])
    if net.learn_variance and not variance:
        for kind in ("weight", "bias"):
            theirs[f"conv_out.{kind}"] = theirs[f"conv_out.{kind}"][: net.channels]
    return {name: value.detach().cpu().contiguous() for name, value in theirs.items()}


def from_diffusers(net: UNet, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network from that of the `UNet2DModel` that it is; without its null label, ours is kept.

    Their `time_proj` is left out: ours is a formula.
    """
    ours = dict(net.state_dict())
    for name, others in pairs(net):
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in ours:
                ours[f"{name}.{kind}"] = torch.cat([theirs[f"{other}.{kind}"] for other in others])
    if net.num_classes:
        table = theirs["class_embedding.weight"]
        ours["condition.embed.weight"] = table[: net.num_classes]
        if len(table) > net.num_classes:
            ours["condition.null"] = table[net.num_classes]
    return ours
