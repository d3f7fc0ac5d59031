"""The data set of a run, rebuilt from the configuration that lies beside its checkpoints."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import yaml

from diffusion.data.base import ImageData
from diffusion.support import runs
from diffusion.support.specs import build, moved, named, suggest, today


def open_data(run_or_checkpoint: str | Path, **overrides: Any) -> ImageData:
    """The data set that a run was trained on; nothing is read or downloaded yet.

    Args:
        run_or_checkpoint: run directory, experiment folder, or checkpoint file.
        overrides: arguments of the data set that replace the run's, e.g. `root="/data"`.
    Raises:
        FileNotFoundError: no checkpoint there, or the run's config.yaml is missing.
        ValueError: an argument that the data set does not take, or a configuration that names no data set.
    """
    kind, arguments = _read(run_or_checkpoint)
    known = constructor(kind)
    for name in overrides:
        if name not in known:
            near = suggest(name, list(known)) or f"; there are: {', '.join(known)}"
            raise ValueError(f"data.{name}: {kind.__name__} has no argument {name!r}{near}")
    return kind(**arguments | overrides)


def kind_of(run_or_checkpoint: str | Path) -> type[ImageData]:
    """The class of a run's data set; see `open_data` for the argument and the errors."""
    return _read(run_or_checkpoint)[0]


def constructor(kind: type[ImageData]) -> dict[str, inspect.Parameter]:
    """The arguments that a class of data sets is made with, by name, with evaluated annotations."""
    return dict(inspect.signature(kind, eval_str=True).parameters)


def _read(run_or_checkpoint: str | Path) -> tuple[type[ImageData], dict[str, Any]]:
    """The class of a run's data set and the arguments recorded for it, the run's seed among them."""
    config = runs.directory(runs.find_checkpoint(run_or_checkpoint)) / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{config}: the run's configuration is missing; it is written beside checkpoints/")
    try:
        read = today(yaml.safe_load(config.read_text()))
        data = read["data"]
        path, arguments = data["class_path"], dict(data.get("init_args") or {})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{config}: wanted a run's configuration with data.class_path, got {error!r}") from error
    kind = named(moved(path), ImageData, "diffusion.data")
    if isinstance(seed := read.get("seed_everything"), int) and not isinstance(seed, bool):
        arguments = {"seed": seed} | arguments
    return kind, build(arguments)
