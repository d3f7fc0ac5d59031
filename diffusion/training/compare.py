"""Differences between a run and the configuration that resumes it."""

from pathlib import Path
from typing import Any

import yaml

from diffusion.support.console import shown
from diffusion.support.specs import complete, spec, today
from diffusion.training.resume import Resume
from diffusion.training.systems.optimizers import AdamW

MODEL = (
    "net",
    "schedule",
    "target",
    "shape",
    "class_names",
    "scaling",
    "codec",
    "discriminator",
    "augment",
    "optimizer",  # whose state would not fit
)  # change the weights or what they mean
USUAL = {"class_path": f"{AdamW.__module__}.{AdamW.__name__}", "init_args": {}}  # of files without an optimizer
KEPT = ("lr", "betas", "weight_decay")  # the restored optimizer keeps its own
PLACES = ("config", "resume", "out", "experiment", "precision", "model")  # not compared: the checkpoint has the model


class OtherModel(ValueError):
    """The configured model is not the checkpoint's.

    Attributes:
        changed: what differs, in words.
    """

    def __init__(self, message: str, changed: str) -> None:
        super().__init__(message)
        self.changed = changed


def differences(resume: Resume, hparams: dict, run: Path, config: Any) -> list[str]:
    """One line for each setting that differs from the run's.

    Args:
        hparams: hyper-parameters of the new model, in plain types.
        run: directory whose config.yaml is compared.
        config: the new configuration, a jsonargparse namespace or None.
    Raises:
        OtherModel: the model itself differs.
        ValueError: a file that the training depends on was replaced.
    """
    old, hparams = (complete({"optimizer": USUAL} | v) for v in (resume.checkpoint["hyper_parameters"], hparams))
    names = sorted({*old, *hparams}, key=lambda k: (k not in MODEL, k))
    changed = {k: (old.get(k), hparams.get(k)) for k in names if old.get(k) != hparams.get(k)}
    wrong = [
        line for k, pair in changed.items() if k in MODEL or k not in hparams for line in compared(f"model.{k}", *pair)
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if wrong[4:] else ""
        remedy = "leave these options unchanged"
        if (run / "config.yaml").is_file():
            remedy = (
                f"use the run's own configuration (diffusion fit -c {shown(run)}/config.yaml --resume {shown(run)})"
            )
        changed = "; ".join(wrong[:4]) + more
        raise OtherModel(
            f"{shown(resume.path)}: its model differs from the configured one: {changed}; "
            f"{remedy}, or start a new run without --resume",
            changed,
        )
    for k, pair in changed.items():
        for name, file in replaced(f"model.{k}", *pair):
            raise ValueError(
                f"{name}: {file} is not the file that {shown(resume.path)} was trained with; restore it, or start a "
                "new run without --resume"
            )
    lines = []
    for k, pair in changed.items():
        note = "; no effect, the restored optimizer keeps its own" if k in KEPT else ""
        lines += [line + note for line in compared(f"model.{k}", *pair)]
    if config is not None and (run / "config.yaml").is_file():
        try:
            before = today(yaml.safe_load((run / "config.yaml").read_text()))
            before = before if isinstance(before, dict) else {}
        except (yaml.YAMLError, UnicodeDecodeError, OSError):
            return [*lines, f"{shown(run)}/config.yaml cannot be read, so it is not compared"]
        before, now = complete(before), complete(plain(config))  # older runs did not record newer arguments
        for each in (before, now):  # linked to seed_everything, so not saved
            ((each.get("data") or {}).get("init_args") or {}).pop("seed", None)
        for k in sorted({*before, *now} - {*PLACES}):
            if k in before and k in now:
                lines += compared(k, before[k], now[k])
    return lines


def compared(name: str, old: Any, new: Any) -> list[str]:
    """The differences of two plain values as "name: old -> new", at any depth."""
    if isinstance(old, dict) and isinstance(new, dict):
        if "class_path" in old and old.get("class_path") != new.get("class_path"):
            return [f"{name}: {_short(old)} -> {_short(new)}"]
        names = [(k, f"{name}.{k}".replace(".init_args", "")) for k in sorted({*old, *new}) if k != "class_path"]
        return [line for k, label in names for line in compared(label, old.get(k), new.get(k))]
    return [] if old == new or list_of(old) == list_of(new) else [f"{name}: {_short(old)} -> {_short(new)}"]


def replaced(name: str, old: Any, new: Any) -> list[tuple[str, str]]:
    """The files of two plain values, with the option that names each, whose contents differ under one path."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return []
    found = [item for k in old for item in replaced(f"{name}.{k}".replace(".init_args", ""), old[k], new.get(k))]
    if old.get("hash") and new.get("hash") and old["hash"] != new["hash"]:
        for k, path in old.items():
            if k != "hash" and isinstance(path, str) and path == new.get(k) and Path(path).exists():
                found.append((f"{name}.{k}", path))
    return found


def list_of(value: Any) -> Any:
    """The value with tuples turned into lists, as YAML and checkpoints store them."""
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
