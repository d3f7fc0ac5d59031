"""Threads that wait for processor cores are noticed, by simulated clocks; nothing is told on an idle machine."""

import os
import threading
from pathlib import Path

import pytest

from diffusion.support import crowd
from diffusion.support.crowd import CoreWaits, waits


class Machine:
    """A computation of steps of 0.1 s; in each, a thread waits for a core as long as `waiting` says."""

    def __init__(self, threads, waiting):
        self.now, self.waited, self.reads, self.waiting = 0.0, dict.fromkeys(map(str, range(threads)), 0), 0, waiting
        self.watch = CoreWaits(threads, lambda: self.now, self.read)

    def read(self):
        self.reads += 1
        return dict(self.waited)

    def steps(self, n):
        """What is told in n steps."""
        told = []
        for k in range(n):
            self.now += 0.1
            for thread, seconds in self.waiting(k).items():
                self.waited[thread] += int(1e9 * seconds)
            told.append(self.watch.look())
        return [said for said in told if said]


def test_threads_beside_a_busy_program_are_noticed_once():
    """Two threads and another program on two cores: each gets two thirds of a core."""
    machine = Machine(2, lambda k: {"0": 0.033, "1": 0.033})
    (said,) = machine.steps(1000)
    assert said.startswith("2 threads wait") and "--threads 1" in said and "OMP_NUM_THREADS=1" in said
    assert machine.reads == 1 + crowd.WINDOWS  # and none after the notice


@pytest.mark.parametrize("waiting", [
    lambda k: {"0": 0.002, "1": 0.001},  # an idle machine: 2 %
    lambda k: {"0": 0.09} if 20 <= k < 35 else {},  # another program for 1.5 s
    lambda k: {"0": 0.09} if k % 400 < 15 else {},  # again and again
], ids=["idle", "once", "often"])  # fmt: skip
def test_nothing_is_told_on_an_idle_machine(waiting):
    machine = Machine(2, waiting)
    assert machine.steps(2000) == [] and machine.reads <= 1 + 200 / crowd.WINDOW


def test_one_of_many_threads_suffices():
    """63 threads have cores of their own and wait for the last one."""
    assert len(Machine(64, lambda k: {"17": 0.05}).steps(100)) == 1


def test_a_single_thread_is_never_told_to_use_fewer():
    machine = Machine(1, lambda k: {"0": 0.09})
    assert machine.steps(1000) == [] and machine.reads == 0


def test_a_thread_that_begins_or_ends_in_a_window_is_no_error():
    machine = Machine(2, lambda k: {})
    machine.steps(15)
    machine.waited = {"0": 0, "9": 10**7}
    assert machine.steps(50) == []


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux reports waiting")
def test_the_waiting_of_every_thread_is_read():
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    found = waits()
    done.set()
    other.join()
    assert {str(os.getpid()), str(other.native_id)} <= found.keys() and min(found.values()) >= 0
    assert found[str(os.getpid())] <= waits()[str(os.getpid())]


def test_systems_without_the_figures_are_never_crowded(monkeypatch, tmp_path):
    monkeypatch.setattr(crowd, "TASKS", tmp_path / "missing")
    assert waits() == {}
    now = iter(range(0, 1000, 3))
    watch = CoreWaits(2, lambda: float(next(now)))
    assert [watch.look() for _ in range(50)] == [""] * 50
