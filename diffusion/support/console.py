"""Terminal output: paths and commands as they can be typed, times, numbers, tables, progress bars."""

import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from diffusion.support.paths import home, tensorboard_address

if TYPE_CHECKING:
    import torch

    from diffusion.support.processes import Processes


class Notice(UserWarning):
    """What a user should know about a computation that goes on; commands print it as a line of theirs."""


@contextmanager
def in_one_line(program: str) -> Iterator[None]:
    """Print notices as lines of the program."""
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, Notice):
                tqdm.write(f"{program}: {message}", file=sys.stderr)  # on a line of its own, above progress bars
            else:
                before(message, category, *where)

        warnings.showwarning = show
        yield


def working_directory() -> Path:
    """The current folder, in which names are shown and typed; files are found without it."""
    return Path.cwd().resolve()


def shown(path: Path) -> Path:
    """A path as a user would type it: relative to the current directory if it is below it."""
    cwd = Path.cwd()
    return path.relative_to(cwd) if path.is_relative_to(cwd) else path


def tool(name: str) -> str:
    """A command of this environment as it can be typed now: its name if it is on the PATH, else its path."""
    path = Path(sys.executable).parent / name
    if (found := shutil.which(name)) and Path(found).resolve() == path.resolve():
        return name
    return str(shown(path)) if path.exists() else f"{shown(Path(sys.executable))} -m {name}"


def board(run: Path) -> str:
    """The command that shows a run's curves; on SageMaker followed by the address to open."""
    there = f"   # open {tensorboard_address()}" if home() in ("notebook instance", "Studio") else ""
    return f"{tool('tensorboard')} --logdir {run.parent}{there}"


def clock(seconds: float) -> str:
    """A duration as 1:02:03, 2:03 or 0:03."""
    m, s = divmod(int(seconds + 0.5), 60)
    h, m = divmod(m, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    known = sys.modules.get("IPython")
    return hasattr(known and known.get_ipython(), "kernel")


def number(value: float) -> str:
    """A number to four significant digits, with thousands separators from 10,000."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def interval(figure: dict) -> str:
    """The interval of a figure, as "low .. high"."""
    return f"{number(figure['low'])} .. {number(figure['high'])}"


def rows_of(rows: list[tuple]) -> str:
    """Rows of text as aligned columns, the first left-aligned and the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def progress(
    total: int | None,
    processes: "Processes | None" = None,
    what: str = "sampling",
    unit: str = "eval",
    done: int = 0,
    shown: bool = True,
) -> tqdm:
    """A progress bar, by default of network evaluations, on the first process; with the time left if `total` is known.

    It is updated twice a second on a terminal or in a notebook, and every 15 s in a log.
    """
    every = 0.5 if sys.stderr.isatty() or in_notebook() else 15
    options = {"unit": unit, "unit_scale": True, "mininterval": every, "smoothing": 0.05, "initial": done}
    hidden = not shown or processes is not None and not processes.first
    return tqdm(total=total, desc=what, disable=hidden, **options)


def machine(where: "torch.device") -> str:
    """A description of the device and the versions of Python and torch."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chip = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{cores} CPU cores"
    return f"{chip}, Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}"
