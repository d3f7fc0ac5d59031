"""`diffusion.import_run`: a checkpoint of another program becomes a run of this project."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion.data import ImageData
from diffusion.data.recorded import constructor, typed
from diffusion.exchange.importing import diffusers, lucidrains, openai, origin
from diffusion.exchange.importing.found import Imported
from diffusion.exchange.importing.reading import read_torch
from diffusion.exchange.importing.writing import write
from diffusion.support import runs
from diffusion.support.paths import run_root
from diffusion.support.specs import named, suggest

SOURCES: dict[str, ModuleType] = {
    "diffusers": diffusers,
    "lucidrains": lucidrains,
    "improved-diffusion": openai,
    "guided-diffusion": openai,
    "origin": origin,
}
SAFE = (".safetensors",)


def import_run(
    path: str | Path,
    out: str | Path | None = None,
    *,
    source: str = "",
    flags: Mapping[str, Any] | None = None,
    data: str = "",
    arguments: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> Path:
    """Make a run of a checkpoint that another program wrote, and return its folder.

        run = diffusion.import_run("ddpm-cifar10-32", source="diffusers", data="CIFAR10")

    Args:
        path: a folder of diffusers, or a .pt or .ckpt file.
        out: the run directory to write; by default the next one in lightning_logs/NAME.
        source: diffusers, lucidrains, improved-diffusion, guided-diffusion or origin; detected by default where the
            files tell.
        flags: what the files do not hold, as the program's own command line names it, e.g. {"image_size": 64}.
        data: name of the data set, for `evaluate` and `fit`; its images must have the model's shape.
        arguments: of the data set.
        class_names: names of the classes; by default those of the data set.
        tell: receives notes: what was assumed or left out.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, a damaged file, a missing flag, or a detail that is not supported.
    """
    model = load(path, source, flags or {})
    given = data_of(data, arguments or {}, model) if data else None
    names = list(class_names) or (given[1] if given else [])
    kinds = getattr(model.net, "num_classes", 0)
    if names and len(names) != kinds:
        raise ValueError(f"class_names: {len(names)} names for a model of {kinds} classes; give one for each")
    path = Path(path)
    name = path.name if path.is_dir() else path.stem
    experiment = run_root() / name
    folder = Path(out).expanduser() if out else experiment / f"version_{runs.next_version(experiment)}"
    made = write(model, folder, given and given[0], class_names=names)
    for note in model.notes:
        tell(note)
    return made


def load(path: str | Path, source: str = "", flags: Mapping[str, Any] | None = None) -> Imported:
    """The model in a checkpoint of another program; see `import_run`."""
    path, flags = Path(path).expanduser(), dict(flags or {})
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if source and source not in SOURCES:
        near = suggest(source, list(SOURCES))
        raise ValueError(f"--from {source}: unknown{near}; there are: {', '.join(SOURCES)}")
    found = None if path.is_dir() else read_torch(path) if path.suffix not in SAFE else {}
    detected = [name for name, module in SOURCES.items() if module.fits(path if found is None else found)]
    if not detected:
        raise ValueError(
            f"{path}: not a checkpoint of {', '.join(SOURCES)}; a folder of diffusers has a model_index.json, and the "
            "others are files of torch.save"
        )
    if source and source not in detected:
        raise ValueError(f"--from {source}: {path} is of {' or '.join(detected)}; use --from {detected[0]}")
    if not source and len(detected) > 1:
        raise ValueError(f"{path}: of {' or '.join(detected)}; say which with --from, as their flags differ")
    source = source or detected[0]
    module = SOURCES[source]
    for name in flags:
        if name not in module.FLAGS:
            near = suggest(name, list(module.FLAGS)) or f"; there are: {', '.join(module.FLAGS)}"
            raise ValueError(f"--{name}: not a flag of {source}{near}")
    if module is openai:
        return openai.load(path, flags, found, source)
    return module.load(path, flags) if found is None else module.load(path, flags, found)


def data_of(name: str, arguments: Mapping[str, Any], model: Imported) -> tuple[dict[str, Any], list[str]]:
    """The configuration of a data set for a model, and the names of its classes.

    Raises:
        ValueError: there is no such data set, or its images have another shape.
    """
    kind = named(name, ImageData, "diffusion.data")
    known, takes = getattr(model.net, "num_classes", 0), constructor(kind)
    for argument in arguments:
        if argument not in takes:
            near = suggest(argument, list(takes)) or f"; there are: {', '.join(takes)}"
            raise ValueError(f"data.{argument}: {kind.__name__} has no argument {argument!r}{near}")
    given = {k: typed(k, v, takes[k].annotation) for k, v in arguments.items()}
    arguments = given if known else {"labels": False} | given
    found = kind(**arguments)
    if tuple(found.shape) != tuple(model.shape):
        raise ValueError(
            f"--data {name}: its images are {'x'.join(map(str, found.shape))}, the model's "
            f"{'x'.join(map(str, model.shape))}; choose other data, or set its size with --data.size"
        )
    path = f"{kind.__module__}.{kind.__qualname__}"
    return {"class_path": path, "init_args": arguments}, list(found.class_names) if known else []
