"""How fast a network is computed, never what: precision, compilation, memory against time."""

import functools
import shutil
import statistics
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GAIN = 1.2  # times as fast bf16 has to be on a CPU to be chosen: less may be the noise of the measurement
PATIENCE = 20.0  # seconds that the choice may take
MODES = ("default", "reduce-overhead", "max-autotune")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def bf16_is_fast() -> bool:
    """Does this processor compute bf16 in hardware?"""
    capabilities = torch.backends.cpu.get_cpu_capability()
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "AMX" in capabilities.upper() or "amx_bf16" in flags or "avx512_bf16" in flags


def fastest(step: Callable[[], Tensor], device: torch.device, measure: bool = True) -> tuple[str, str]:
    """Lightning's name of the precision to train in, and why, in words.

    bf16-mixed on a GPU that computes it; on a CPU that does, if it is `GAIN` times as fast in the best of three steps
    each, taken in turn; else 32-true.

    Args:
        step: forward pass; gives the loss.
        measure: False takes 32-true on every CPU: several processes would not measure the same.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU computes bf16"
        return "32-true", "this GPU does not compute bf16"
    if not measure or device.type != "cpu" or not bf16_is_fast():
        return "32-true", "bf16 is not fast here" if measure else "not measured"
    spent: dict[bool, list[float]] = {False: [], True: []}
    begun = time.perf_counter()
    for _ in range(4):  # the first warms up
        for mixed in spent:
            since = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = step()
            loss.backward()
            spent[mixed].append(time.perf_counter() - since)
        if time.perf_counter() - begun > PATIENCE:
            break
    full, half = (min(v[1:] or v) for v in spent.values())
    if full > GAIN * half:
        return "bf16-mixed", f"{full / half:.1f} times as fast as 32-true here"
    return "32-true", f"bf16-mixed is {full / half:.1f} times as fast here"


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
        if isinstance(child, CONTAINERS):
            yield from blocks(child)
        elif next(child.parameters(), None) is not None:
            yield child


def _recompute(block: nn.Module, *args, **options):
    forward = functools.partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(forward, *args, use_reentrant=False, **options)


def seconds_of(step: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """The median time of a step, after one that warms up; on a GPU, until it is done."""
    spent = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent[1:])
