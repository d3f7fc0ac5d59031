"""Locks on folders: held by one process at a time, released when it ends, not inherited by its children."""

import os
import subprocess
import sys

import pytest

from diffusion.support import lock
from diffusion.support.lock import Lock, held

HOLDS = "import sys, time; from diffusion.support.lock import Lock; from pathlib import Path; " \
        "kept = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(3600)"  # fmt: skip


@pytest.fixture
def other(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_lock_keeps_other_processes_out_until_its_own_is_killed(tmp_path, other):
    assert held(tmp_path)
    with pytest.raises(BlockingIOError):
        Lock(tmp_path)
    other.kill()
    other.wait()
    assert not held(tmp_path)
    mine = Lock(tmp_path)
    assert held(tmp_path)
    mine.release()
    assert not held(tmp_path)


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path):
    mine, (end, begin), (ready, there) = Lock(tmp_path), os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.write(there, b"x")
        os.read(end, 1)  # runs until the parent has checked the lock
        os._exit(0)
    try:
        os.read(ready, 1)
        assert held(tmp_path)
        mine.release()
        assert not held(tmp_path)
    finally:
        os.write(begin, b"x")
        os.waitpid(child, 0)


def test_lock_holds_nothing_on_a_system_without_locks(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    assert "not held" in repr(Lock(tmp_path)) and not held(tmp_path)
    monkeypatch.setattr(lock, "fcntl", None)
    assert "not held" in repr(Lock(tmp_path))
    assert "not held" in repr(Lock(tmp_path / "missing"))
