"""The data set of a run, rebuilt from the configuration beside its checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml

from diffusion.data.arrays import Arrays
from diffusion.data.base import ImageData
from diffusion.data.prepared import Prepared
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


def open_shared(stages: Sequence[str | Path], class_names: Sequence[str] = (), **overrides: Any) -> ImageData:
    """The data set of the last stage of a cascade, which is that of all stages, though of larger images.

    A data set of files may be a smaller copy of another, so of those only the class names are compared.

    Args:
        stages: runs or checkpoints; one whose configuration is missing is compared by `class_names` alone.
        class_names: of the base; () for none.
        overrides: see `open_data`.
    Raises:
        FileNotFoundError, ValueError: see `open_data`.
        ValueError: the stages were trained on different data.
    """
    data, wanted = open_data(stages[-1], **overrides), tuple(class_names)
    has = tuple(data.class_names)
    if wanted and has and wanted != has:
        raise ValueError(
            f"cascade: the base has the classes {_brief(wanted)}, the data of {stages[-1]} {_brief(has)}; "
            "train all stages on the same data"
        )
    for stage in stages[:-1]:
        try:
            kinds = {kind_of(stage), type(data)}
        except FileNotFoundError:
            continue
        if len(kinds) > 1 and not kinds & {Arrays, Prepared}:
            first, last = kind_of(stage).__name__, type(data).__name__
            raise ValueError(
                f"cascade: {stage} was trained on {first}, {stages[-1]} on {last}; train all stages on the same data"
            )
    return data


def _brief(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return f"{text[:60]}..." if len(text) > 60 else text


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
