"""Worker processes that make blocks; an image that ends its process is found and refused."""

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for

from diffusion.preparing.items import Item
from diffusion.preparing.settings import Form, Settings
from diffusion.preparing.shards.blocks import make

CRASHED = "its decoder ended the process, by a crash or for want of memory"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(
    numbers: Sequence[int], items: Callable[[int], list[Item]], form: Form, settings: Settings
) -> Iterator[tuple[int, int]]:
    """Make blocks, in any order; yields (kept, refused) of each.

    Args:
        numbers: of the blocks.
        items: the items of a block.
    Raises:
        RuntimeError: the processes end before they begin to work.
    """
    workers = min(settings.workers or cores(), max(1, len(numbers)))
    if settings.workers == 1:
        for number in numbers:
            yield make(number, items(number), form, settings, {})
        return
    waiting = list(reversed(numbers))
    while waiting:
        flying: dict[Future, int] = {}
        try:
            with _pool(workers) as pool:
                while waiting or flying:
                    while waiting and len(flying) < 2 * workers:
                        with _without_main():
                            future = pool.submit(make, waiting[-1], items(waiting[-1]), form, settings, {})
                        flying[future] = waiting.pop()
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        del flying[future]
                        yield result
        except BrokenProcessPool:
            for number in sorted(flying.values()):
                yield alone(number, items(number), form, settings)


def alone(number: int, items: list[Item], form: Form, settings: Settings) -> tuple[int, int]:
    """Make a block in a process of its own, as often as an item of it ends the process."""
    lost: dict[int, str] = {}
    while True:
        at = multiprocessing.get_context("spawn").RawValue("q", -1)
        try:
            with _pool(1, at) as pool, _without_main():
                return pool.submit(make, number, items, form, settings, lost).result()
        except BrokenProcessPool:
            if at.value < 0 or at.value in lost:
                raise RuntimeError(
                    "the worker processes end before they begin; try --workers 1, which works in this process"
                ) from None
            lost[at.value] = CRASHED


@contextmanager
def _pool(workers: int, at: object = None) -> Iterator[ProcessPoolExecutor]:
    """A pool whose waiting work is dropped on an error or an interruption."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (at,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(at: object) -> None:
    """In a worker: Ctrl-C is the parent's to handle, and the end of the parent is the worker's end, too."""
    from diffusion.preparing.shards import blocks

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    blocks.AT = at
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait_for([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes that start here do not run the user's script again, so it needs no `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
