"""Packages of the optional extras, imported where they are used."""

from importlib import import_module
from types import ModuleType


def extra(module: str, name: str, use: str = "") -> ModuleType:
    """A module of an optional extra.

    Args:
        module: its import path.
        name: the extra that installs it, e.g. "export".
        use: what needs it, e.g. "--engine onnx"; the package itself by default.
    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        what = f"{use} needs {package}, which is missing" if use else f"{package} is missing"
        raise ImportError(f"{what}: pip install 'litdiffusion[{name}]', or pip install {package}") from error
