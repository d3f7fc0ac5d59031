"""Going on with a run: in which folder, from which file, and what of it is restored."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import yaml
from pytorch_lightning.utilities import rank_zero_only

from diffusion.support import runs
from diffusion.support.console import shown
from diffusion.support.files import sweep
from diffusion.support.lock import NAME as LOCK
from diffusion.support.lock import Lock
from diffusion.support.specs import today

CONFIG = "config.yaml"
LEFT = ("events.out.tfevents.*", "metrics.jsonl", "hparams.yaml", "samples", "nonfinite-*.json")  # besides checkpoints
say = rank_zero_only(print)  # once, however many processes there are


class Resume(NamedTuple):
    """A checkpoint to go on from."""

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
        resume: the checkpoint to go on from, if there is one.
        lock: on the folder, if it exists.
        recorded: the configuration that lies beside the checkpoint, or in the folder that is used again; what it
            chose by itself is kept. Empty for a new run.
    """

    folder: Path | None = None
    resume: Resume | None = None
    lock: Lock | None = None
    recorded: dict = {}


def place(experiment: Path, resume: str, first: bool = True) -> Start:
    """The folder to write to, and what to go on from.

    A run goes on in its own folder from its newest sound file; a run that died before its first checkpoint starts
    again in its own folder. A file from elsewhere, or an older one of a run, starts a new run, so that nothing newer
    is overwritten, and so does "auto" where the run belongs to a process that is alive.

    Args:
        experiment: the folder of the runs.
        resume: "", "auto", a run, or a checkpoint file.
        first: whether this process is the one that writes.
    Raises:
        FileNotFoundError: there is no such file or run.
        ValueError: none of its checkpoints is sound, or another process trains it.
    """
    if not resume:
        return Start()
    auto = resume == "auto"
    given = experiment if auto else Path(resume).expanduser()
    if given.is_file():
        checkpoint = runs.read_checkpoint(given)
        run, newest = runs.directory(given), None
        if given.parent.name == "checkpoints":
            newest = runs.resumable(run)[1]
        chosen = Resume(given, _without_tensors(checkpoint), [])
        own = newest is not None and newest["global_step"] == chosen.step
        return taken(run if own else None, chosen, first, auto)
    path, checkpoint, skipped = runs.resumable(given)
    for reason in skipped.values():
        say(f"skipped {reason}")
    if path is not None:
        mine = [p for p in skipped if runs.directory(p) == runs.directory(path)]
        return taken(runs.directory(path), Resume(path, _without_tensors(checkpoint), mine), first, auto)
    if not auto:
        runs.find_checkpoint(given)  # says that there is none
        raise ValueError(f"{given}: none of its {len(skipped)} checkpoints is sound; start a new run without --resume")
    newest = next(reversed(runs.versions(experiment)), None)
    if newest is not None and begun(newest):
        start = taken(newest, None, first, auto)
        if start.folder is not None:
            say(f"--resume auto: {shown(newest)} has no checkpoint yet, starting it again")
        return start
    say(f"--resume auto: no {'sound ' if skipped else ''}checkpoint in {shown(experiment)}, starting a new run")
    return Start()


def begun(run: Path) -> bool:
    """Whether a folder is that of a run that has no checkpoint yet, however short it has lived."""
    ours = any((run / name).is_file() for name in (CONFIG, LOCK)) or not any(run.iterdir())
    return ours and not runs.checkpoints(run)


def taken(folder: Path | None, resume: Resume | None, first: bool, auto: bool) -> Start:
    """A start in a folder, locked if this is the process that writes.

    Raises:
        ValueError: another process trains it, and it was asked for by name.
    """
    recorded = read_config(folder or runs.directory(resume.path))
    if folder is None or not first:
        return Start(folder, resume, None, recorded)
    try:
        return Start(folder, resume, Lock(folder), recorded)
    except BlockingIOError:
        if not auto:
            raise ValueError(f"{shown(folder)}: another process is training it; wait for that, or stop it") from None
    say(f"--resume auto: another process is training {shown(folder)}, starting a new run")
    return Start()


def claim(experiment: Path, start: Start) -> Start:
    """The start in its folder, which is made and locked if it is yet to be: the next free number, and nobody else's.

    Raises:
        OSError: it cannot be written; the message says what to do.
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
        except (FileExistsError, BlockingIOError):  # another process was quicker
            number += 1


def read_config(run: Path) -> dict:
    """The configuration in a run's folder; empty where there is none that can be read."""
    try:
        found = today(yaml.safe_load((run / CONFIG).read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _without_tensors(checkpoint: dict) -> dict:
    """What is told and compared; the weights are read once more when training starts."""
    kept = {k: checkpoint.get(k) for k in (*runs.KEYS, "logs", "times", "lr_schedulers") if k != "state_dict"}
    kept["updates"] = (checkpoint.get("callbacks") or {}).get("EMA", {}).get("updates")
    loaders = ((checkpoint.get("loops") or {}).get("fit_loop") or {}).get("state_dict", {}).get("combined_loader")
    return kept | {"optimizer": bool(checkpoint.get("optimizer_states")), "loaders": loaders}


def restored(resume: Resume) -> str:
    """The file, step and epoch, and what comes back with them."""
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
            parts.append(f"place in the data (batch {loader['batches']:,} of pass {loader['epoch'] + 1})")
    return (
        f"resuming from {shown(resume.path)}: step {resume.step:,}, epoch {read['epoch'] + 1}\n"
        f"restored: {', '.join(parts)}; noise and order are functions of the seed and the step"
    )


def clear(run: Path, resume: Resume | None) -> None:
    """Before training in a folder: half-written files away, damaged ones aside, logs back to the checkpoint's step.

    Without a checkpoint all that a start left that died is removed, so that the run is as one that was never broken.
    """
    if stale := sweep(run):
        print(f"removed {len(stale)} half-written file{'s' if stale[1:] else ''} of a process that was killed")
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
