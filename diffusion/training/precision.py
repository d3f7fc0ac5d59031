"""Training precision and weight layout: from the device's capabilities, or measured on request."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.nets import speed, threads

FASTEST = "fastest"  # in place of a precision: measure


class Choice(NamedTuple):
    """How a network is computed: Lightning's name for the precision, the weight layout, and the reason."""

    precision: str
    layout: str
    reason: str = ""


def usual(device: torch.device, nodes: int = 1) -> Choice:
    """The default, determined by the device type, its reported capabilities and the number of machines.

    It does not depend on the number of processes and is the same at every start. The machines of a run may have
    different processors, so CPU training on several machines uses 32-true.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16-mixed", "channels_last", "this GPU computes bf16")
        return Choice("32-true", "channels_last", "this GPU does not compute bf16")
    if device.type == "cpu" and nodes == 1 and speed.has_amx():
        return Choice("bf16-mixed", "contiguous", "this processor has AMX")
    return Choice("32-true", "channels_last")


def layout_of(precision: str, device: torch.device) -> str:
    """The weight layout for a precision.

    channels_last, except for bf16 on a CPU, where it makes some networks much slower and gains 1 % at best
    (docs/speed.md).
    """
    return "contiguous" if device.type == "cpu" and precision.startswith("bf16") else "channels_last"


def wanted(config: Any) -> str:
    """The precision named in a configuration: one of Lightning's, "fastest", or "" for the default.

    Raises:
        ValueError: the two options disagree, or the layout is unknown.
    """
    long, short = config.trainer.precision, config.precision
    if long is not None and short and str(long) != short:
        raise ValueError(f"--precision {short} and --trainer.precision {long}: give one of them")
    if config.layout and config.layout not in speed.LAYOUTS:
        raise ValueError(f"layout: wanted {' or '.join(speed.LAYOUTS)}, got {config.layout!r}")
    return short or ("" if long is None else str(long))


def choose(
    config: Any,
    recorded: dict,
    device: torch.device,
    measure: Callable[[list[Choice]], Choice],
    conv: bool = True,
    nodes: int = 1,
) -> Choice:
    """The precision and layout of a run: as requested, else as the run had them, else the default.

    Args:
        config: the configuration.
        recorded: that of the run that is resumed or restarted; empty for a new run.
        measure: finds the fastest choice; called only on request and if nothing is recorded.
        conv: whether the network is convolutional; False keeps a new run contiguous unless a layout is requested.
        nodes: number of machines.
    """
    asked, default = wanted(config), usual(device, nodes)
    before = recorded.get("trainer", {}).get("precision") or ("32-true" if recorded else None)
    if asked == FASTEST and before is None:
        found = measure(ways(default, device))
        return found._replace(layout=config.layout or found.layout)
    known = before if asked in ("", FASTEST) else asked
    found = default if known is None else Choice(str(known), layout_of(str(known), device))
    layout = config.layout or recorded.get("layout") or (found.layout if conv else "contiguous")
    return found._replace(layout=layout)


def ways(default: Choice, device: torch.device) -> list[Choice]:
    """The candidates for "fastest", the default first."""
    if device.type != "cpu":
        return [default]
    every = [Choice(p, layout) for p in ("32-true", "bf16-mixed") for layout in speed.LAYOUTS]
    return [default, *(way for way in every if way[:2] != default[:2])]


def measured(
    net: nn.Module, loss: Callable[[int], Tensor], batch: int, device: torch.device, choices: list[Choice]
) -> Choice:
    """The fastest choice by processor time; the first one if no other is clearly faster.

    Args:
        net: the network; it is converted to each layout.
        loss: (n) -> the loss of a batch of n images.
        batch: the largest batch size to time; smaller if a step would take long.
        choices: the candidates, the default first.
    """
    if len(choices) == 1:
        return choices[0]._replace(reason="not measured: this device has no alternative")

    def step(way: Choice, n: int) -> None:
        net.to(memory_format=speed.LAYOUTS[way.layout])
        backward(way, loss, n, device)

    n = speed.affordable(lambda n: step(choices[0], n), batch)
    spent = speed.interleaved([lambda way=way: step(way, n) for way in choices])
    best = speed.clearly_fastest(spent)
    mean = [sum(s) / len(s) for s in spent]
    spread = max(spent[best]) / min(spent[best]) - 1
    if best == 0:
        return choices[0]._replace(reason="no alternative was clearly faster here")
    gain, differs = mean[0] / mean[best], choices[best].precision != choices[0].precision
    than = choices[0].precision if differs else choices[0].layout
    return choices[best]._replace(reason=f"{gain:.1f} times as fast as {than} here, +- {spread:.0%}")


def backward(way: Choice, loss: Callable[[int], Tensor], n: int, device: torch.device) -> None:
    """Forward and backward pass of n images in a precision."""
    with torch.autocast(device.type, torch.bfloat16, enabled=way.precision == "bf16-mixed"):
        value = loss(n)
    value.backward()


def threaded(
    asked: str, loss: Callable[[int], Tensor], batch: int, device: torch.device, way: Choice, free: bool
) -> str:
    """Set torch's number of threads as requested for steps of a precision, and say what was measured.

    It is not recorded in the run: as without the option, the number belongs to the machine, and a run may be resumed
    on another one.

    Args:
        asked: a number, "fastest", or "".
        loss: (n) -> the loss of a batch of n images.
        batch: the largest batch size to time.
        free: a single process that trains a diffusion model.
    """
    refused = "" if free and device.type == "cpu" else "requires a CPU, a single process and a diffusion model"
    if threads.wanted(asked) != threads.FASTEST or refused:
        return threads.take(asked, lambda: None, refused)
    n = speed.affordable(lambda n: backward(way, loss, n, device), batch)
    return threads.take(asked, lambda: backward(way, loss, n, device))


def device_of(trainer: Any) -> torch.device:
    """The device that Lightning will use for this process.

    Args:
        trainer: the trainer's part of a configuration.
    """
    if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if trainer.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
