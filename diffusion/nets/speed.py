"""Speed and memory of a network, without effect on its results: timing, compilation, recomputation."""

import functools
import shutil
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

STEP = 0.3  # approximate upper bound, in seconds of CPU time, of a step used to compare implementations
ROUNDS = 5  # of timed steps
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MODES = ("default", "reduce-overhead", "max-autotune")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def has_amx() -> bool:
    """Whether this processor has bf16 matrix multiplication (Intel's AMX).

    AVX512-bf16 alone does not count: an Intel Xeon that has only that trains at 0.7 to 0.8 of the speed of float32.
    An AMD EPYC gains from it; there `--precision fastest` finds out.
    """
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


def has_bf16() -> bool:
    """Whether this processor has instructions for bf16 (AMX or AVX512-bf16; ARM's bf16)."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def affordable(step: Callable[[int], object], most: int, few: int = 4) -> int:
    """A number of images, at most `most`, whose step takes at most about `STEP` seconds of CPU time."""
    few = min(few, most)
    step(few)  # warms up
    begun = time.process_time()
    step(few)
    spent = max(1e-6, time.process_time() - begun)
    return max(few, min(most, int(few * STEP / spent)))


def interleaved(
    steps: list[Callable[[], object]], rounds: int = ROUNDS, before: list[Callable[[], object]] | None = None
) -> list[list[float]]:
    """CPU seconds of each step, measured alternately for `rounds` rounds, after one warm-up each.

    CPU time rather than wall-clock time: it is hardly affected by other programs on the machine.

    Args:
        before: called before each step, outside of its time.
    """
    spent: list[list[float]] = [[] for _ in steps]
    for k in range(rounds + 1):
        for step, mine, prepare in zip(steps, spent, before or [lambda: None] * len(steps), strict=True):
            prepare()
            begun = time.process_time()
            step()
            if k:
                mine.append(time.process_time() - begun)
    return spent


def clearly_fastest(spent: list[list[float]]) -> int:
    """The index of the fastest candidate, each measured several times; 0 unless all of its times are shorter than
    all times of the first."""
    best = min(range(len(spent)), key=lambda k: sum(spent[k]))
    return best if max(spent[best]) < min(spent[0]) else 0


def compiled(net: nn.Module, mode: str = "default") -> nn.Module:
    """The network, compiled in place by `torch.compile` on its first call; the names of its weights are unchanged.

    Args:
        mode: "default"; "reduce-overhead" adds CUDA graphs, "max-autotune" searches kernels for minutes.
    Raises:
        ValueError: the mode is unknown, or no C++ compiler is installed.
    """
    if mode not in MODES:
        raise ValueError(f"compile: unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    compiler()
    net.compile(mode=None if mode == "default" else mode)
    return net


def compiler() -> str:
    """The C++ compiler that `torch.compile` uses.

    Raises:
        ValueError: none is installed.
    """
    if not (found := next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)):
        raise ValueError("compile: torch.compile needs a C++ compiler, but none was found; install g++")
    return found


def recomputed(net: nn.Module) -> nn.Module:
    """The network with gradient checkpointing: each block keeps only its input and is recomputed in the backward pass.

    About a third more time, a fraction of the memory; gradients and the names of the weights are unchanged. Blocks
    are the topmost children that are not mere containers.
    Source: Chen et al. 2016, arXiv:1604.06174.
    """
    for block in blocks(net):
        block.forward = types.MethodType(_recompute, block)
    return net


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The topmost children of a network that have weights and are not mere containers."""
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
    """The shortest time of a step in seconds, after one warm-up; on a GPU, until it has finished."""
    spent = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - begun)
    return min(spent[1:])
