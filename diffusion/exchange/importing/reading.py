"""Weights from files of other programs; no code in them is executed."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_torch(path: Path) -> Any:
    """The contents of a file of `torch.save`: tensors and plain values only.

    Raises:
        ValueError: the file is damaged, of another format, or holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" not in str(error) and "class" not in str(error):  # not even a pickle
            raise ValueError(f"{path}: truncated, damaged, or not a file of torch.save") from error
        what = str(error).partition("Unsupported global: GLOBAL ")[2].split(" ")[0] or "other objects"
        raise ValueError(
            f"{path}: holds more than tensors and plain values ({what}), and such a file could run code, so it is "
            "not opened; save its state dict again with the program that made it"
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # of a damaged or foreign archive, anything
        raise ValueError(f"{path}: truncated, damaged, or not a file of torch.save") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file that holds nothing else.

    Raises:
        ValueError: the file is damaged or of another format.
    """
    if path.suffix != ".safetensors":
        found = read_torch(path)
        if not (isinstance(found, dict) and found and all(isinstance(v, Tensor) for v in found.values())):
            raise ValueError(f"{path}: expected a state dict, tensors by name")
        return found
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated, damaged, or not a .safetensors file ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A configuration in JSON.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; a model of diffusers has it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found
