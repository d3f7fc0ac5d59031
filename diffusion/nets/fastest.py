"""The fastest way of evaluating a network on this processor: measured on request, and remembered."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.nets.onnx_graph import example, inputs_of
from diffusion.nets.onnx_net import accelerated
from diffusion.nets.speed import LAYOUTS, affordable, clearly_fastest, compiled, compiler, has_bf16, interleaved
from diffusion.support.console import Notice
from diffusion.support.files import atomic
from diffusion.support.paths import cache_root
from diffusion.support.specs import spec

WAYS = ("torch", "channels_last", "bf16", "bf16 channels_last", "compile", "onnx")  # the default first
REPAID = 1000  # evaluations over which the time that a way takes before the first one is spread
PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript")


class Measured(Notice):
    """What was measured on request, and the choice that follows."""


class Timed(NamedTuple):
    """CPU time of the ways of evaluating a network.

    Attributes:
        rows: images per evaluation.
        seconds: of each evaluation, by way.
        start: of what a way needs before its first evaluation in every process, by way.
        left_out: why a way was not measured, by way.
    """

    rows: int
    seconds: dict[str, list[float]]
    start: dict[str, float]
    left_out: dict[str, str]

    @property
    def best(self) -> str:
        """The fastest way; torch unless each of its evaluations is shorter than all of torch's."""
        names = list(self.seconds)
        return names[clearly_fastest([[s + self.start[n] / REPAID for s in self.seconds[n]] for n in names])]

    @property
    def words(self) -> str:
        """The times of all ways, and the reasons of those that are missing."""
        times = ", ".join(f"{n} {1e3 * median(s):.3g}" for n, s in self.seconds.items())
        rest = "".join(f"; no {n}: {reason}" for n, reason in self.left_out.items())
        return f"ms of CPU time for {self.rows} images: {times}{rest}"


def evaluated(net: nn.Module, way: str, shape: Sequence[int]) -> tuple[nn.Module, torch.dtype | None]:
    """The network as a way evaluates it, and the precision of autocast; changed in place, except by ONNX Runtime.

    Raises:
        ImportError: a package is missing.
        ValueError: the network or this machine cannot be evaluated in this way.
    """
    if way == "onnx":
        return accelerated(net, shape), None
    half = way.startswith("bf16")
    if half and not has_bf16():
        raise ValueError("this processor does not compute bf16")
    if way.endswith("channels_last") and not any(isinstance(module, nn.Conv2d) for module in net.modules()):
        raise ValueError("it has no convolutions")
    net.to(memory_format=LAYOUTS["channels_last" if way.endswith("channels_last") else "contiguous"])
    return compiled(net) if way == "compile" else net, torch.bfloat16 if half else None


def probe(net: nn.Module, shape: Sequence[int], rows: int) -> list[Tensor]:
    """Noise, clocks and conditions of some images, as the network receives them."""
    return example(inputs_of(net, shape, False), rows, shape[1:])


@torch.no_grad()
def called(net: nn.Module, half: torch.dtype | None, given: list[Tensor]) -> Tensor:
    """The network's output for a probe."""
    with nullcontext() if half is None else torch.autocast("cpu", half):
        return net(*given)


def timed(net: nn.Module, shape: Sequence[int], rows: int) -> Timed:
    """The CPU time of every way that works here, in turn; the network is then as torch evaluates it by default.

    Args:
        shape: (C, H, W) of the network's images.
        rows: images per evaluation; fewer if one would take long.
    """
    rows = affordable(lambda n: called(net, None, probe(net, shape, n)), rows)
    given = probe(net, shape, rows)
    steps: dict[str, Callable[[], object]] = {}
    start, left_out, layout = {}, {}, {}
    for way in WAYS:
        layout[way] = LAYOUTS["channels_last" if way.endswith("channels_last") else "contiguous"]
        begun = time.process_time()
        try:
            if way == "compile":
                compiler()
                mine, half = torch.compile(net.to(memory_format=layout[way])), None
            else:
                mine, half = evaluated(net, way, shape)
            steps[way] = lambda mine=mine, half=half: called(mine, half, given)
            steps[way]()
        except Exception as error:  # of compilers and exporters, anything
            steps.pop(way, None)
            left_out[way] = " ".join(str(error).split())[:160] or type(error).__name__
            if way == "torch":
                raise
            continue
        start[way] = time.process_time() - begun if way == "compile" else 0.0
    before = [lambda way=way: net.to(memory_format=layout[way]) for way in steps]
    spent = interleaved(list(steps.values()), before=before)
    net.to(memory_format=LAYOUTS["contiguous"])
    return Timed(rows, dict(zip(steps, spent, strict=True)), start, left_out)


def remembered(net: nn.Module, shape: Sequence[int], rows: int) -> tuple[Timed, bool]:
    """The times of a network's ways, and whether they were measured before; see `key_of`."""
    rows = 1 << max(rows, 1).bit_length() - 1
    file = cache_root() / "engines" / f"fastest-{key_of(net, shape, rows)}.json"
    try:
        return Timed(**json.loads(file.read_text())), True
    except (OSError, ValueError, TypeError):
        pass
    found = timed(net, shape, rows)
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(found._asdict(), indent=1) + "\n")
    return found, False


def key_of(net: nn.Module, shape: Sequence[int], rows: int) -> str:
    """The hash of what the times depend on: architecture, shape, batch size, processor, threads and versions."""
    facts = [spec(net), list(shape), rows, chip(), torch.get_num_threads(), [release(name) for name in PACKAGES], WAYS]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def release(package: str) -> str:
    """The installed version of a package, or ""."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def chip() -> str:
    """The processor: its name, and the instructions that torch uses."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor()}, {torch.backends.cpu.get_cpu_capability()}, bf16 {has_bf16()}"


def several() -> str:
    """Why nothing is measured in one of several processes of a launcher; "" in a single one."""
    return "several processes would choose differently" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""


def choose(net: nn.Module, shape: Sequence[int], rows: int, device: str) -> tuple[str, str]:
    """The fastest way for a network, and why."""
    if device != "cpu":
        return "torch", "not measured: ONNX Runtime and layouts are for CPUs; see --precision and --compile"
    if refused := several():
        return "torch", f"not measured: {refused}"
    found, before = remembered(net, shape, rows)
    return found.best, found.words + (" (measured before)" if before else "")


def difference(a: Tensor, b: Tensor) -> str:
    """The largest difference of two outputs, and the size of the first."""
    return f"{float((a - b).abs().max()):.1e} of outputs with standard deviation {float(a.std()):.2g}"
