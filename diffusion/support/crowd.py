"""Whether the threads of a computation wait for processor cores that other programs occupy."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from diffusion.support.console import Notice

TASKS = Path("/proc/self/task")
WINDOW = 1.5  # seconds over which the waiting is measured
WINDOWS = 3  # in succession, so that a program of a second or two does not count
SHARE = 0.2  # of a window, for the thread that waits longest; an idle machine has less than 0.02


class Crowded(Notice):
    """Threads wait for cores that other programs use, and the other threads wait for them."""


def waits() -> dict[str, int]:
    """Nanoseconds that each thread of this process was ready to run without a core, by its number.

    The second number of /proc/self/task/*/schedstat (Linux, Documentation/scheduler/sched-stats.rst); empty elsewhere.
    """
    found = {}
    with suppress(OSError):
        for thread in os.listdir(TASKS):
            with suppress(OSError, ValueError, IndexError):  # a thread may end in between
                found[thread] = int((TASKS / thread / "schedstat").read_text().split()[1])
    return found


class CoreWaits:
    """Looks, while a computation of several threads runs, whether they wait for cores; tells so once.

    The threads of an operation wait for the slowest of them, so one that waits for a core delays all. That is the time
    on the scheduler's queue, which does not depend on how fast the machine is or what else the computation waits for.

    Args:
        threads: of the computation; a single one has nothing to gain from fewer.
        clock, waits: the time in seconds, and the waiting of each thread so far, see `waits`.
    """

    def __init__(
        self,
        threads: int,
        clock: Callable[[], float] = time.perf_counter,
        waits: Callable[[], dict[str, int]] = waits,
    ) -> None:
        self.threads, self.clock, self.waits = threads, clock, waits
        self.done, self.crowded = threads < 2, 0
        self.since, self.before = (0.0, {}) if self.done else (clock(), waits())

    def look(self) -> str:
        """The notice, if the last `WINDOWS` windows were crowded, or ""; called once per step.

        It reads the clock, and at the end of a window one small file per thread.
        """
        if self.done or (passed := self.clock() - self.since) < WINDOW:
            return ""
        now = self.waits()
        longest = max((now[thread] - self.before.get(thread, 0) for thread in now), default=0) / 1e9
        self.crowded = self.crowded + 1 if longest > SHARE * passed else 0
        self.since, self.before = self.clock(), now
        self.done = self.crowded == WINDOWS
        return NOTICE.format(self.threads) if self.done else ""


NOTICE = (
    "{} threads wait for processor cores that other programs use, which can take many times as long as one thread; "
    "use --threads 1 (or OMP_NUM_THREADS=1), or --threads fastest"
)
