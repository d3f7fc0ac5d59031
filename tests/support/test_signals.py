"""The signal listener: the effect of a signal in each state, and that none is lost."""

import signal
import subprocess
import sys
import threading
import weakref

import pytest

from diffusion.support import signals
from diffusion.support.signals import Listener, Stopped, listening


@pytest.fixture
def listener():
    with listening() as found:
        yield found


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_raises_at_once_or_at_the_next_check(listener, number, code, capfd):
    with pytest.raises(Stopped) as stop:
        signal.raise_signal(number)
    assert (stop.value.code, stop.value.signum) == (code, number)
    listener.signum = None
    listener.wait()
    signal.raise_signal(number)
    assert "stopping after this step" in capfd.readouterr().err
    for act in (listener.check, listener.release):
        with pytest.raises(Stopped):
            act()


def test_an_exception_that_python_swallows_is_raised_at_the_next_check(listener):
    """In the callback of a weak reference, of which imports have many."""

    class Thing:
        pass

    thing = Thing()
    kept = weakref.ref(thing, lambda ref: signal.raise_signal(signal.SIGINT))
    with noticed() as ignored:
        del thing
    assert kept() is None and isinstance(ignored[0], Stopped)
    with pytest.raises(Stopped):
        listener.check()


class noticed:
    """The exceptions that Python ignored inside the block."""

    def __enter__(self):
        self.before, self.found = sys.unraisablehook, []
        sys.unraisablehook = lambda ignored: self.found.append(ignored.exc_value)
        return self.found

    def __exit__(self, *args):
        sys.unraisablehook = self.before


def test_the_second_ctrl_c_raises_at_once(listener):
    listener.wait()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_acting_raises_inside_its_block_and_restores_the_state(listener):
    listener.wait()
    with pytest.raises(Stopped), listener.acting():
        signal.raise_signal(signal.SIGTERM)
    assert listener.state == "waits"
    with pytest.raises(Stopped), listener.acting():
        raise AssertionError("what came before is raised first")


def test_listening_restores_the_old_handlers():
    before = [signal.getsignal(number) for number in signals.NUMBERS]
    with listening() as outer:
        assert signal.getsignal(signal.SIGINT).__self__ is outer
        with listening() as inner:
            assert inner is outer  # one handler for the process
        assert signal.getsignal(signal.SIGTERM).__self__ is outer
    assert [signal.getsignal(number) for number in signals.NUMBERS] == before


def test_a_thread_leaves_the_handlers_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with listening() as found:
            seen.append((signal.getsignal(signal.SIGINT), found))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0][0] is before and isinstance(seen[0][1], Listener) and signal.getsignal(signal.SIGINT) is before


COMMAND = """
import signal, sys
from diffusion.support import signals
with signals.process("diffusion fit") as listener:
    if sys.argv[2] == "wait":
        listener.wait()
    if sys.argv[2] != "over":
        signal.raise_signal(int(sys.argv[1]))
if sys.argv[2] == "over":
    signal.raise_signal(int(sys.argv[1]))
class Late:
    def __del__(self, number=int(sys.argv[1]), raise_signal=signal.raise_signal):
        raise_signal(number)
late = Late()
sys.exit(7)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["ends", "wait", "over"])
def test_process_handles_signals_through_its_whole_life(state, number):
    """Before anything is created a signal ends the process with its code; later the exit code is unaffected."""
    done = subprocess.run([sys.executable, "-c", COMMAND, str(int(number)), state], capture_output=True, text=True)
    ended = state == "ends"
    assert done.returncode == (signals.code_of(number) if ended else 7), done.stderr
    assert ("diffusion fit: interrupted" in done.stderr) is ended and "Traceback" not in done.stderr


def test_listening_needs_no_torch():
    code = "import sys; import diffusion.cli; print({'torch', 'numpy', 'pytorch_lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
