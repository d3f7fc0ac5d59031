"""Exported models, read as checkpoints: model.safetensors with model.json, and model.onnx. No code is executed.

model.json has the plain specs of the model and the SHA-256 of the weights' file:

    {"format": "litdiffusion", "version": 1, "sha256": ..., "weights": "ema", "global_step": ..., "epoch": ...,
     "hyper_parameters": {"net": {"class_path": ..., "init_args": {...}}, "schedule": ..., ...}}

An ONNX file has the same description in its metadata under KEY, and ends in a checksum. A `ModelProto` is a sequence
of fields (a tag, a length, the bytes); metadata are read from it without the onnx package.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORMAT, VERSION = "litdiffusion", 1
KEY = "litdiffusion"  # of the description among an ONNX file's metadata
CODEC = "codec."  # before the names of a codec's weights
NET = "diffusion.nets.onnx_net.OnnxNet"
SUFFIXES = (".safetensors", ".onnx")
PARTS = ("net", "schedule", "target", "sampler", "guidance", "clamp", "scaling")  # of a description, each a mapping
MOST = 2**24  # bytes of a description
METADATA = 14  # number of ModelProto's field metadata_props; each entry has the fields 1, key, and 2, value
AGAIN = "export it again: diffusion export RUN --to PATH"


def read_released(path: Path) -> dict[str, Any]:
    """An exported model in the form of a checkpoint: hyper_parameters, state_dict, global_step, epoch, weights (which).

    The network of an ONNX file is an `OnnxNet` of its bytes, and its state_dict is empty.

    Raises:
        ValueError: the file is damaged, incomplete, from another program, or of a later version.
        ImportError: safetensors is not installed.
    """
    return _native(path) if path.suffix == ".safetensors" else _onnx(path)


def beside(path: Path) -> Path:
    """The description's file of a .safetensors file."""
    return path.with_suffix(".json")


def described(text: bytes | str, source: Path) -> dict[str, Any]:
    """A description, validated as far as its plain types.

    Raises:
        ValueError: it is not one of this project.
    """
    try:
        found = json.loads(text) if len(text) <= MOST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{source}: not a description of a model of this project; {AGAIN}")
    if found.get("version") != VERSION:
        raise ValueError(
            f"{source}: format version {found.get('version')!r}, but this program reads version {VERSION}; upgrade it"
        )
    parts = found.get("hyper_parameters")
    specs = isinstance(parts, dict) and all(isinstance(parts.get(name), dict) for name in PARTS)
    if not specs or not _sizes(parts.get("shape")) or not _words(parts.get("class_names")):
        raise ValueError(f"{source}: wanted hyper_parameters {', '.join(PARTS)}, shape and class_names; {AGAIN}")
    if not all(type(n) is int for n in (parts.get("seed"), found.get("global_step"), found.get("epoch"))):
        raise ValueError(f"{source}: wanted integers for seed, global_step and epoch; {AGAIN}")
    return found


def _sizes(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)


def _words(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


# --- safetensors ------------------------------------------------------------------------------------------


def _native(path: Path) -> dict[str, Any]:
    from diffusion.support.extras import extra

    tensors = extra("safetensors.torch", "export", f"{path.name}")
    file, data = beside(path), path.read_bytes()
    if not file.is_file():
        raise ValueError(f"{path}: {file.name} is missing beside it, which describes the model; copy both files")
    with open(file, "rb") as opened:
        found = described(opened.read(MOST + 1), file)
    if hashlib.sha256(data).hexdigest() != found.get("sha256"):
        raise ValueError(f"{path}: damaged, truncated, or not the file that {file.name} describes; copy both again")
    try:
        state = tensors.load(data)
    except Exception as error:  # SafetensorError, or of a hostile header anything
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
    named = {name if name.startswith(CODEC) else f"denoiser.{name}": value for name, value in state.items()}
    return found | {"state_dict": named}


# --- ONNX -------------------------------------------------------------------------------------------------


def _onnx(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    text = metadata(data).get(KEY)
    if text is None:
        raise ValueError(f"{path}: not an ONNX file of this project, or truncated; {AGAIN}")
    if not intact(data):
        raise ValueError(f"{path}: damaged: its contents do not match its checksum; copy it again")
    found = described(text, path)
    net = {"class_path": NET, "init_args": {"graph": data, "facts": found.get("facts") or {}}}
    return found | {"state_dict": {}, "hyper_parameters": found["hyper_parameters"] | {"net": net}}


def metadata(data: bytes) -> dict[str, bytes]:
    """The metadata of an ONNX file; {} if it is not one, or truncated."""
    try:
        entries = [dict(_fields(value)) for number, value in _fields(data) if number == METADATA]
        return {entry[1].decode(): entry[2] for entry in entries if {1, 2} <= entry.keys()}
    except (IndexError, ValueError):
        return {}


def with_metadata(data: bytes, more: dict[str, str]) -> bytes:
    """An ONNX file with more metadata, followed by the SHA-256 of all that as the last entry.

    A repeated field of a protocol buffer may stand anywhere, so entries can be appended.
    """
    data += b"".join(_entry(key, value) for key, value in more.items())
    return data + _entry("sha256", hashlib.sha256(data).hexdigest())


def intact(data: bytes) -> bool:
    """Whether an ONNX file ends in the checksum of its other bytes."""
    end = len(_entry("sha256", "0" * 64))
    return data[-end:] == _entry("sha256", hashlib.sha256(data[:-end]).hexdigest())


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The numbers and values of a message's fields; numbers (wire type 0) have an empty value.

    Raises:
        ValueError, IndexError: not a protocol buffer of these two wire types, or truncated.
    """
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        size, at = _number(data, at)
        if tag & 7 == 2:
            if at + size > len(data):
                raise ValueError("truncated")
            yield tag >> 3, data[at : at + size]
            at += size
        elif tag & 7 == 0:
            yield tag >> 3, b""
        else:
            raise ValueError("unexpected wire type")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("not a number")


def _entry(key: str, value: str) -> bytes:
    """An entry of metadata_props."""
    body = b"".join(_tagged(k, text.encode()) for k, text in ((1, key), (2, value)))
    return _tagged(METADATA, body)


def _tagged(field: int, body: bytes) -> bytes:
    size, digits = len(body), b""
    while size > 127:
        digits, size = digits + bytes([size & 127 | 128]), size >> 7
    return bytes([field << 3 | 2]) + digits + bytes([size]) + body
