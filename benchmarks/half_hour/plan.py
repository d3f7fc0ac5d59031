"""Carries out steps in a limited time: one process each, killed with its children when its own limit is reached."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

TAIL = 2000  # characters of a failed step's output that are kept


class Step(NamedTuple):
    """A piece of work.

    Attributes:
        name: letters, digits and "_".
        why: what it finds out.
        argv: words after the interpreter; "{seconds}", "{work}" and "{init}" are replaced.
        limit: seconds that it may take; 0 is all that is left.
        least: seconds that are kept for it while earlier steps are planned, and below which it is not started.
        needs: packages that it imports.
        data: patterns below the data folder of which one has to match.
    """

    name: str
    why: str
    argv: tuple[str, ...]
    limit: float
    least: float = 0.0
    needs: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


class Ended(NamedTuple):
    """How a step's process ended: its exit code, None if it was killed at its limit, and the end of its output."""

    code: int | None
    tail: str


Call = Callable[[Step, float], Ended]


def carry_out(
    steps: Sequence[Step],
    until: float,
    call: Call,
    lacking: Callable[[Step], str] = lambda step: "",
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict[str, Any]]:
    """Carry out steps in order, each if its limit fits into the time left; yields what became of each.

    Args:
        until: time at which all has to be done, on `clock`.
        call: runs a step for at most so many seconds.
        lacking: why a step cannot run here, or "".
    """
    for k, step in enumerate(steps):
        left = until - clock()
        kept = sum(later.least for later in steps[k + 1 :] if not lacking(later))
        limit = step.limit or left - kept
        record: dict[str, Any] = {"name": step.name, "why": step.why}
        if reason := lacking(step):
            yield record | {"state": "skipped", "reason": reason}
            continue
        if limit > left - kept or limit < max(step.least, 1):
            needed = step.limit or step.least
            said = f"needs {needed:,.0f} s, and {max(0, left - kept):,.0f} s are left"
            yield record | {"state": "skipped", "reason": said + f" besides {kept:,.0f} s for later steps" * bool(kept)}
            continue
        begun = clock()
        try:
            ended = call(step, limit)
        except Exception as error:  # of one step, which is no reason to give up the others
            ended = Ended(1, f"{type(error).__name__}: {error}")
        record |= {"seconds": round(clock() - begun, 1), "limit": round(limit, 1)}
        if ended.code == 0:
            yield record | {"state": "done"}
        else:
            state = "timed out" if ended.code is None else "failed"
            yield record | {"state": state, "code": ended.code, "tail": ended.tail[-TAIL:]}


class Processes:
    """Runs steps as processes, each in a session of its own, so that all of it can be killed.

    Args:
        work: folder of their logs, results and runs.
        words: replacements in their arguments.
    """

    def __init__(self, python: str, work: Path, words: dict[str, str]) -> None:
        self.python, self.work, self.words = python, work, words
        self._running: subprocess.Popen | None = None
        self._over = False
        self._guard = threading.Lock()

    def __call__(self, step: Step, limit: float) -> Ended:
        folder = self.work / step.name
        folder.mkdir(parents=True, exist_ok=True)
        words = self.words | {"seconds": f"{limit:.0f}", "work": str(folder)}
        argv = [self.python, *(word.format(**words) for word in step.argv)]
        env = os.environ | {"BENCHMARK_RESULTS": str(folder), "PYTHONUNBUFFERED": "1"}
        log = self.work / f"{step.name}.log"
        with open(log, "wb") as file:
            with self._guard:
                if self._over:
                    return Ended(None, "")
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env,
                    start_new_session=True,
                )  # fmt: skip
                self._running = process
            try:
                code = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.kill()
        return Ended(code, log.read_text(errors="replace"))

    def kill(self, over: bool = False) -> None:
        """Kill the running step with its children.

        Args:
            over: start no other.
        """
        with self._guard:
            self._over |= over
            process, self._running = self._running, None
            if process is not None:
                with suppress(ProcessLookupError):  # nothing of it is left
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def watchdog(seconds: float, processes: Processes) -> threading.Timer:
    """After so many seconds, kill what runs and end this process with exit code 3, whatever it does then."""

    def bite() -> None:
        processes.kill(over=True)
        os._exit(3)

    timer = threading.Timer(seconds, bite)
    timer.daemon = True
    timer.start()
    return timer
