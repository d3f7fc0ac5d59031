"""Published models by name: the entries of zoo.yaml, and where their files are. Nothing is downloaded here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from diffusion.support.paths import PACKAGE, cache_root
from diffusion.support.specs import suggest

LISTED = PACKAGE / "zoo.yaml"
PREFIX = "zoo:"
OWN = "litdiffusion"  # the importer of this project's own checkpoints


class File(NamedTuple):
    """A file of a published model.

    Attributes:
        path: below the model's folder; its suffix is that of the file.
        address: where it is published; empty for a file of this package.
        sha256: of its contents, in hexadecimal.
        size: in bytes.
    """

    path: str
    sha256: str
    size: int
    address: str = ""


class Entry(NamedTuple):
    """A published model.

    Attributes:
        name: after "zoo:".
        about: what it generates, in one line.
        licence: of the weights.
        importer: as for `diffusion import --from`; "litdiffusion" for a checkpoint of this project.
        files: all of the model's files; the first is given to the importer, or its folder if there are several.
        flags: of the importer.
        data: its data set by class name, or "".
        figures: reference figures by name.
    """

    name: str
    about: str
    licence: str
    importer: str
    files: tuple[File, ...]
    flags: Mapping[str, Any] = {}
    data: str = ""
    figures: Mapping[str, Any] = {}

    @property
    def bundled(self) -> bool:
        """Whether the package includes the model."""
        return not any(file.address for file in self.files)


def entries(listed: Path = LISTED) -> dict[str, Entry]:
    """The published models by name.

    Raises:
        ValueError: the list has an entry with unknown or missing fields.
    """
    found = yaml.safe_load(listed.read_text(encoding="utf-8"))
    try:
        return {
            name: Entry(name, files=tuple(File(**file) for file in fields.pop("files")), **fields)
            for name, fields in found.items()
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{listed}: {error}") from error


def entry(name: str, listed: Path = LISTED) -> Entry:
    """A published model.

    Raises:
        ValueError: there is none of this name.
    """
    known = entries(listed)
    if name not in known:
        raise ValueError(f"zoo: there is no model {name!r}{suggest(name, list(known))}; there are: {', '.join(known)}")
    return known[name]


def folder(name: str) -> Path:
    """Where a downloaded model's run is kept: in the cache."""
    return cache_root() / "zoo" / name


def kept(run: Path) -> Path:
    """Where figures of a run are written: beside it, or in the cache for a model that this package includes."""
    return folder(run.name) if run.resolve().is_relative_to(PACKAGE) else run


def located(path: str | Path, listed: Path = LISTED) -> Path:
    """The path of a run or file; "zoo:NAME" becomes the path of that model.

    Raises:
        ValueError: there is no such model.
        FileNotFoundError: it has not been downloaded yet.
    """
    if not str(path).startswith(PREFIX):
        return Path(path).expanduser()
    found = entry(str(path).removeprefix(PREFIX), listed)
    if found.bundled:
        return PACKAGE / found.files[0].path
    if not (run := folder(found.name)).is_dir():
        raise FileNotFoundError(f"{path}: not downloaded yet; download it with: diffusion pull {found.name}")
    return run
