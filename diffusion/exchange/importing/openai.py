"""Checkpoints of improved-diffusion and guided-diffusion: the state dict of a `UNetModel`, and the flags that made it.

The architecture is read from the weights; a flag that contradicts them is an error. What weights cannot show, such as
the number of heads and the noise schedule, has the program's default unless a flag gives it.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffusion.denoiser.targets import X0, Eps
from diffusion.exchange.importing.found import Imported, Unsupported, by_part, conv_as_linear, flag, null_as_mean
from diffusion.exchange.importing.reading import read_torch
from diffusion.exchange.rows import Row, pair, read
from diffusion.guidance import Clamp
from diffusion.nets.layers import ResBlock
from diffusion.nets.unet import UNet
from diffusion.noise import Cosine, Linear
from diffusion.samplers import DDIM, DDPM, Sampler

IMPROVED, GUIDED = "improved-diffusion", "guided-diffusion"
HIDDEN: dict[str, tuple[type, Any]] = {  # what weights do not show: type and default, None is required
    "image_size": (int, None),
    "num_heads": (int, 4),
    "num_head_channels": (int, -1),
    "num_heads_upsample": (int, -1),
    "use_new_attention_order": (bool, False),
    "dropout": (float, 0.0),
    "diffusion_steps": (int, 1000),
    "noise_schedule": (str, "linear"),
    "predict_xstart": (bool, False),
    "sigma_small": (bool, False),
    "rescale_timesteps": (bool, False),
    "timestep_respacing": (str, ""),
}
SHOWN = {  # what weights show
    "num_channels": int, "num_res_blocks": int, "channel_mult": str, "attention_resolutions": str,
    "use_scale_shift_norm": bool, "resblock_updown": bool, "learn_sigma": bool, "class_cond": bool,
}  # fmt: skip
IGNORED = (  # of training and of sampling, without effect on what weights mean
    "use_fp16", "use_checkpoint", "use_kl", "rescale_learned_sigmas", "batch_size", "microbatch", "lr", "ema_rate",
    "num_samples", "model_path", "data_dir", "use_ddim", "clip_denoised", "log_interval", "save_interval",
    "schedule_sampler", "weight_decay", "lr_anneal_steps", "resume_checkpoint", "fp16_scale_growth", "classifier_scale",
    "classifier_path",
)  # fmt: skip
FLAGS = {**HIDDEN, **SHOWN, **dict.fromkeys(IGNORED)}
RES = {"norm1": "in_layers.0", "conv1": "in_layers.2", "tell": "emb_layers.1", "norm2": "out_layers.0",
       "conv2": "out_layers.3"}  # fmt: skip


def fits(found: Any) -> bool:
    """Whether the contents of a file are the state of a UNetModel."""
    return isinstance(found, dict) and {"time_embed.0.weight", "input_blocks.0.0.weight"} <= found.keys()


def table(net: UNet, new_order: bool) -> list[Row]:
    """Every parameter of a UNet beside those of UNetModel.

    Args:
        new_order: whether the rows of qkv are ordered by part, not by head.
    """

    def resnet(ours: str, theirs: str, block: ResBlock) -> Iterator[Row]:
        for mine, its in RES.items():
            yield from pair(f"{ours}.{mine}", f"{theirs}.{its}")
        if not isinstance(block.shortcut, nn.Identity):
            yield from pair(f"{ours}.shortcut", f"{theirs}.skip_connection")

    def stage(ours: str, theirs: str, part: nn.Module) -> Iterator[Row]:
        yield from resnet(f"{ours}.block", f"{theirs}.0", part.block)
        if isinstance(part.attention, nn.Identity):
            return
        yield from pair(f"{ours}.attention.norm", f"{theirs}.1.norm")
        order = conv_as_linear if new_order else partial(by_part, heads=part.attention.attend.heads)
        for name in ("weight", "bias"):
            yield Row(f"{ours}.attention.attend.qkv.{name}", (f"{theirs}.1.qkv.{name}",), order)
            yield Row(f"{ours}.attention.attend.proj.{name}", (f"{theirs}.1.proj_out.{name}",), conv_as_linear)

    def resample(ours: str, theirs: str, part: nn.Module, conv: str) -> Iterator[Row]:
        yield from resnet(ours, theirs, part) if isinstance(part, ResBlock) else pair(ours, f"{theirs}.{conv}")

    def rows() -> Iterator[Row]:
        yield from pair("clock.0", "time_embed.0")
        yield from pair("clock.2", "time_embed.2")
        if net.num_classes:
            yield from pair("condition.embed", "label_emb", bias=False)
        yield from pair("inc", "input_blocks.0.0")
        for k, part in enumerate(net.downs):
            ours, theirs = f"downs.{k}", f"input_blocks.{k + 1}"
            yield from (
                stage(ours, theirs, part) if hasattr(part, "attention") else resample(ours, f"{theirs}.0", part, "op")
            )
        yield from stage("middle.0", "middle_block", net.middle[0])
        yield from resnet("middle.1.block", "middle_block.2", net.middle[1].block)
        number, at = -1, 0
        for k, part in enumerate(net.ups):
            if hasattr(part, "attention"):
                number += 1
                yield from stage(f"ups.{k}", f"output_blocks.{number}", part)
                at = 1 if isinstance(part.attention, nn.Identity) else 2
            else:  # theirs resamples at the end of a level's last block
                yield from resample(f"ups.{k}", f"output_blocks.{number}.{at}", part, "conv")
        yield from pair("norm", "out.0")
        yield from pair("outc", "out.2")

    return list(rows())


def options_of(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of our UNet that the weights of a UNetModel show.

    Raises:
        Unsupported: a super-resolution network, or pooling without convolutions.
    """
    width, C = state["input_blocks.0.0.weight"].shape[:2]
    out = state["out.2.weight"].shape[0]
    if out not in (C, 2 * C):
        raise Unsupported(
            f"{source}: {C} channels in and {out} out are not supported; expected as many, or twice for learn_sigma "
            "(networks of super-resolution are not imported)"
        )
    above = {  # the parts of output blocks that double the size: a convolution, or a residual block after the first
        name.split(".")[1]: "in_layers" in name
        for name in state
        if name.startswith("output_blocks.") and (".conv.weight" in name or ".in_layers.0.weight" in name)
        and name.split(".")[2] != "0"
    }  # fmt: skip
    levels = 1 + len(above)
    blocks = (1 + max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks."))) // levels - 1
    firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]  # of each level
    try:
        widths = [state[f"{at}.0.out_layers.3.weight"].shape[0] for at in firsts]
        told = state[f"{firsts[0]}.0.emb_layers.1.weight"].shape[0]
    except KeyError as error:
        raise Unsupported(f"{source}: the weights {error} are missing; expected those of a UNetModel") from error
    return {
        "channels": C,
        "width": width,
        "mults": [w // width if w % width == 0 else w / width for w in widths],
        "blocks": blocks,
        "attention": [level for level, at in enumerate(firsts) if f"{at}.1.qkv.weight" in state],
        "scale_shift": told == 2 * widths[0],
        "resample_in_blocks": any(above.values()),
        "learn_variance": out == 2 * C,
        "num_classes": len(state["label_emb.weight"]) if "label_emb.weight" in state else 0,
    }


def contradictions(flags: Mapping[str, Any], options: Mapping[str, Any], size: int) -> Iterator[str]:
    """The flags that the weights contradict, in words."""
    shown = {
        "num_channels": options["width"],
        "num_res_blocks": options["blocks"],
        "channel_mult": ",".join(f"{m:g}" for m in options["mults"]),
        "attention_resolutions": ",".join(str(size >> level) for level in options["attention"]),
        "use_scale_shift_norm": options["scale_shift"],
        "resblock_updown": options["resample_in_blocks"],
        "learn_sigma": options["learn_variance"],
        "class_cond": options["num_classes"] > 0,
    }
    for name, value in shown.items():
        given = flag(flags, name, SHOWN[name])
        if given in (None, ""):
            continue
        same = set(given.split(",")) == set(value.split(",")) if name.startswith("attention") else given == value
        if not same:
            yield f"--{name} {given}, but the weights are of {value}"


def sampler_of(respacing: str, T: int, variance: Any, source: str) -> Sampler:
    """The sampler of a timestep_respacing: all steps, a number of DDPM's, or ddimN.

    Raises:
        Unsupported: several sections.
    """
    number = respacing.removeprefix("ddim")
    if not respacing:
        return DDPM(T, variance)
    if not number.isdecimal():
        raise Unsupported(f"{source}: timestep_respacing {respacing!r} is not supported, only a number or ddimN")
    return DDIM(int(number), grid="leading") if respacing != number else DDPM(int(number), variance, "linspace")


def load(path: Path, flags: Mapping[str, Any], found: Any, source: str) -> Imported:
    """The model of a state dict of UNetModel.

    Args:
        source: improved-diffusion or guided-diffusion, which differ in defaults.
    Raises:
        Unsupported: a detail that our UNet does not have.
        ValueError: image_size is missing, flags contradict the weights, or weights do not fit.
    """
    state: Mapping[str, Tensor] = read_torch(path) if found is None else found
    usual = {name: value for name, (_, value) in HIDDEN.items()} | {"rescale_timesteps": source == IMPROVED}
    hidden = {name: flag(flags, name, kind, usual[name]) for name, (kind, _) in HIDDEN.items()}
    size = hidden["image_size"]
    if size is None:
        raise ValueError(
            f"{path}: needs the flags that made it, which are not in it: --image_size 64, and --num_heads, "
            "--noise_schedule, --diffusion_steps, ... where they are not the defaults of " + source
        )
    options = options_of(state, str(path))
    if wrong := "; ".join(contradictions(flags, options, size)):
        raise ValueError(f"{path}: {wrong}")
    if hidden["num_heads_upsample"] not in (-1, hidden["num_heads"]):
        raise Unsupported(f"{path}: num_heads_upsample other than num_heads is not supported")
    if hidden["noise_schedule"] not in ("linear", "cosine"):
        raise ValueError(f"--noise_schedule: wanted linear or cosine, got {hidden['noise_schedule']!r}")
    T, by_width = hidden["diffusion_steps"], hidden["num_head_channels"]
    heads = {"heads": hidden["num_heads"]} if by_width == -1 else {"head_width": by_width}
    scale = 1000 / T if hidden["rescale_timesteps"] else 1.0
    net = UNet(
        **options, **heads, groups=32, sinusoids="adm", clock_scale=scale, dropout=hidden["dropout"],
    )  # fmt: skip
    weights = read(net, table(net, hidden["use_new_attention_order"]), state, str(path))
    idle = {"num_heads"} if by_width != -1 else set()
    usual = {name: value for name, value in usual.items() if name not in idle and value not in (None, "", -1)}
    assumed = [f"{name} {value}" for name, value in usual.items() if name not in flags]
    notes = [f"assumed, as not given: {', '.join(assumed)}"] if assumed else []
    if net.num_classes:
        notes += null_as_mean(weights)
    schedule = Linear(T) if hidden["noise_schedule"] == "linear" else Cosine(T)
    variance = "learned" if net.learn_variance else "small" if hidden["sigma_small"] else "large"
    sampler = sampler_of(hidden["timestep_respacing"], T, variance, str(path))
    target = X0() if hidden["predict_xstart"] else Eps()
    shape = (net.channels, size, size)
    return Imported(source, net, weights, schedule, target, sampler, Clamp(), shape, notes=notes)
