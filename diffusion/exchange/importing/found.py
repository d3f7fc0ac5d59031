"""What an importer finds in a checkpoint of another program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.denoiser.targets import Target
from diffusion.guidance import Bound
from diffusion.noise import Schedule
from diffusion.samplers import Sampler


class Unsupported(ValueError):
    """A detail of a checkpoint that this project does not have, named in the message."""


@dataclass(frozen=True)
class Imported:
    """A model of another program in our parts.

    Attributes:
        source: the program.
        net: the network, with any weights.
        weights: its parameters by name, those of the last step.
        schedule, target, sampler, clamp: as in `Diffusion`.
        shape: (C, H, W) of an image.
        average: the moving average of the parameters; None without one.
        decay: of the average, as far as it is known.
        step: optimizer steps that it was trained for; 0 if unknown.
        notes: lines for the user: what was assumed or left out.
    """

    source: str
    net: nn.Module
    weights: Mapping[str, Tensor]
    schedule: Schedule
    target: Target
    sampler: Sampler
    clamp: Bound
    shape: tuple[int, int, int]
    average: Mapping[str, Tensor] | None = None
    decay: float = 0.999
    step: int = 0
    notes: Sequence[str] = field(default_factory=list)


def null_as_mean(weights: dict[str, Tensor]) -> list[str]:
    """Set a missing null embedding to the mean of the classes' embeddings; returns a note for the user."""
    weights["condition.null"] = weights["condition.embed.weight"].mean(0)
    return [
        "it was trained without a null class: a guidance scale other than 1 has no meaning until it is fine-tuned; "
        "the null embedding is the mean of the classes'"
    ]


def conv_as_linear(value: Tensor) -> Tensor:
    """The weight (o, i, 1, ...) of a 1x1 convolution as that of a Linear, (o, i)."""
    return value.flatten(1) if value.ndim > 1 else value


def by_part(value: Tensor, heads: int) -> Tensor:
    """Rows in the order (head, q k v, channel) in the order (q k v, head, channel)."""
    value = conv_as_linear(value)
    parts = value.unflatten(0, (heads, 3, -1))
    return torch.movedim(parts, 1, 0).flatten(0, 2)


def flag(given: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A flag as a program's command line has it, converted to its type.

    Raises:
        ValueError: the value is of another type.
    """
    value = given.get(name, default)
    if value is None or isinstance(value, kind):
        return value
    text = str(value).strip()
    if kind is bool:
        if text.lower() in ("true", "yes", "t", "y", "1", "false", "no", "f", "n", "0"):
            return text.lower() in ("true", "yes", "t", "y", "1")
        raise ValueError(f"--{name}: wanted True or False, got {text!r}")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--{name}: wanted {kind.__name__}, got {text!r}") from None
