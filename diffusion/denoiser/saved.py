"""A denoiser rebuilt from a checkpoint or an exported file, without Lightning and the rest of the training system."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.denoiser.base import Denoiser
from diffusion.denoiser.targets import Target
from diffusion.noise.schedule import Schedule
from diffusion.support.runs import find_checkpoint, read_checkpoint
from diffusion.support.specs import build, part

Weights = Literal["ema", "raw"]


class Saved(NamedTuple):
    """The contents of a diffusion model's checkpoint.

    Attributes:
        denoiser: with its weights, in evaluation mode.
        hyper_parameters: specs of all parts of the model, keyed by constructor argument; see `support.specs`.
        checkpoint: everything else in the file: global_step, epoch, callbacks, ...
        path: the file.
    """

    denoiser: Denoiser
    hyper_parameters: dict[str, Any]
    checkpoint: dict[str, Any]
    path: Path


def load_denoiser(path: str | Path, weights: Weights = "ema", device: torch.device | str = "cpu") -> Saved:
    """The denoiser of a checkpoint, an exported file or a run directory; that of an .onnx file runs on the CPU.

    Args:
        weights: the exponential moving average (where the run kept one), or the raw weights of the last step.
        device: where the denoiser runs; "auto" is a GPU if there is one, a different one for each process.
    Raises:
        FileNotFoundError: no checkpoint at this path.
        ValueError: the device is unknown, the file is not a valid checkpoint of a diffusion model, or its weights do
            not fit.
    """
    file = find_checkpoint(path)
    checkpoint = read_checkpoint(file)
    parts, told = untold(checkpoint["hyper_parameters"])
    if "target" not in parts:
        use = "sample RUN --classifier" if "schedule" in parts else "evaluate --features"
        raise ValueError(f"{path}: expected a diffusion model, got a classifier; use it with: diffusion {use}")
    if weights == "raw" and checkpoint.get("weights", weights) != weights:
        raise ValueError(f"{path}: holds the averaged weights only; leave out --weights raw, or use the run itself")
    state = dict(checkpoint["state_dict"])
    if weights == "ema":
        state.update(checkpoint.get("callbacks", {}).get("EMA", {}).get("shadow", {}))
    denoiser = Denoiser(part(parts, "net", nn.Module), part(parts, "schedule", Schedule), part(parts, "target", Target))
    denoiser.net.to(memory_format=torch.channels_last)  # the fastest layout for convolutions
    load_weights(denoiser, trimmed(state, denoiser.net, told), path, "denoiser.")
    return Saved(denoiser.eval().to(device_of(device)), parts, checkpoint, file)


def untold(parts: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The parts of a model without the inputs that tell of augmentations, and the number of these inputs.

    They are 0 in sampling, so a model without them is the same.

    Raises:
        ValueError: an augmentation without numbers, or a network without inputs for them.
    """
    parts = dict(parts)
    augment = build(parts.pop("augment", None))
    if augment is None:
        return parts, 0
    net, told = parts["net"], getattr(augment, "numbers", 0)
    given = net.get("init_args", {}) if isinstance(net, dict) else {}
    has = given.get("image_channels", 0)
    if not told or has < told:
        raise ValueError(
            f"augment: {type(augment).__name__} tells {told} numbers, and the network has {has} image_channels for "
            "them; the file is not that of a model trained so"
        )
    return parts | {"net": net | {"init_args": given | {"image_channels": has - told}}}, told


def trimmed(state: Mapping[str, Tensor], net: nn.Module, told: int, prefix: str = "denoiser.net.") -> dict[str, Tensor]:
    """A state without the weights of the network's `told` last input channels.

    Args:
        net: the network without these channels.
    """
    state = dict(state)
    for name, value in net.state_dict().items() if told else ():
        full = state.get(prefix + name)
        if full is None or full.shape == value.shape:
            continue
        cut = told_columns(full.shape, value.shape, net.in_channels, told)
        state[prefix + name] = torch.cat([full[:, : cut.start], full[:, cut.stop :]], dim=1)
    return state


def told_columns(full: torch.Size, fewer: torch.Size, channels: int, told: int) -> slice:
    """The columns of a weight that belong to the `told` input channels after `channels` others.

    Args:
        full, fewer: the weight's shape with and without them.
    """
    each = (full[1] - fewer[1]) // told  # columns per channel, of patches several
    return slice(channels * each, (channels + told) * each)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: str | Path, prefix: str = "") -> None:
    """Load the weights of a checkpoint's state whose names start with a prefix.

    Raises:
        ValueError: they do not fit the module.
    """
    own = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: the weights do not fit the model that the file describes: {reason}") from error


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name; "auto" is a GPU if there is one, a different one for each process.

    Raises:
        ValueError: the name is unknown, or names a GPU that is not available.
    """
    if name == "auto":
        own = int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())
        return torch.device("cuda", own) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: unknown device; use auto, cpu or cuda") from error
    if chosen.type == "cuda" and not (torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"--device {name}: {torch.cuda.device_count()} GPUs are available; use auto or cpu")
    return chosen
