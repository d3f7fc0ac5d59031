"""Conversion of objects to plain specs and back, and lookup of classes by name."""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

PLAIN = (bool, int, float, str, type(None))
PACKAGES = ("data", "denoiser", "guidance", "loss", "nets", "noise", "samplers")  # that a configuration names
# Packages whose classes no file may name.
NO_PARTS = {"cli", "commands", "compat", "exchange", "judging", "preparing", "support"}
MOVED = {  # modules named by checkpoints and configurations of version 0.1 -> their present names
    "diffusion.targets": "diffusion.denoiser.targets",
    "diffusion.hints": "diffusion.denoiser.hints",
    "diffusion.objective": "diffusion.loss.objective",
    "diffusion.weights": "diffusion.loss.weights",
    "diffusion.pairing": "diffusion.loss.pairing",
    "diffusion.systems.guides": "diffusion.guidance.guides",
    "diffusion.training.systems.guides": "diffusion.guidance.guides",
    "diffusion.systems": "diffusion.training.systems",
}
RENAMED = {"diffusion.loss.objective.Objective": {"guess": "self_condition"}}  # arguments, by class


def moved(path: str) -> str:
    """The present import path of a class that a file of an older version may name."""
    old = next((m for m in MOVED if path.startswith(f"{m}.")), None)
    return MOVED[old] + path.removeprefix(old) if old else path


def today(value: Any) -> Any:
    """Plain data with each `class_path` and the names of its `init_args` updated to the present ones."""
    if isinstance(value, (list, tuple)):
        return [today(v) for v in value]
    if not isinstance(value, dict):
        return value
    value = {k: today(v) for k, v in value.items()}
    if isinstance(path := value.get("class_path"), str):
        value["class_path"] = moved(path)
        names = RENAMED.get(value["class_path"], {})
        if isinstance(args := value.get("init_args"), dict):
            value["init_args"] = {names.get(k, k): v for k, v in args.items()}
    return value


def gather(package: str) -> None:
    """Import every module of a package, so that its classes can be found by short name."""
    module = import_module(package)
    for info in iter_modules(module.__path__):
        import_module(f"{package}.{info.name}")


def named(name: str, base: type, package: str) -> type:
    """A class by its import path, or by the short name of an imported one, the package's among them.

    Raises:
        ValueError: there is no such class, or it is not a concrete subclass of `base`.
    """
    gather(package)
    if "." not in name:
        known = {k.__name__: k for k in concrete(base)}
        if name not in known:
            kind, names = base.__name__.lower(), sorted(known)
            raise ValueError(f"there is no {kind} {name!r}{suggest(name, names)}; there are: {', '.join(names)}")
        return known[name]
    module, _, last = name.rpartition(".")
    try:
        found = getattr(import_module(module), last)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {name!r}: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        path = f"{base.__module__}.{base.__qualname__}"
        raise ValueError(f"{name} is not a subclass of {base.__name__}: derive it from {path}")
    if inspect.isabstract(found):
        raise ValueError(f"{name} is abstract: implement {', '.join(sorted(found.__abstractmethods__))}")
    return found


def suggest(word: str, words: list[str]) -> str:
    """ "; did you mean 'x'?" for the closest of the words, or an empty string."""
    near = get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def concrete(base: type, package: str = "") -> set[type]:
    """The concrete classes among a class and its subclasses at any depth, of one package if that is given."""
    found = set() if inspect.isabstract(base) or not base.__module__.startswith(package) else {base}
    for child in base.__subclasses__():
        found |= concrete(child, package)
    return found


def arguments(kind: type) -> dict[str, inspect.Parameter]:
    """The constructor arguments of a class by name, including those that its `**more` forwards to base classes."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        own = dict(list(inspect.signature(base.__init__).parameters.items())[1:])  # without self
        variable = {p.kind for p in own.values()}
        found |= {k: p for k, p in own.items() if k not in found and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if inspect.Parameter.VAR_KEYWORD not in variable:
            break
    return found


def spec(value: Any) -> Any:
    """A plain description of an object, from which `build` constructs an equal one.

    {"class_path": ..., "init_args": {...}}: an object keeps each constructor argument in an attribute of the same name
    (scikit-learn's convention), so nothing needs to be recorded.

    Raises:
        ValueError: an argument is not kept under its name.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [spec(v) for v in value]
    if isinstance(value, dict):
        return {k: spec(v) for k, v in value.items()}
    kind = type(value)
    args = {}
    for name in arguments(kind):
        if not hasattr(value, name):
            raise ValueError(
                f"{kind.__name__} must keep its argument {name!r} as self.{name}, so that a checkpoint can rebuild it"
            )
        args[name] = spec(getattr(value, name))
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": args}


def complete(value: Any) -> Any:
    """A spec with the arguments that it leaves out, at their defaults: a file may be older than an argument.

    A class that cannot be imported stays as it is.
    """
    if isinstance(value, (list, tuple)):
        return [complete(v) for v in value]
    if not isinstance(value, dict):
        return value
    value = {k: complete(v) for k, v in value.items()}
    if "class_path" in value and isinstance(args := value.get("init_args"), dict):
        module, _, name = str(value["class_path"]).rpartition(".")
        try:
            known = arguments(getattr(import_module(module), name))
        except (ImportError, AttributeError, ValueError, TypeError):
            return value
        defaults = {k: spec(p.default) for k, p in known.items() if k not in args and p.default is not p.empty}
        value["init_args"] = args | defaults
    return value


def build(value: Any) -> Any:
    """The object that a spec describes; any other value is returned unchanged.

    Raises:
        ValueError: the class cannot be imported, or does not take these arguments.
    """
    if isinstance(value, (list, tuple)):
        return [build(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {k: build(v) for k, v in value.items()}
    value = today(value)
    module, _, name = str(value["class_path"]).rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"cannot import {value['class_path']!r}, which this file was created with: {error}; "
            f"if it is a module of your own, start from its folder"
        ) from error
    if not is_part(kind):
        raise ValueError(
            f"{value['class_path']!r} is not a component of a model, and calling it could run arbitrary code, so it is "
            "refused; components are torch modules, classes of this project, and subclasses of these"
        )
    try:
        return kind(**build(value.get("init_args") or {}))
    except TypeError as error:
        raise ValueError(f"{value['class_path']}: {error}") from error


def part(parts: Mapping[str, Any], name: str, kind: type) -> Any:
    """A part of a model, built from its spec.

    Raises:
        ValueError: the spec cannot be built, or describes something else.
    """
    found = build(parts.get(name))
    if not isinstance(found, kind):
        wanted = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{name}: wanted a {wanted} of this project, got {type(found).__name__}")
    return found


def is_part(kind: Any) -> bool:
    """Whether a checkpoint may instantiate this class; specs are untrusted, and os.system is importable too."""
    if not inspect.isclass(kind):
        return False
    homes = [(base.__module__, base.__name__) for base in kind.__mro__]
    mine = {m.split(".")[1] for m, _ in homes if m.startswith("diffusion.")}
    lifecycle = any(m.startswith("diffusion.training.") and ".systems." not in m for m, _ in homes)
    return not lifecycle and not NO_PARTS & mine and (bool(mine) or ("torch.nn.modules.module", "Module") in homes)
