"""Sampling and evaluation shared by the processes that torchrun starts."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


def age() -> float:
    """Seconds since this process started, where the system reports it (Linux); else 0."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return up - ticks / os.sysconf("SC_CLK_TCK")


class Processes:
    """Process `rank` of `size`: its share of n items, and how the shares are gathered.

    The default is a single process; `together` gives the one of a torchrun. Image k is a function of (seed, k), so the
    images do not depend on the number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This process's share of n items: contiguous, one larger on the first n % size processes.

        Raises:
            ValueError: there are fewer items than processes.
        """
        if n < self.size:
            raise ValueError(f"{n} images are too few to share over {self.size} processes; start fewer")
        share, rest = divmod(n, self.size)
        begin = self.rank * share + min(self.rank, rest)
        return slice(begin, begin + share + (self.rank < rest))

    def gather(self, mine: Tensor) -> Tensor:
        """The shares of all processes, concatenated in order, on the CPU; every process must call it."""
        if self.size == 1:
            return mine
        parts: list = [None] * self.size
        dist.all_gather_object(parts, mine.cpu())
        return torch.cat(parts)

    def agreed(self, value):
        """The first process's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


@contextmanager
def together() -> Iterator[Processes]:
    """All processes of a torchrun, joined over gloo; a single process without torchrun. Only the first prints.

    A process that fails ends by itself; torchrun then stops the others.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield Processes()
        return
    dist.init_process_group("gloo", timeout=timedelta(hours=12))  # a process waits while another one samples
    try:
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing if dist.get_rank() else sys.stdout):
            yield Processes(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # the first process writes the results of all
    finally:
        dist.destroy_process_group()
