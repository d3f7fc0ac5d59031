"""dataset.json: the facts of a prepared folder, and where the folder is."""

from __future__ import annotations

import json
from pathlib import Path

from diffusion.data.files import DataNotFound
from diffusion.support.scaling import WORDS

FACTS = "dataset.json"
FORMAT = 1


def found(folder: Path, root: Path) -> Path:
    """The complete prepared folder of a path, or of a path relative to the root.

    Raises:
        DataNotFound: there is none.
    """
    for path in (folder, root / folder):
        if (path / FACTS).is_file():
            return path
    if (folder / ".work").is_dir():
        raise DataNotFound(f"{folder}: it is not prepared completely; run the same `diffusion prepare` again")
    what = "a folder without dataset.json" if folder.is_dir() else "no such folder"
    raise DataNotFound(f"{folder}: {what}; write it with: diffusion prepare SOURCE --out {folder}")


def read_facts(folder: Path) -> dict:
    """The facts of a prepared folder, its dataset.json.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    file = folder / FACTS
    return parsed(file.read_bytes(), str(file))


def parsed(text: bytes, file: str) -> dict:
    """The facts in a dataset.json that was read from a file or an address, which is named in errors.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    try:
        facts = json.loads(text)
        known = facts["format"] == FORMAT
        sound = known and len(facts["shape"]) == 3 and facts["dtype"] in WORDS
        sound = sound and {"classes", "targets", "images", "shards", "statistics", "name"} <= facts.keys()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({error!r}); prepare the folder again") from error
    if not known:
        raise ValueError(f"{file}: format {facts['format']!r}, wanted {FORMAT}; prepare the folder with this version")
    if not sound:
        raise ValueError(f"{file}: damaged; prepare the folder again")
    return facts
