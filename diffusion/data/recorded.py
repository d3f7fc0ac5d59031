"""The data set of a run, rebuilt from the configuration beside its checkpoints."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml

from diffusion.data.base import ImageData
from diffusion.support import runs
from diffusion.support.specs import build, moved, named, suggest, today


def open_data(run_or_checkpoint: str | Path, **overrides: Any) -> ImageData:
    """The data set that a run was trained on; nothing is read or downloaded yet.

    Args:
        run_or_checkpoint: run directory, experiment folder, or checkpoint file.
        overrides: arguments of the data set that replace the run's, e.g. `root="/data"`. Text for an argument of
            another type, as a command line gives it, is read as YAML: "10", "true", "[a, b]".
    Raises:
        FileNotFoundError: no checkpoint there, or the run's config.yaml is missing.
        ValueError: an argument that the data set does not take or of a wrong type, or a configuration without a
            data set.
    """
    kind, arguments = _read(run_or_checkpoint)
    known = constructor(kind)
    for name in overrides:
        if name not in known:
            near = suggest(name, list(known)) or f"; there are: {', '.join(known)}"
            raise ValueError(f"data.{name}: {kind.__name__} has no argument {name!r}{near}")
    return kind(**arguments | {name: typed(name, value, known[name].annotation) for name, value in overrides.items()})


def kind_of(run_or_checkpoint: str | Path) -> type[ImageData]:
    """The class of a run's data set; see `open_data` for the argument and the errors."""
    return _read(run_or_checkpoint)[0]


def constructor(kind: type[ImageData]) -> dict[str, inspect.Parameter]:
    """The constructor arguments of a data set's class by name, with evaluated annotations."""
    return dict(inspect.signature(kind, eval_str=True).parameters)


def typed(name: str, value: Any, annotation: Any) -> Any:
    """A value for an argument; text is read as YAML unless the argument is text.

    Raises:
        ValueError: the text is of another type.
    """
    kinds = get_args(annotation) if NoneType in get_args(annotation) else (annotation,)
    if not isinstance(value, str) or str in kinds:
        return value
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    exact = {int: int, float: (int, float), bool: bool}
    wanted = [kind for kind in kinds if kind in exact]
    if wanted and not any(isinstance(read, exact[k]) and (k is bool) == isinstance(read, bool) for k in wanted):
        raise ValueError(f"data.{name}: wanted {' or '.join(kind.__name__ for kind in wanted)}, got {value!r}")
    return read


def _read(run_or_checkpoint: str | Path) -> tuple[type[ImageData], dict[str, Any]]:
    """The class of a run's data set and the arguments recorded for it, the run's seed among them."""
    config = runs.directory(runs.find_checkpoint(run_or_checkpoint)) / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"{config}: the run's configuration is missing, which names its data; it is written beside checkpoints/, "
            "and can be copied beside an exported model"
        )
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
