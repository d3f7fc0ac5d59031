"""How fast a network is computed, never what: precision, compilation, memory against time."""

import functools
import shutil
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GAIN = 1.2  # times as fast bf16 has to be on a CPU to be chosen: less may be the noise of the measurement
STEP = 0.3  # seconds that a step takes by which precisions are compared, if the batch is large enough
MARGIN = 1.05  # times as fast channels_last has to be for bf16 on a CPU
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MODES = ("default", "reduce-overhead", "max-autotune")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def bf16_is_fast() -> bool:
    """Does this processor compute bf16 in hardware?"""
    capabilities = torch.backends.cpu.get_cpu_capability()
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "AMX" in capabilities.upper() or "amx_bf16" in flags or "avx512_bf16" in flags


class Pace(NamedTuple):
    """How a network is trained fastest: Lightning's name of the precision, the layout of its weights, and why."""

    precision: str
    layout: str
    reason: str


def fastest(
    net: nn.Module, loss: Callable[[int], Tensor], batch: int, device: torch.device, measure: bool = True
) -> Pace:
    """The precision and layout to train in.

    bf16-mixed on a GPU that computes it; on a CPU that does, if it is `GAIN` times as fast in the best of three steps
    each, taken in turn; else 32-true. Weights in channels_last order, but for bf16 on a CPU, where it has to be
    `MARGIN` times as fast as the contiguous one: for some networks it is much slower.

    Args:
        net: is put into each layout, and left in channels_last.
        loss: of a batch of so many images.
        batch: the largest that is asked for.
        measure: False takes 32-true on every CPU: several processes would not measure the same.
    """
    usual = "channels_last"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Pace("bf16-mixed", usual, "this GPU computes bf16")
        return Pace("32-true", usual, "this GPU does not compute bf16")
    if not measure or device.type != "cpu" or not bf16_is_fast():
        return Pace("32-true", usual, "bf16 is not fast here" if measure else "not measured")

    def spent(n: int, mixed: bool, layout: str = usual) -> float:
        net.to(memory_format=LAYOUTS[layout])
        since = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            value = loss(n)
        value.backward()
        return time.perf_counter() - since

    few = min(4, batch)
    warm = [spent(few, mixed) for mixed in (False, True, False)]
    n = max(few, min(batch, int(few * STEP / warm[-1])))
    ways = ((False, usual), (True, usual), (True, "contiguous"))
    full, half, other = map(min, zip(*([spent(n, *way) for way in ways] for _ in range(3)), strict=True))
    net.to(memory_format=LAYOUTS[usual])
    gain = full / min(half, other)
    if gain <= GAIN:
        return Pace("32-true", usual, f"bf16-mixed is {gain:.1f} times as fast here")
    layout = usual if other > MARGIN * half else "contiguous"  # the wrong one costs a few per cent, or two thirds
    return Pace("bf16-mixed", layout, f"{gain:.1f} times as fast as 32-true here")


def compiled(net: nn.Module, mode: str = "default") -> nn.Module:
    """The network, compiled in place by `torch.compile` at its first call: the names of its weights stay.

    Args:
        mode: "default"; "reduce-overhead" adds CUDA graphs, "max-autotune" tries kernels for minutes.
    Raises:
        ValueError: an unknown mode, or no compiler on this machine.
    """
    if mode not in MODES:
        raise ValueError(f"compile: there is no mode {mode!r}; there are: {', '.join(MODES)}")
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ValueError("compile: torch.compile needs a C++ compiler, and there is none here; install g++")
    net.compile(mode=None if mode == "default" else mode)
    return net


def recomputed(net: nn.Module) -> nn.Module:
    """The network, which from now on keeps of each block only its input, and computes the rest again to go backwards.

    About a third more time, a fraction of the memory; gradients and the names of the weights stay as they are. Blocks
    are the topmost children that are no mere containers.
    Source: Chen et al. 2016, arXiv:1604.06174.
    """
    for block in blocks(net):
        block.forward = types.MethodType(_recompute, block)
    return net


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The topmost children of a network that are no mere containers and have weights."""
    for child in net.children():
        if type(child) in CONTAINERS:
            yield from blocks(child)
        elif next(child.parameters(), None) is not None:
            yield child


def _recompute(block: nn.Module, *args, **options):
    forward = functools.partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(forward, *args, use_reentrant=False, **options)


def seconds_of(step: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """The shortest time of a step, after one that warms up; on a GPU, until it is done."""
    spent = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - begun)
    return min(spent[1:])
