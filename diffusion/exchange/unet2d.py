"""UNet and diffusers' UNet2DModel: the same network, so each configuration and weight has its counterpart."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from diffusion.exchange.rows import Row, pair
from diffusion.nets.layers import ResBlock
from diffusion.nets.unet import Stage, UNet

RES = {"norm1": "norm1", "conv1": "conv1", "tell": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention before diffusers 0.15
FIXED = {  # arguments of UNet2DModel with one supported value, and others that mean the same
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
DEFAULTS = {  # of UNet2DModel
    "freq_shift": 0, "flip_sin_to_cos": True, "layers_per_block": 2, "downsample_padding": 1, "downsample_type": "conv",
    "upsample_type": "conv", "dropout": 0.0, "attention_head_dim": 8, "norm_num_groups": 32, "norm_eps": 1e-5,
    "attn_norm_num_groups": None, "resnet_time_scale_shift": "default", "num_class_embeds": None, "in_channels": 3,
    "out_channels": 3, "block_out_channels": (224, 448, 672, 896), "time_embedding_dim": None,
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
}  # fmt: skip
PLAIN, ATTENDS, RESAMPLES = "{}Block2D", "Attn{}Block2D", "Resnet{}sampleBlock2D"


def resnet(ours: str, theirs: str, block: ResBlock) -> Iterator[Row]:
    """The rows of a residual block."""
    for mine, its in RES.items():
        yield from pair(f"{ours}.{mine}", f"{theirs}.{its}")
    if not isinstance(block.shortcut, nn.Identity):
        yield from pair(f"{ours}.shortcut", f"{theirs}.conv_shortcut")


def attention(ours: str, theirs: str) -> Iterator[Row]:
    """The rows of an attention layer, whose three projections are one in ours."""
    yield from pair(f"{ours}.norm", f"{theirs}.group_norm")
    for name in ("weight", "bias"):
        yield Row(f"{ours}.attend.qkv.{name}", tuple(f"{theirs}.{part}.{name}" for part in ("to_q", "to_k", "to_v")))
    yield from pair(f"{ours}.attend.proj", f"{theirs}.to_out.0")


def half(net: UNet, way: str) -> Iterator[Row]:
    """The rows of the way down or up."""
    parts = enumerate(net.downs if way == "down" else net.ups)
    for level in range(len(net.mults)):
        block, last = f"{way}_blocks.{level}", level == len(net.mults) - 1
        for k in range(net.blocks + (way == "up")):
            number, part = next(parts)
            yield from resnet(f"{way}s.{number}.block", f"{block}.resnets.{k}", part.block)
            if not isinstance(part.attention, nn.Identity):
                yield from attention(f"{way}s.{number}.attention", f"{block}.attentions.{k}")
        if not last:
            number, part = next(parts)
            ours, theirs = f"{way}s.{number}", f"{block}.{way}samplers.0"
            yield from resnet(ours, theirs, part) if isinstance(part, ResBlock) else pair(ours, f"{theirs}.conv")


def table(net: UNet) -> list[Row]:
    """Every parameter of a UNet beside those of UNet2DModel, except the null embedding, which that does not have."""

    def rows() -> Iterator[Row]:
        yield from pair("clock.0", "time_embedding.linear_1")
        yield from pair("clock.2", "time_embedding.linear_2")
        yield from pair("inc", "conv_in")
        yield from half(net, "down")
        for k in range(2):
            stage: Stage = net.middle[k]
            yield from resnet(f"middle.{k}.block", f"mid_block.resnets.{k}", stage.block)
        yield from attention("middle.0.attention", "mid_block.attentions.0")
        yield from half(net, "up")
        yield from pair("norm", "conv_norm_out")
        yield from pair("outc", "conv_out")
        if net.num_classes:
            yield from pair("condition.embed", "class_embedding", bias=False)

    return list(rows())


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of any version of diffusers with the present names of its attention layers."""
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        if len(parts) > 1 and parts[-2] in OLD:
            parts[-2] = OLD[parts[-2]]
        found[".".join(parts)] = value.flatten(1) if "attentions" in parts and value.ndim == 4 else value
    return found


def options_of(config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], bool]:
    """The arguments of our UNet for a configuration of UNet2DModel, and whether sine and cosine are swapped.

    Raises:
        ValueError: a detail that our UNet does not have, by name.
    """
    for name, values in FIXED.items():
        if (found := config.get(name, values[0])) not in values:
            raise ValueError(f"{source}: UNet2DModel with {name} {found!r} is not supported, only {values[0]!r}")
    given = DEFAULTS | {k: v for k, v in config.items() if k in DEFAULTS}
    widths = [int(w) for w in given["block_out_channels"]]
    levels, resnets = len(widths), {given["downsample_type"] == "resnet", given["upsample_type"] == "resnet"}
    attends = []
    for way, types in (("Down", given["down_block_types"]), ("Up", given["up_block_types"][::-1])):
        known = [kind.format(way) for kind in (PLAIN, ATTENDS, RESAMPLES)]
        for kind in types:
            if kind not in known:
                raise ValueError(f"{source}: UNet2DModel with {kind} is not supported, only {', '.join(known)}")
        attends.append([level for level, kind in enumerate(types) if kind == known[1]])
        resnets |= {kind == known[2] for kind in types[: levels - 1] if kind != known[1]}
    if attends[0] != attends[1]:
        raise ValueError(
            f"{source}: UNet2DModel attends at levels {attends[0]} down, {attends[1]} up; expected the same"
        )
    if levels > 1 and len(resnets) > 1:
        raise ValueError(
            f"{source}: UNet2DModel resamples by convolutions and residual blocks; expected one of the two"
        )
    groups, shift = given["norm_num_groups"], given["resnet_time_scale_shift"] == "scale_shift"
    if (given["attn_norm_num_groups"] or (None if shift else groups)) != groups:
        raise ValueError(f"{source}: UNet2DModel with attn_norm_num_groups other than norm_num_groups is not supported")
    if given["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise ValueError(f"{source}: UNet2DModel with time_embedding_dim other than 4 block_out_channels[0]")
    if given["freq_shift"] not in (0, 1) or given["downsample_padding"] not in (0, 1):
        raise ValueError(f"{source}: UNet2DModel with freq_shift or downsample_padding other than 0 and 1")
    C, out = given["in_channels"], given["out_channels"]
    if out not in (C, 2 * C):
        raise ValueError(f"{source}: {C} channels in and {out} out; expected as many, or twice for a learned variance")
    sinusoids = "ddpm" if given["freq_shift"] else "adm"
    return {
        "channels": C,
        "width": widths[0],
        "mults": [w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths],
        "blocks": given["layers_per_block"],
        "attention": attends[0],
        "head_width": given["attention_head_dim"] or max(widths),
        "scale_shift": shift,
        "resample_in_blocks": resnets == {True},
        "dropout": given["dropout"],
        "groups": groups,
        "eps": given["norm_eps"],
        "sinusoids": sinusoids,
        "pad_end": given["downsample_padding"] == 0 and resnets == {False},
        "learn_variance": out == 2 * C,
        "num_classes": given["num_class_embeds"] or 0,
    }, given["flip_sin_to_cos"] != (sinusoids == "adm")


def swapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of UNet2DModel for sines and cosines in the other order."""
    weight = state["time_embedding.linear_1.weight"]
    return dict(state) | {"time_embedding.linear_1.weight": weight.roll(weight.shape[1] // 2, 1)}
