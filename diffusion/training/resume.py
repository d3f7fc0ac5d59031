"""Going on with a run: which file, what of it is restored, and what differs from the configuration."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pytorch_lightning.utilities import rank_zero_only

from diffusion.support import runs
from diffusion.support.console import shown
from diffusion.support.files import sweep
from diffusion.support.specs import spec, today

MODEL = ("net", "schedule", "target", "shape", "class_names")  # other weights, or weights that mean something else
KEPT = ("lr", "betas", "weight_decay")  # the optimizer that is restored has its own
say = rank_zero_only(print)  # once, however many processes there are
PLACES = ("config", "resume", "out", "experiment", "model")  # of a configuration; the model's part is in the checkpoint


class OtherModel(ValueError):
    """The model that is configured is not the checkpoint's.

    Attributes:
        changed: what differs, in words.
    """

    def __init__(self, message: str, changed: str) -> None:
        super().__init__(message)
        self.changed = changed


class Resume(NamedTuple):
    """A checkpoint to go on from."""

    path: Path
    checkpoint: dict  # without the tensors
    skipped: list[Path]  # newer files that are damaged

    @property
    def step(self) -> int:
        return self.checkpoint["global_step"]


def place(experiment: Path, resume: str) -> tuple[Path, Resume | None]:
    """The run directory to write to, and what to go on from.

    A run goes on in its own folder from its newest sound file. A file from elsewhere, or an older one of a run, starts
    a new run, so that nothing newer is overwritten.

    Raises:
        FileNotFoundError: there is no such file or run.
        ValueError: none of its checkpoints is sound.
    """
    fresh = experiment / f"version_{runs.next_version(experiment)}"
    if not resume:
        return fresh, None
    given = experiment if resume == "auto" else Path(resume).expanduser()
    if given.is_file():
        checkpoint = runs.read_checkpoint(given)
        run, newest = runs.directory(given), None
        if given.parent.name == "checkpoints":
            newest = runs.resumable(run)[1]
        chosen = Resume(given, _without_tensors(checkpoint), [])
        return (run if newest and newest["global_step"] == chosen.step else fresh), chosen
    path, checkpoint, skipped = runs.resumable(given)
    for reason in skipped.values():
        say(f"skipped {reason}")
    if path is not None:
        mine = [p for p in skipped if runs.directory(p) == runs.directory(path)]
        return runs.directory(path), Resume(path, _without_tensors(checkpoint), mine)
    if resume == "auto":
        say(f"--resume auto: no {'sound ' if skipped else ''}checkpoint in {shown(experiment)}, starting a new run")
        return fresh, None
    runs.find_checkpoint(given)  # says that there is none
    raise ValueError(f"{given}: none of its {len(skipped)} checkpoints is sound; start a new run without --resume")


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


def differences(resume: Resume, hparams: dict, run: Path, config: Any) -> list[str]:
    """A line for each thing that is configured otherwise than the run was.

    Args:
        hparams: of the new model, plain.
        run: folder whose config.yaml is compared.
        config: the new configuration, a jsonargparse namespace or None.
    Raises:
        OtherModel: the model itself would be another one.
    """
    old = resume.checkpoint["hyper_parameters"]
    names = sorted({*old, *hparams}, key=lambda k: (k not in MODEL, k))
    changed = {k: (old.get(k), hparams.get(k)) for k in names if old.get(k) != hparams.get(k)}
    wrong = [
        line for k, pair in changed.items() if k in MODEL or k not in hparams for line in compared(f"model.{k}", *pair)
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if wrong[4:] else ""
        remedy = "leave these options as they were"
        if (run / "config.yaml").is_file():
            remedy = (
                f"use the run's own configuration (diffusion fit -c {shown(run)}/config.yaml --resume {shown(run)})"
            )
        changed = "; ".join(wrong[:4]) + more
        raise OtherModel(
            f"{shown(resume.path)}: its model is not the one that is configured: {changed}; "
            f"{remedy}, or start a new run without --resume",
            changed,
        )
    lines = []
    for k, pair in changed.items():
        note = "; no effect, the restored optimizer goes on with its own" if k in KEPT else ""
        lines += [line + note for line in compared(f"model.{k}", *pair)]
    if config is not None and (run / "config.yaml").is_file():
        try:
            before = today(yaml.safe_load((run / "config.yaml").read_text()))
            before = before if isinstance(before, dict) else {}
        except (yaml.YAMLError, UnicodeDecodeError, OSError):
            return [*lines, f"{shown(run)}/config.yaml cannot be read, so it is not compared"]
        now = plain(config)
        for each in (before, now):  # linked to seed_everything, and not written
            ((each.get("data") or {}).get("init_args") or {}).pop("seed", None)
        for k in sorted({*before, *now} - {*PLACES}):
            if k in before and k in now:
                lines += compared(k, before[k], now[k])
    return lines


def compared(name: str, old: Any, new: Any) -> list[str]:
    """Where two plain values differ: "name: old -> new", at any depth."""
    if isinstance(old, dict) and isinstance(new, dict):
        if "class_path" in old and old.get("class_path") != new.get("class_path"):
            return [f"{name}: {_short(old)} -> {_short(new)}"]
        names = [(k, f"{name}.{k}".replace(".init_args", "")) for k in sorted({*old, *new}) if k != "class_path"]
        return [line for k, label in names for line in compared(label, old.get(k), new.get(k))]
    return [] if old == new or list_of(old) == list_of(new) else [f"{name}: {_short(old)} -> {_short(new)}"]


def list_of(value: Any) -> Any:
    """Tuples as YAML and checkpoints write them."""
    return [list_of(v) for v in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    name = value["class_path"].rpartition(".")[2] if isinstance(value, dict) and "class_path" in value else str(value)
    return name if len(name) <= 60 else name[:57] + "..."


def plain(config: Any) -> Any:
    """A configuration in plain types."""
    if hasattr(config, "as_dict"):
        config = config.as_dict()
    if isinstance(config, dict):
        return {k: plain(v) for k, v in config.items()}
    return [plain(v) for v in config] if isinstance(config, (list, tuple)) else config


def hparams_of(model: Any) -> dict:
    """The hyper-parameters of a model as a checkpoint holds them."""
    return {k: spec(v) for k, v in dict(model.hparams).items()}


def clear(run: Path, resume: Resume | None) -> None:
    """Before training in a folder: half-written files away, damaged ones aside, logs back to the checkpoint's step."""
    if stale := sweep(run):
        print(f"removed {len(stale)} half-written file{'s' if stale[1:] else ''} of a process that was killed")
    if resume is None or runs.directory(resume.path).resolve() != run.resolve():
        return
    for path in resume.skipped:
        os.replace(path, path.with_name(path.name + ".broken"))
    runs.rewind(run, resume.checkpoint["logs"] or {})
