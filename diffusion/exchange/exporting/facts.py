"""The plain description of a model that travels with its weights; `support.released` reads it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from diffusion.generation.choices import Choices
from diffusion.generation.pipeline import PARTS, Pipeline
from diffusion.guidance import AutoGuidance, ClassifierGuidance, Guidance, Steer
from diffusion.nets.onnx_net import OnnxNet
from diffusion.support.released import FORMAT, VERSION
from diffusion.support.runs import find_checkpoint, read_checkpoint
from diffusion.support.specs import spec


@dataclass(frozen=True)
class Source:
    """A model to export, with what its checkpoint says about its origin.

    Attributes:
        pipeline: the model, with the sampler and the guidance that are exported as its defaults.
        weights: which weights it has.
        step, epoch: of its training.
    """

    pipeline: Pipeline
    weights: Literal["ema", "raw"] = "ema"
    step: int = 0
    epoch: int = 0

    @classmethod
    def open(
        cls, run: str | Path | Pipeline, weights: Literal["ema", "raw"], choices: Choices, format: str = "safetensors"
    ) -> "Source":
        """A run's model, for a format of `export.FORMATS`.

        Raises:
            ValueError: not a diffusion model's checkpoint, an ONNX file, which has no weights to export again, or a
                model of latents for a format that has no place for a codec.
        """
        pipeline, step, epoch = run, 0, 0
        if not isinstance(run, Pipeline):
            file = find_checkpoint(run)
            pipeline, read = Pipeline.load(file, weights), read_checkpoint(file)
            step, epoch, weights = int(read["global_step"]), int(read["epoch"]), read.get("weights", weights)
        if isinstance(pipeline.denoiser.net, OnnxNet):
            raise ValueError(f"{run}: evaluated by ONNX Runtime, without weights of its own; export the run instead")
        if pipeline.codec.latent and format != "safetensors":
            raise ValueError(
                f"{run}: a model of latents, and {format} has no place for its codec {pipeline.codec.name}; "
                "export it as .safetensors"
            )
        return cls(pipeline if choices == Choices() else choices.apply(pipeline), weights, step, epoch)

    def describe(self, **more: Any) -> dict[str, Any]:
        """The description: every part as its spec.

        Raises:
            ValueError: a part keeps an argument under another name, so that it has no spec.
        """
        pipeline, denoiser = self.pipeline, self.pipeline.denoiser
        specs = {name: spec(getattr(denoiser, name)) for name in ("net", "schedule", "target")}
        specs |= {name: spec(getattr(pipeline, name)) for name in PARTS}
        specs |= {"shape": list(pipeline.shape), "class_names": list(pipeline.class_names), "seed": pipeline.seed}
        specs["scaling"] = pipeline.scaling.plain
        if pipeline.codec.latent:
            specs["codec"] = spec(pipeline.codec)
        kept = {"weights": self.weights, "global_step": self.step, "epoch": self.epoch, "hyper_parameters": specs}
        return {"format": FORMAT, "version": VERSION, **more, **kept}


def text_of(description: dict[str, Any], indent: int | None = None) -> str:
    """A description as JSON, the same at every call; an infinite number is Infinity, as Python reads it."""
    return json.dumps(description, indent=indent)


def alone(guidance: Guidance) -> str:
    """Why a guidance needs more than the values of the model's own network; "" if it does not."""
    while guidance is not None:
        kind = type(guidance).__name__
        if isinstance(guidance, AutoGuidance):
            return f"{kind} needs a second model, the guide; export with another guidance, e.g. --guidance Plain"
        if isinstance(guidance, ClassifierGuidance):
            return f"{kind} needs the gradient of a classifier; export with another guidance, e.g. --guidance Plain"
        if isinstance(guidance, Steer):
            return f"{kind} needs gradients; export with another guidance, e.g. --guidance Plain"
        guidance = getattr(guidance, "guidance", None)
    return ""


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def floats(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in row-major order on the CPU; one of floats is converted."""
    value = value.detach().cpu().contiguous()
    return value.to(dtype) if value.is_floating_point() else value
