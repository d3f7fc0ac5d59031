"""Shared by the benchmarks: alternating timings, ratios with standard errors, results with their machine."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from diffusion.data import ImageData
from diffusion.support.files import atomic

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")


class RandomGrey(ImageData):
    """Random 1x32x32 images of ten classes, for benchmarks of speed."""

    channels, size, class_names = 1, 32, tuple("0123456789")
    count = 2048

    def load(self, split):
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (self.count, *self.shape), dtype=torch.uint8, generator=draw)
        return images, torch.arange(self.count) % len(self.class_names)


class RandomColour(RandomGrey):
    """The same, 3x32x32."""

    channels = 3


def machine() -> str:
    """Description of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chip = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cores} CPU cores"
    threads = torch.get_num_threads()
    return (
        f"{chip} ({threads} threads), Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}"
    )


def memory() -> tuple[int, int]:
    """Resident memory of this process in bytes, current and peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(lines[k].split()[0]) * 1024 for k in ("VmRSS", "VmHWM"))
    return now, most


def limited(gib: float) -> None:
    """Move this process into a cgroup that may use so much memory, page cache included."""
    paths = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    old = "memory" in paths
    group = (
        Path("/sys/fs/cgroup")
        / ("memory" if old else "")
        / paths["memory" if old else ""].strip("/")
        / f"limited-{os.getpid()}"
    )
    group.mkdir()
    (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(int(gib * 2**30)))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def wait() -> None:
    """Wait for the device to finish."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Duration of a piece of work in seconds, including the device."""
    wait()
    begun = clock()
    work()
    wait()
    return clock() - begun


def alternate(
    sides: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one warm-up round; every second round in reverse order."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(rounds + 1):
        for name in list(sides)[:: 1 if k % 2 else -1]:
            spent = seconds(sides[name], clock)
            if k:
                found[name].append(spent)
    return found


def ratio(a: list[float], b: list[float]) -> tuple[float, float | None]:
    """The median over the rounds of a / b, and its standard error; None for fewer than 4 rounds.

    The two timings of a round are adjacent in time, so that other load on the machine affects both.
    """
    each = [x / y for x, y in zip(a, b, strict=True)]
    if len(each) < 4:
        return statistics.median(each), None
    low, _, high = statistics.quantiles(each, n=4)
    return statistics.median(each), 0.93 * (high - low) / len(each) ** 0.5  # of a median of normal numbers


def said(pair: tuple[float, float | None], digits: int = 3) -> str:
    """A ratio with its standard error, if there were enough rounds to estimate it."""
    return f"{pair[0]:.{digits}f}" + (f" +- {pair[1]:.{digits}f}" if pair[1] is not None else "")


def save(name: str, results: dict) -> Path:
    """Save results with machine and date; one file per benchmark and kind of machine."""
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    path = RESULTS / f"{name}-{kind}.json"
    path.parent.mkdir(exist_ok=True)
    with atomic(path) as temporary:
        said = {"machine": machine(), "date": date.today().isoformat()} | results
        temporary.write_text(json.dumps(said, indent=1) + "\n")
    return path
