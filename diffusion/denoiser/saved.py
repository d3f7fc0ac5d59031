"""A denoiser rebuilt from a checkpoint file, without Lightning and without the rest of the training system."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.denoiser.base import Denoiser
from diffusion.support.runs import find_checkpoint, read_checkpoint
from diffusion.support.specs import build

Weights = Literal["ema", "raw"]


class Saved(NamedTuple):
    """What a checkpoint of a diffusion model holds.

    Attributes:
        denoiser: with its weights, in evaluation mode, on the CPU.
        hyper_parameters: specs of all parts of the model, under the names of its constructor; see `support.specs`.
        checkpoint: everything else in the file: global_step, epoch, callbacks, ...
        path: the file.
    """

    denoiser: Denoiser
    hyper_parameters: dict[str, Any]
    checkpoint: dict[str, Any]
    path: Path


def load_denoiser(path: str | Path, weights: Weights = "ema") -> Saved:
    """The denoiser of a checkpoint file or run directory.

    Args:
        weights: the exponential moving average (where the run kept one), or the raw weights of the last step.
    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: not a sound checkpoint of a diffusion model, or its weights do not fit.
    """
    file = find_checkpoint(path)
    checkpoint = read_checkpoint(file)
    parts = checkpoint["hyper_parameters"]
    if "target" not in parts:
        use = "sample RUN --classifier" if "schedule" in parts else "evaluate --features"
        raise ValueError(f"{path}: a classifier, not a diffusion model; it is for: diffusion {use}")
    state = dict(checkpoint["state_dict"])
    if weights == "ema":
        state.update(checkpoint.get("callbacks", {}).get("EMA", {}).get("shadow", {}))
    denoiser = Denoiser(*(build(parts[name]) for name in ("net", "schedule", "target")))
    denoiser.net.to(memory_format=torch.channels_last)  # what convolutions are fastest with
    load_weights(denoiser, state, path, "denoiser.")
    return Saved(denoiser.eval(), parts, checkpoint, file)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: str | Path, prefix: str = "") -> None:
    """Load those weights of a checkpoint's state whose names start with a prefix.

    Raises:
        ValueError: they do not fit the module.
    """
    own = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the model that the file describes: {error}") from error
