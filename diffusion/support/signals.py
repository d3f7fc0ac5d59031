"""Signals, handled from the first line of a process and acted on where nothing can be lost. Imports no torch."""

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Literal

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
State = Literal["ends", "raises", "waits", "over"]


class Stopped(SystemExit):
    """A signal has ended the work: exit code 130 for Ctrl-C, 143 for SIGTERM and SIGUSR1.

    Args:
        signum: the signal.
        validating: a validation pass was cut short and must be repeated from its start.
        run: the folder of the run that was stopped, on the process that writes it.
    """

    def __init__(self, signum: int, validating: bool = False, run: Path | None = None) -> None:
        super().__init__(code_of(signum))
        self.signum, self.validating, self.run = signum, validating, run


class Interrupted(KeyboardInterrupt):
    """Ctrl-C has ended a run.

    Args:
        run: the folder of the run, on the process that writes it.
    """

    def __init__(self, run: Path | None = None) -> None:
        super().__init__()
        self.run = run


class Listener:
    """The first signal that this process received, and the effect of the next one.

    In each state a signal is recorded first, so that `check` finds it even if a handler's exception was swallowed:
    Python ignores exceptions in weak reference callbacks, finalizers and garbage collection, all of which are common
    during imports. Then

        ends    the process ends at once: it has created nothing yet
        raises  `Stopped` is raised at once: no change in progress has to be completed
        waits   nothing happens until `check`
        over    nothing happens: the exit code is decided

    A second Ctrl-C raises KeyboardInterrupt at once; in "over" it ends the process.

    Args:
        name: the command, for the line on stderr when the process ends at once.
        state: the initial state.
    """

    def __init__(self, name: str = "", state: State = "raises") -> None:
        self.name, self.state = name, state
        self.signum: int | None = None

    def __repr__(self) -> str:
        heard = signal.Signals(self.signum).name if self.signum else "nothing"
        return f"Listener({self.name!r}, {self.state}, heard {heard})"

    def install(self) -> None:
        """Become the handler of all three signals; in the main thread only, as Python requires."""
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                signal.signal(number, self.receive)

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        again, self.signum = self.signum is not None, self.signum or signum
        if self.state == "ends" or self.state == "over" and again and signum == signal.SIGINT:
            tell(f"{self.name}: interrupted")
            os._exit(code_of(self.signum))
        if self.state == "over":
            return
        if again:
            if signum == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt
            return
        if self.state == "raises":
            raise Stopped(signum)
        ctrl_c = signum == signal.SIGINT
        more = ", Ctrl-C again quits at once" if ctrl_c else ""
        tell(f"{'Ctrl-C' if ctrl_c else signal.Signals(signum).name}: stopping after this step{more}")

    def note(self, signum: int) -> None:
        """Record a signal that another handler received."""
        self.signum = self.signum or signum

    def check(self) -> None:
        """Stop here, where no work is half done, if a signal has been received.

        Raises:
            Stopped: a signal has been received.
        """
        if self.signum is not None:
            raise Stopped(self.signum)

    def wait(self) -> None:
        """Defer signals to `check` from now on."""
        self.state = "waits"

    def release(self) -> None:
        """Raise at once on signals from now on; a pending one raises now."""
        self.state = "raises"
        self.check()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Raise at once on signals inside the block; afterwards the previous state is restored."""
        before = self.state
        if before == "waits":
            self.release()
        try:
            yield
        finally:
            self.state = before


def code_of(signum: int) -> int:
    """The exit code of a process ended by a signal: 130 for Ctrl-C, else 143."""
    return 130 if signum == signal.SIGINT else 143


def tell(text: str) -> None:
    """Write a line to stderr from within a handler, where print is not re-entrant."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def ignore() -> None:
    """Ignore all signals; Python would restore their default actions during shutdown."""
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def process(name: str) -> Iterator[Listener]:
    """Handle signals for the rest of this process, a single command, from before the imports that take seconds.

    Args:
        name: the command as it is typed.
    """
    listener = Listener(name, "ends")
    listener.install()
    atexit.register(ignore)  # registered first, called last
    try:
        yield listener
    finally:
        listener.state = "over"


@contextmanager
def listening() -> Iterator[Listener]:
    """The listener of this process; without one, a new one for the block, after which the old handlers are restored.

    Outside the main thread it receives no signals.
    """
    known = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    if isinstance(known, Listener):
        yield known
        return
    listener, before = Listener(), {number: signal.getsignal(number) for number in NUMBERS}
    listener.install()
    try:
        yield listener
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
