"""The number of torch's threads: as requested, or the fastest, measured on request."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from diffusion.nets.speed import ROUNDS

FASTEST = "fastest"  # in place of a number: measure


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wanted(threads: int | str | None) -> int | str:
    """A requested number of threads, "fastest", or 0 for torch's own.

    Raises:
        ValueError: neither a number from 1 on nor "fastest".
    """
    if threads in (None, "", FASTEST):
        return threads or 0
    if not str(threads).isdecimal() or int(threads) < 1:
        raise ValueError(f"threads: wanted a number from 1 on, or {FASTEST}; got {threads!r}")
    return int(threads)


def preset(threads: int | str | None) -> int | str:
    """Set torch's number of threads if a number is requested; see `wanted` for what is returned and raised."""
    asked = wanted(threads)
    if asked and asked != FASTEST:
        torch.set_num_threads(asked)
    return asked


def counts(most: int) -> list[int]:
    """The numbers of threads that are measured: 1, 2, 4, ... and the number of cores."""
    return sorted({most, *(2**k for k in range(most.bit_length()) if 2**k <= most)})


@contextmanager
def threads_restored() -> Iterator[None]:
    """Torch's number of threads is at the end what it was; as a decorator, of a function."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured(
    step: Callable[[], object],
    numbers: list[int],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Wall-clock seconds of a step with each number of threads, in turn, after one warm-up each.

    Unlike other comparisons here it is no CPU time: waiting for each other, and for cores that other programs use, is
    what distinguishes numbers of threads.
    """
    spent: list[list[float]] = [[] for _ in numbers]
    with threads_restored():
        for round in range(rounds + 1):
            for number, mine in zip(numbers, spent, strict=True):
                torch.set_num_threads(number)
                begun = clock()
                step()
                if round:
                    mine.append(clock() - begun)
    return spent


def take(
    threads: int | str | None,
    step: Callable[[], object],
    refused: str = "",
    most: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """Set torch's number of threads as requested, and say what was measured; "" for a given number.

    Args:
        threads: a number, "fastest", or none to leave it as it is.
        step: what is timed, at most a second or so.
        refused: why nothing can be measured here; the number then stays.
        most: largest number of threads; the cores of this process by default.
    Raises:
        ValueError: see `wanted`.
    """
    if preset(threads) != FASTEST:
        return ""
    if refused:
        return f"threads: {torch.get_num_threads()}, not measured: {refused}"
    numbers = counts(most or cores())
    times = [median(spent) for spent in measured(step, numbers, clock=clock)]
    best = numbers[min(range(len(numbers)), key=times.__getitem__)]
    torch.set_num_threads(best)
    said = ", ".join(f"{1e3 * seconds:.3g} ms with {number}" for number, seconds in zip(numbers, times, strict=True))
    return f"threads: {best}, the fastest here ({said})"
