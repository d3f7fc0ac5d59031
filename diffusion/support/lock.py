"""Locks on folders and files, released when the process that holds them ends."""

import os
from pathlib import Path
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

NAME = ".lock"


class Lock:
    """An exclusive lock on a folder, by `flock` on its file .lock; released however the process ends.

    Forked children do not share it. Where the system or the file system has no such locks, nothing is locked.

    Args:
        folder: an existing folder.
    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None
        if fcntl is None:
            return
        try:
            handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # an unwritable folder is reported elsewhere
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:  # some network file systems
            os.close(handle)
            return
        self._handle, self._owner = handle, os.getpid()
        HELD.add(self)

    def __repr__(self) -> str:
        return f"Lock({str(self.folder)!r}{'' if self._handle is not None else ', not held'})"

    def release(self) -> None:
        """Release the lock."""
        HELD.discard(self)
        if self._handle is not None:
            if self._owner == os.getpid():  # for a forked child that has not closed its copy yet; a child closes alone
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None


HELD: WeakSet[Lock] = WeakSet()


def _forget() -> None:
    """In a forked child: close the parent's locks, which would otherwise outlive the parent."""
    for lock in list(HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def held(folder: Path) -> bool:
    """Whether another process holds the lock of a folder."""
    if not (folder / NAME).exists():
        return False
    try:
        Lock(folder).release()
    except BlockingIOError:
        return True
    return False


def lock(handle: int, shared: bool = False) -> bool:
    """Lock an open file until all copies of the file descriptor are closed; False if others hold a lock on it.

    Where the system or the file system has no such locks, nothing is locked, and the answer is True.

    Args:
        handle: file descriptor, open for writing unless `shared`.
        shared: others may share the lock.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        pass
    return True
