"""Checkpoints of denoising-diffusion-pytorch: `Unet` in `GaussianDiffusion`, as its `Trainer` saves them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.denoiser.targets import X0, Eps, Target, V
from diffusion.exchange.importing.found import Imported, Unsupported, flag
from diffusion.exchange.importing.reading import read_torch
from diffusion.exchange.rows import Row, pair, read
from diffusion.guidance import Clamp
from diffusion.nets.linear_unet import MEMORY, LinearUNet
from diffusion.noise import Cosine, Discrete, Linear, SigmoidAlpha
from diffusion.samplers import DDIM, DDPM, Sampler

NAME = "lucidrains"
FLAGS = {
    "image_size": "pixels of an image",
    "sampling_timesteps": "steps of DDIM; DDPM with all steps by default",
    "ddim_sampling_eta": "of DDIM, 0 by default",
    "ema_decay": "of the Trainer, 0.995 by default",
}
SCHEDULES = (Linear, Cosine, SigmoidAlpha)
PREFIX = "ema_model.model."


def fits(found: Any) -> bool:
    """Whether the contents of a file are a Trainer's checkpoint, or the state of a GaussianDiffusion."""
    state = found.get("model", found) if isinstance(found, dict) else {}
    return isinstance(state, dict) and {"model.init_conv.weight", "betas"} <= state.keys()


def unflat(value: Tensor) -> Tensor:
    """A factor (1, C, 1, 1) as (C,)."""
    return value.flatten()


def table(net: LinearUNet) -> list[Row]:
    """Every parameter of a LinearUNet beside those of `Unet`."""

    def norm(ours: str, theirs: str) -> Row:
        return Row(f"{ours}.factor", (f"{theirs}.g",), unflat, lambda v: v[None, :, None, None])

    def block(ours: str, theirs: str, shortcut: bool) -> Iterator[Row]:
        for k in (1, 2):
            yield from pair(f"{ours}.conv{k}", f"{theirs}.block{k}.proj")
            yield norm(f"{ours}.norm{k}", f"{theirs}.block{k}.norm")
        yield from pair(f"{ours}.tell", f"{theirs}.mlp.1")
        if shortcut:
            yield from pair(f"{ours}.shortcut", f"{theirs}.res_conv")

    def attention(ours: str, theirs: str, full: bool) -> Iterator[Row]:
        yield norm(f"{ours}.norm", f"{theirs}.norm")
        yield from pair(f"{ours}.qkv", f"{theirs}.to_qkv", bias=False)
        turn = (lambda v: v) if full else (lambda v: v.transpose(-1, -2))
        yield Row(f"{ours}.memory", (f"{theirs}.mem_kv",), turn, turn)
        yield from pair(f"{ours}.proj", f"{theirs}.to_out" if full else f"{theirs}.to_out.0")
        if not full:
            yield norm(f"{ours}.out", f"{theirs}.to_out.1")

    def rows() -> Iterator[Row]:
        last = len(net.mults) - 1
        C = net.channels

        def turn(weight: Tensor) -> Tensor:  # theirs has the previous prediction first
            return weight.roll(-C, 1) if net.self_condition else weight

        yield Row("inc.weight", ("init_conv.weight",), turn, turn)
        yield Row("inc.bias", ("init_conv.bias",))
        yield from pair("clock.0", "time_mlp.1")
        yield from pair("clock.2", "time_mlp.3")
        for way in ("downs", "ups"):
            for k, part in enumerate(getattr(net, way)):
                ours, theirs, end = f"{way}.{k}", f"{way}.{k}", k == last
                for j in range(2):
                    yield from block(f"{ours}.blocks.{j}", f"{theirs}.{j}", way == "ups")
                yield from attention(f"{ours}.attention", f"{theirs}.2", part.attention.full)
                mine = f"{ours}.resample" if way == "downs" and end else f"{ours}.resample.1"
                yield from pair(mine, f"{theirs}.3" if end else f"{theirs}.3.1")
        for k in range(2):
            yield from block(f"middle.{k}", f"mid_block{k + 1}", False)
        yield from attention("middle_attention", "mid_attn", True)
        yield from block("last", "final_res_block", True)
        yield from pair("outc", "final_conv")

    return list(rows())


def options_of(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of LinearUNet for the weights of a `Unet`.

    Raises:
        Unsupported: another version or variant of Unet.
    """
    if "downs.0.0.block1.norm.g" not in state or "mid_attn.mem_kv" not in state:
        raise Unsupported(f"{source}: a Unet with GroupNorm, of version 1, is not supported; expected one of version 2")
    if "time_mlp.0.weights" in state:
        raise Unsupported(f"{source}: a Unet with learned_sinusoidal_cond or random_fourier_features is not supported")
    levels = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("downs."))
    width, first = state["time_mlp.1.weight"].shape[1], state["init_conv.weight"].shape
    if first[0] != width:
        raise Unsupported(f"{source}: a Unet with init_dim {first[0]} other than dim {width} is not supported")
    ends = [state[f"downs.{k}.3.1.weight" if k < levels - 1 else f"downs.{k}.3.weight"].shape[0] for k in range(levels)]
    full = [k for k in range(levels) if f"downs.{k}.2.to_out.weight" in state]
    _, heads, memory, head_width = state["mid_attn.mem_kv"].shape
    shapes = {
        tuple(v.shape) if int(name.split(".")[1]) in full else tuple(v.transpose(-1, -2).shape)
        for name, v in state.items() if name.startswith("downs.") and name.endswith("mem_kv")
    }  # fmt: skip
    if shapes != {(2, heads, MEMORY, head_width)} or memory != MEMORY:
        raise Unsupported(f"{source}: a Unet with attn_heads or attn_dim_head that differ by level is not supported")
    out, C = state["final_conv.weight"].shape[0], first[1]
    halved = out if C in (out, 2 * out) else out // 2  # channels of an image; the rest is a variance
    if C not in (halved, 2 * halved):
        raise Unsupported(f"{source}: a Unet of {C} channels in and {out} out is not supported")
    return {
        "channels": halved, "width": width, "mults": [c // width for c in ends], "heads": heads,
        "attention": None if full == [levels - 1] else full, "head_width": head_width, "sinusoids": "ddpm",
        "self_condition": C == 2 * halved, "learn_variance": out == 2 * halved,
    }  # fmt: skip


def schedule_of(betas: Tensor, source: str) -> Discrete:
    """The schedule with these betas.

    Raises:
        Unsupported: none of the three named ones has them.
    """
    for kind in SCHEDULES:
        schedule = kind(len(betas))
        if torch.allclose(schedule.betas()[:-1].float(), betas[:-1].float(), rtol=2e-3, atol=1e-7):
            return schedule
    raise Unsupported(f"{source}: the betas are none of beta_schedule linear, cosine and sigmoid with their defaults")


def target_of(state: Mapping[str, Tensor], source: str) -> tuple[Target, list[str]]:
    """What the network predicts, which the weights of the loss show, with a note for weights other than the usual ones.

    Raises:
        Unsupported: the weights are of another objective.
    """
    snr = state["alphas_cumprod"].double() / (1 - state["alphas_cumprod"].double())
    weight = state["loss_weight"].double()
    for limit in (None, 5.0):
        limited = snr if limit is None else snr.clamp(max=limit)
        for target, expected in ((Eps(), limited / snr), (X0(), limited), (V(), limited / (snr + 1))):
            if torch.allclose(weight[:-1], expected[:-1], rtol=1e-2, atol=1e-6):
                used = [] if limit is None else ["it was trained with min_snr_loss_weight: fine-tune with MinSNR"]
                return target, used
    raise Unsupported(f"{source}: loss weights of an unknown objective; expected pred_noise, pred_x0 or pred_v")


def load(path: Path, flags: Mapping[str, Any], found: Any = None) -> Imported:
    """The model of a Trainer's checkpoint.

    Raises:
        Unsupported: another version or variant of Unet or GaussianDiffusion.
        ValueError: image_size is missing, or weights do not fit.
    """
    found, source = read_torch(path) if found is None else found, str(path)
    size = flag(flags, "image_size", int)
    if size is None:
        raise ValueError(f"{path}: needs the image_size of its GaussianDiffusion, which is not in it: --image_size 128")
    state = found.get("model", found)
    own = unprefixed(state, "model.")
    net = LinearUNet(**options_of(own, source))
    rows = table(net)
    weights, average = read(net, rows, own, source), None
    if kept := unprefixed(found.get("ema") or {}, PREFIX):
        average = read(net, rows, kept, f"{source}: ema")
    schedule = schedule_of(state["betas"], source)
    target, notes = target_of(state, source)
    steps = flag(flags, "sampling_timesteps", int)
    sampler: Sampler = DDPM(schedule.T)
    if steps is not None and steps < schedule.T:
        sampler = DDIM(steps, flag(flags, "ddim_sampling_eta", float, 0.0))
    return Imported(
        NAME, net, weights, schedule, target, sampler, Clamp(), (net.channels, size, size), average,
        flag(flags, "ema_decay", float, 0.995), int(found.get("step", 0)) if "model" in found else 0, notes,
    )  # fmt: skip


def unprefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a state whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
