"""Blocks made as tasks of a Ray cluster, by the same function as here."""

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL

from diffusion import __version__
from diffusion.preparing.items import Item
from diffusion.preparing.settings import Form, Settings
from diffusion.preparing.shards.blocks import WORK, finished, make, record
from diffusion.preparing.shards.crew import alone, cores
from diffusion.support.extras import extra

LOCAL = "local"
ENDS = "--ray: a worker ends again and again; give its node more memory"
SOFTWARE = {"litdiffusion": __version__, "pillow": PIL.__version__, "numpy": np.__version__}


def spread(
    numbers: Sequence[int], items: Callable[[int], list[Item]], form: Form, settings: Settings
) -> Iterator[tuple[int, int]]:
    """Make blocks as tasks, in any order; yields (kept, refused) of each. An early end ends the tasks, too.

    Args:
        numbers: of the blocks.
        items: the items of a block, with absolute paths.
    Raises:
        ImportError: Ray is not installed.
        OSError: no cluster answers, or a node has other folders.
        RuntimeError: a worker ends whatever it is given.
        ValueError: a node has other software.
    """
    if not numbers:
        return
    ray = extra("ray", "ray")
    settings = replace(settings, out=settings.out.absolute(), source=absolute(settings.source))
    with connected(ray, settings):
        usual, single = (ray.remote(num_cpus=1)(task) for task in (_make, _alone))
        most = 2 * (settings.workers or int(ray.cluster_resources().get("CPU", 1)))
        waiting, flying, crashed = list(reversed(numbers)), {}, set()
        try:
            while waiting or flying:
                while waiting and len(flying) < most:
                    number = waiting.pop()
                    flying[usual.remote(number, items(number), form, settings, SOFTWARE)] = number
                for task in ray.wait(list(flying), num_returns=1)[0]:
                    number = flying.pop(task)
                    try:
                        done = ray.get(task)
                    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                        if number in crashed:
                            raise RuntimeError(ENDS) from None
                        crashed.add(number)
                        flying[single.remote(number, items(number), form, settings)] = number
                        continue
                    check_seen(settings.out, number)
                    yield done
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def absolute(source: str) -> str:
    """A source by its absolute path; others, such as torchvision:NAME, as they are."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


@contextmanager
def connected(ray, settings: Settings) -> Iterator[None]:
    """A connection to the cluster at an address, or to one that is started here and ends with the run.

    Raises:
        OSError: no cluster answers.
    """
    if ray.is_initialized():  # by the caller, who ends it
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    words = {"log_to_driver": False, "logging_level": "ERROR"}
    if settings.ray == LOCAL:
        ray.init(num_cpus=settings.workers or cores(), include_dashboard=False, **words)
    else:
        try:
            if place := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", settings.ray):
                socket.create_connection((place[1], int(place[2])), timeout=10).close()  # Ray itself tries for minutes
            ray.init(address=settings.ray, **words)
        except (OSError, RuntimeError, ValueError) as error:
            said = str(error).strip().partition("\n")[0]
            raise OSError(f"--ray {settings.ray}: no cluster answers; start one, or give local: {said}") from error
    try:
        yield
    finally:
        ray.shutdown()  # ends this program's tasks; `ray.cancel` can abort it, if a task ends at the same moment


def check_seen(out: Path, number: int) -> None:
    """Check that a block which a node has made is in the folder here.

    Raises:
        OSError: it is not.
    """
    if not finished(out, number):
        folder = record(out, number).parent
        here = os.listdir(folder) if folder.is_dir() else []  # a network file system looks again
        if record(out, number).name not in here:
            raise OSError(f"--ray: --out {out} is not shared: a node made a block that is not in it here")


def _make(number: int, items: list[Item], form: Form, settings: Settings, software: dict) -> tuple[int, int]:
    """On a node: check that it has the same folders and software, then make the block."""
    node = os.uname().nodename if hasattr(os, "uname") else "a node"
    for place in (settings.out / WORK, Path(settings.source)):
        if place.is_absolute() and not place.exists():
            raise OSError(f"--ray: {node} has no {place}; source and --out must be in folders that all nodes share")
    if software != SOFTWARE:
        have, want = (" ".join(f"{n} {v}" for n, v in these.items()) for these in (SOFTWARE, software))
        raise ValueError(f"--ray: {node} has other software, {have} instead of {want}; install the same")
    return make(number, items, form, settings, {})


def _alone(number: int, items: list[Item], form: Form, settings: Settings) -> tuple[int, int]:
    """On a node: find the items that end their process."""
    return alone(number, items, form, settings)
