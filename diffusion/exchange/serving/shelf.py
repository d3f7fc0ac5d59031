"""The models that a server offers: checkpoints of one folder by name, and the few of them that are open."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from diffusion.generation.pipeline import Pipeline
from diffusion.support import zoo
from diffusion.support.console import working_directory
from diffusion.support.released import SUFFIXES
from diffusion.support.runs import checkpoints, find_checkpoint

DEPTH = 4  # folders below a given one that are searched for runs


class Shelf:
    """The checkpoints of some runs by name; a name is looked up in the list, and never read as a path.

    The name of a checkpoint is its path from `base`, as it is typed on the command line there; a run's name stands for
    its newest checkpoint; a published model keeps its name, zoo:NAME. Symbolic links that lead out of the given folders
    are left out.

    Args:
        runs: run directories, experiments, checkpoint or exported files, folders of them, or zoo:NAME.
        device: of the networks, see `Pipeline.load`.
        keep: number of models that stay open; the one that was used least recently is closed.
    Attributes:
        base: the current folder if all runs are below it, else the folder that holds them all.
    Raises:
        FileNotFoundError: a path does not exist, or there is no checkpoint at all.
    """

    def __init__(self, runs: Sequence[str | Path], device: str = "auto", keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep: at least 1 model has to stay open, got {keep}")
        self.device, self.keep = device, keep
        published = [str(run) for run in runs if str(run).startswith(zoo.PREFIX)]
        self.published = {name: find_checkpoint(name).resolve() for name in published}
        for run in (own := [Path(run).expanduser() for run in runs if str(run) not in published]):
            if not run.exists():
                find_checkpoint(run)  # raises the error
        self.tops = [run.resolve() for run in own]
        here = working_directory()
        root = Path(os.path.commonpath([top.parent for top in self.tops])) if own else here
        self.base = here if root.is_relative_to(here) and here != here.parent else root
        self.open: OrderedDict[str, tuple[tuple[int, int], Pipeline]] = OrderedDict()
        self.lock = Lock()
        if not self.files():
            raise FileNotFoundError(f"{', '.join(map(str, runs))}: no checkpoint (*.ckpt) there; train a model first")

    def files(self) -> dict[str, Path]:
        """The checkpoint file of each name: runs with their newest one first, then all files of each."""
        found, single = dict(self.published), {}
        for top in self.tops:
            if top.is_file():
                found[self.name(top)] = top
                continue
            for folder, below, _ in os.walk(top):  # does not follow links
                below[:] = sorted(d for d in below if d != "checkpoints" and not d.startswith("."))
                run = Path(folder)
                if len(run.relative_to(top).parts) >= DEPTH:
                    below.clear()
                held = [file for file in checkpoints(run) if file.resolve().is_relative_to(top)]
                if held:
                    found[self.name(run)] = held[0]
                exported = sorted(f for f in run.iterdir() if f.suffix in SUFFIXES and f.resolve().is_relative_to(top))
                single |= {self.name(file): file for file in exported}
                single |= {self.name(file): file for file in held if file.stem != "last"}
        return found | single

    def name(self, path: Path) -> str:
        """The name of a run or checkpoint file."""
        return path.relative_to(self.base).as_posix()

    def model(self, name: str) -> Pipeline:
        """The model of a name, opened on first use and again when its file has changed.

        Raises:
            ValueError: there is no such model here, or its file is damaged.
        """
        with self.lock:
            file = self.files().get(name) if isinstance(name, str) else None
            if file is None:
                raise ValueError("model: there is no such model here; choose one of the list")
            status = file.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if name not in self.open or self.open[name][0] != stamp:
                self.open.pop(name, None)
                while len(self.open) >= self.keep:
                    self.open.popitem(last=False)
                self.open[name] = (stamp, Pipeline.load(file, device=self.device))
            self.open.move_to_end(name)
            return self.open[name][1]
