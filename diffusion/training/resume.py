"""Resuming a run: the folder, the checkpoint file, and what is restored from it."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import yaml
from pytorch_lightning.utilities import rank_zero_only

from diffusion.support import runs, zoo
from diffusion.support.console import shown
from diffusion.support.files import sweep
from diffusion.support.lock import NAME as LOCK
from diffusion.support.lock import Lock
from diffusion.support.released import SUFFIXES
from diffusion.support.seal import identity
from diffusion.support.specs import today

CONFIG = "config.yaml"
LEFT = (
    "events.out.tfevents.*",
    "metrics.jsonl",
    "hparams.yaml",
    "samples",
    "averages",
    "nonfinite-*.json",
)  # besides checkpoints
say = rank_zero_only(print)  # once, however many processes there are


class Resume(NamedTuple):
    """A checkpoint to resume from."""

    path: Path
    checkpoint: dict  # without the tensors
    skipped: list[Path]  # newer files that are damaged

    @property
    def step(self) -> int:
        return self.checkpoint["global_step"]


class Start(NamedTuple):
    """Where a run writes, and how it begins.

    Attributes:
        folder: an existing one, or None for the next new one of the experiment.
        resume: the checkpoint to resume from, if any.
        lock: on the folder, if it exists.
        recorded: the configuration beside the checkpoint or in the reused folder, whose automatic choices are kept;
            empty for a new run.
        seen: what this process found to resume from, in words that are the same where the files are.
        failed: why the run cannot start, on this process.
    """

    folder: Path | None = None
    resume: Resume | None = None
    lock: Lock | None = None
    recorded: dict = {}
    seen: str = ""
    failed: Exception | None = None


def place(experiment: Path, resume: str, first: bool = True) -> Start:
    """The folder to write to, and the checkpoint to resume from.

    A run resumes in its own folder from its newest valid file; a run that died before its first checkpoint restarts in
    its own folder. A file from elsewhere, an older one of a run, or one of weights alone, such as an imported model,
    starts a new run, so that nothing is overwritten; so does "auto" if a live process is training the run.

    Args:
        experiment: the folder of the runs.
        resume: "", "auto", a run, or a checkpoint file.
        first: whether this process is the one that writes.
    Raises:
        FileNotFoundError: there is no such file or run.
        ValueError: none of its checkpoints is valid.
    """
    if not resume:
        return Start()
    auto = resume == "auto"
    given = experiment if auto else zoo.located(resume)
    if given.is_file():
        checkpoint = runs.read_checkpoint(given)
        if given.suffix in SUFFIXES:
            raise ValueError(f"{given}: an exported model has no optimizer to resume with; resume its run")
        run, newest = runs.directory(given), None
        if given.parent.name == "checkpoints":
            newest = runs.resumable(run)[1]
        chosen = Resume(given, _without_tensors(checkpoint), [])
        own = newest is not None and newest["global_step"] == chosen.step and "loops" in checkpoint
        return taken(run if own else None, chosen, first, auto)
    path, checkpoint, skipped = runs.resumable(given)
    for reason in skipped.values():
        say(f"skipped {reason}")
    if path is not None:
        mine = [p for p in skipped if runs.directory(p) == runs.directory(path)]
        own = runs.directory(path) if "loops" in checkpoint else None
        return taken(own, Resume(path, _without_tensors(checkpoint), mine), first, auto)
    if not auto:
        runs.find_checkpoint(given)  # raises if there is none
        raise ValueError(f"{given}: none of its {len(skipped)} checkpoints is valid; start a new run without --resume")
    newest = next(reversed(runs.versions(experiment)), None)
    if newest is not None and begun(newest):
        start = taken(newest, None, first, auto)
        if start.folder is not None:
            say(f"--resume auto: {shown(newest)} has no checkpoint yet, restarting it")
        return start
    say(f"--resume auto: no {'valid ' if skipped else ''}checkpoint in {shown(experiment)}, starting a new run")
    return Start(seen=f"no {'valid ' if skipped else ''}checkpoint in {experiment}")


def begun(run: Path) -> bool:
    """Whether a folder belongs to a run without a checkpoint, even one that has only just started."""
    ours = any((run / name).is_file() for name in (CONFIG, LOCK)) or not any(run.iterdir())
    return ours and not runs.checkpoints(run)


def taken(folder: Path | None, resume: Resume | None, first: bool, auto: bool) -> Start:
    """A start in a folder, locked if this process writes the files.

    It has failed if another process is training the run, which was requested by name.
    """
    recorded = read_config(folder or runs.directory(resume.path))
    seen = f"{resume.path} (step {resume.step:,}, {identity(resume.path)})" if resume else f"{folder}, not yet trained"
    if folder is None or not first:
        return Start(folder, resume, None, recorded, seen)
    try:
        return Start(folder, resume, Lock(folder), recorded, seen)
    except BlockingIOError:
        if not auto:
            busy = ValueError(f"{shown(folder)}: another process is training it; wait for it or stop it")
            return Start(seen=seen, failed=busy)  # the other processes do not ask for the lock
    say(f"--resume auto: another process is training {shown(folder)}, starting a new run")
    return Start(seen=seen)


def claim(experiment: Path, start: Start) -> Start:
    """The start with its folder; a new run's is created with the next free number and locked.

    Raises:
        OSError: the folder is not writable; the message says what to do.
    """
    folder, lock = start.folder, start.lock
    try:
        if folder is None:
            experiment.mkdir(parents=True, exist_ok=True)
            folder, lock = _new(experiment)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        place = folder or experiment
        message = f"{place}: the run's folder cannot be written ({error.strerror}); choose another with --out"
        raise type(error)(message) from error
    return start._replace(folder=folder, lock=lock)


def _new(experiment: Path) -> tuple[Path, Lock]:
    number = runs.next_version(experiment)
    while True:
        folder = experiment / f"version_{number}"
        try:
            folder.mkdir()
            return folder, Lock(folder)
        except (FileExistsError, BlockingIOError):  # another process took this number
            number += 1


def read_config(run: Path) -> dict:
    """The configuration in a run's folder; empty if missing or unreadable."""
    try:
        found = today(yaml.safe_load((run / CONFIG).read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _without_tensors(checkpoint: dict) -> dict:
    """The parts that are reported and compared; the weights are read again when training starts."""
    kept = {k: checkpoint.get(k) for k in (*runs.KEYS, "logs", "times", "lr_schedulers") if k != "state_dict"}
    kept["updates"] = (checkpoint.get("callbacks") or {}).get("EMA", {}).get("updates")
    loaders = ((checkpoint.get("loops") or {}).get("fit_loop") or {}).get("state_dict", {}).get("combined_loader")
    return kept | {"optimizer": bool(checkpoint.get("optimizer_states")), "loaders": loaders}


def restored(resume: Resume) -> str:
    """The message on resuming: file, step, epoch, and what is restored."""
    read, parts = resume.checkpoint, ["raw weights"]
    if read["updates"] is not None:
        parts.append(f"averaged weights ({read['updates']:,} updates)")
    if read["optimizer"]:
        parts.append("optimizer")
    if read["lr_schedulers"]:
        parts.append("learning rate")
    if read["times"]:
        parts.append("losses by time")
    for loader in (read["loaders"] or [])[:1]:
        if "batches" in loader:
            parts.append(f"position in the data (batch {loader['batches']:,} of epoch {loader['epoch'] + 1})")
    return (
        f"resuming from {shown(resume.path)}: step {resume.step:,}, epoch {read['epoch'] + 1}\n"
        f"restored: {', '.join(parts)}; noise and order are functions of the seed and the step"
    )


def clear(run: Path, resume: Resume | None) -> None:
    """Prepare a folder: delete half-written files, set damaged ones aside, rewind logs to the checkpoint's step.

    Without a checkpoint, everything left by an earlier start is removed, as if the run had never been interrupted.
    """
    if stale := sweep(run):
        print(f"removed {len(stale)} half-written file{'s' if stale[1:] else ''} left by a killed process")
    if resume is None:
        for pattern in LEFT:
            for path in run.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return
    if runs.directory(resume.path).resolve() != run.resolve():
        return
    for path in resume.skipped:
        os.replace(path, path.with_name(path.name + ".broken"))
    runs.rewind(run, resume.checkpoint["logs"] or {})
