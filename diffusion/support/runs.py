"""Runs and their checkpoints: lightning_logs/<experiment>/version_N/checkpoints/{last,step*}.ckpt."""

import os
import pickle
import re
from pathlib import Path

import torch

from diffusion.support import zoo
from diffusion.support.released import SUFFIXES, read_released
from diffusion.support.seal import problem
from diffusion.support.specs import today

KEYS = ("state_dict", "hyper_parameters", "global_step", "epoch")


def versions(experiment: Path) -> list[Path]:
    """The run directories of an experiment, oldest first."""
    found = [p for p in experiment.glob("version_*") if p.is_dir() and p.name[8:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[8:]))


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint files of a run, in order of preference for resuming: last.ckpt, then the newest step."""
    for folder in (run / "checkpoints", run):
        files = [p for p in folder.glob("*.ckpt") if not p.name.startswith(".")]  # hidden files are incomplete
        if files:
            return sorted(files, key=lambda p: (p.stem == "last", _step(p)), reverse=True)
    return []


def _step(path: Path) -> int:
    found = re.search(r"(\d+)$", path.stem)
    return int(found.group(1)) if found else -1


def directory(checkpoint: Path) -> Path:
    """The run directory of a checkpoint file."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path refers to: the file itself, a run's newest, or that of an experiment's newest run.

    "zoo:NAME" is a published model (see `support.zoo`).

    Raises:
        FileNotFoundError: there is none; the message says where it was searched for.
    """
    path = zoo.located(path) if str(path).startswith(zoo.PREFIX) else Path(path).expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint file or run directory")
    for run in [path, *reversed(versions(path))]:
        if found := checkpoints(run):
            return found[0]
    raise FileNotFoundError(f"{path}: no checkpoint (*.ckpt) in it, nor in a checkpoints/ or version_N/ folder below")


def open_checkpoint(path: Path) -> object:
    """The contents of a file: its checksum is verified, then tensors and plain values are read; no code is executed.

    Raises:
        ValueError: the file is truncated, damaged, or from another program.
    """
    if said := problem(path):
        raise ValueError(f"{path}: {said}; use another file in its folder")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: not a checkpoint of this project: it holds more than tensors and plain values, "
            "and such a file could run code, so it is not opened"
        ) from error
    except Exception as error:  # of a foreign archive, anything; none of it is the reader's fault
        raise ValueError(f"{path}: not a checkpoint of this project; use another file in its folder") from error


def read_checkpoint(path: Path) -> dict:
    """The contents of a checkpoint of this project, see `open_checkpoint`, or of an exported model, see `released`.

    Raises:
        ValueError: the file is truncated, damaged, or from another program.
    """
    checkpoint = read_released(path) if path.suffix in SUFFIXES else open_checkpoint(path)
    missing = [k for k in KEYS if k not in checkpoint] if isinstance(checkpoint, dict) else list(KEYS)
    if missing or "net" not in checkpoint["hyper_parameters"]:
        raise ValueError(
            f"{path}: not a checkpoint of this project: it has no {', '.join(missing) or 'hyper_parameters.net'}"
        )
    return checkpoint | {"hyper_parameters": today(checkpoint["hyper_parameters"])}


def resumable(folder: Path) -> tuple[Path | None, dict | None, dict[Path, str]]:
    """The newest valid checkpoint of a run or experiment, its contents, and why newer files were skipped.

    The newest run is searched first.
    """
    skipped = {}
    for run in [folder, *reversed(versions(folder))]:
        for path in checkpoints(run):
            try:
                return path, read_checkpoint(path), skipped
            except (ValueError, OSError) as error:
                skipped[path] = str(error)
    return None, None, skipped


def newest_step(run: Path) -> int | None:
    """The step of a run's newest step checkpoint, from its file name."""
    return max((_step(p) for p in checkpoints(run)), default=-1) if checkpoints(run) else None


def next_version(experiment: Path) -> int:
    """The number of the next run of an experiment."""
    existing = versions(experiment)
    return int(existing[-1].name[8:]) + 1 if existing else 0


def logs(run: Path) -> dict[str, int]:
    """The sizes in bytes of a run's append-only files: event files and metrics.jsonl."""
    files = [*run.glob("events.out.tfevents.*"), *run.glob("metrics.jsonl")]
    return {p.name: p.stat().st_size for p in files}


def rewind(run: Path, lengths: dict[str, int]) -> None:
    """Truncate a run's logs to the sizes that they had when a checkpoint was written.

    Later entries belong to steps that are repeated. If none of the files exists, the checkpoint was copied from
    elsewhere, and nothing is touched.
    """
    if not any((run / name).is_file() for name in lengths):
        return
    for name, size in logs(run).items():
        if name not in lengths and name.startswith("events"):
            (run / name).unlink()
        elif size > lengths.get(name, 0):
            os.truncate(run / name, lengths.get(name, 0))
