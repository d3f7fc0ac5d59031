"""Runs and their checkpoints: lightning_logs/<experiment>/version_N/checkpoints/{last,step*}.ckpt."""

import pickle
import re
import zipfile
from pathlib import Path

import torch

KEYS = ("state_dict", "hyper_parameters", "global_step", "epoch")


def versions(experiment: Path) -> list[Path]:
    """The run directories of an experiment, oldest first."""
    found = [p for p in experiment.glob("version_*") if p.is_dir() and p.name[8:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[8:]))


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint files of a run, the one to go on from first: last.ckpt, then the newest step."""
    files = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda p: (p.stem == "last", _step(p)), reverse=True)
    return files or sorted(run.glob("*.ckpt"), key=lambda p: (p.stem == "last", _step(p)), reverse=True)


def _step(path: Path) -> int:
    found = re.search(r"(\d+)$", path.stem)
    return int(found.group(1)) if found else -1


def directory(checkpoint: Path) -> Path:
    """The run directory that a checkpoint file lies in."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means: a file itself, a run's newest, or that of an experiment's newest run.

    Raises:
        FileNotFoundError: there is none; the message says where was looked.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint file or run directory")
    for run in [path, *reversed(versions(path))]:
        if found := checkpoints(run):
            return found[0]
    raise FileNotFoundError(f"{path}: no checkpoint (*.ckpt) in it, nor in a checkpoints/ or version_N/ folder below")


def read_checkpoint(path: Path) -> dict:
    """The contents of a checkpoint file: tensors and plain types only, so that no file can run code.

    Raises:
        ValueError: the file is truncated, corrupt, or of another program.
    """
    if not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise ValueError(f"{path}: truncated, or not a checkpoint ({size:,} bytes); use another file of its folder")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: not a checkpoint of this project: it holds more than tensors and plain values, "
            "and such a file could run code, so it is not opened"
        ) from error
    except (RuntimeError, EOFError, KeyError, UnicodeDecodeError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: corrupt, or not a checkpoint; use another file of its folder") from error
    missing = [k for k in KEYS if k not in checkpoint] if isinstance(checkpoint, dict) else list(KEYS)
    if missing or "net" not in checkpoint["hyper_parameters"]:
        raise ValueError(
            f"{path}: not a checkpoint of this project: it has no {', '.join(missing) or 'hyper_parameters.net'}"
        )
    return checkpoint


def resumable(experiment: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what was passed over on the way.

    Looks at the newest run that has any checkpoint; unreadable files are skipped for the next older one.
    """
    skipped = []
    for run in reversed(versions(experiment)):
        for path in checkpoints(run):
            try:
                read_checkpoint(path)
            except (ValueError, OSError) as error:
                skipped.append(str(error))
            else:
                return path, skipped
    return None, skipped


def next_version(experiment: Path) -> int:
    """The number of the next run of an experiment."""
    existing = versions(experiment)
    return int(existing[-1].name[8:]) + 1 if existing else 0
