"""Folders as sources: every file at any depth, each listed once, loops of links included."""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from diffusion.preparing.items import natural

IMAGES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".ppm",
    ".pgm", ".pnm", ".mpo",
}  # fmt: skip
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".he5")
BATCH = r"(train_data_batch_\d+|val_data|data_batch_\d+|test_batch|train|test)"  # pickles of ImageNet-64 and CIFAR


class Entry(NamedTuple):
    """A file of a folder or an archive: its name within it, its place, its size, and why it cannot be read."""

    name: str
    place: tuple
    bytes: int
    problem: str | None = None


def suffix(name: str) -> str:
    """The suffix of a name in lower case, with its dot; empty if there is none."""
    base = name.rpartition("/")[2]
    dot = base.rfind(".")
    return base[dot:].lower() if dot > 0 else ""


def stem(name: str) -> str:
    """A name without its suffix."""
    return name[: len(name) - len(suffix(name))]


def container(name: str) -> bool:
    """Whether a file may hold several images, by its name."""
    lower = name.lower()
    return lower.endswith((".zip", ".parquet", *TARS, *ARRAYS)) or bool(re.fullmatch(BATCH, name.rpartition("/")[2]))


def walk(root: Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The files below a folder in canonical order, and what was left out as (name, reason).

    Links to files count as files. A folder is visited once, whichever links lead to it, and under its own name if
    that lies below the root.
    """
    found, skipped, seen, links = [], [], set(), []

    def visit(folder: str, prefix: str) -> None:
        try:
            facts = os.stat(folder)
            if (facts.st_dev, facts.st_ino) in seen:
                skipped.append((prefix.rstrip("/"), "a link to a folder that is listed already"))
                return
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda e: natural(e.name))
        except OSError as error:
            found.append(Entry(prefix.rstrip("/") or ".", ("file", folder), -1, f"cannot be listed: {error.strerror}"))
            return
        for entry in inside:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                visit(entry.path, name + "/")
            elif entry.is_symlink() and _is_folder(entry.path):
                links.append((entry.path, name + "/"))
            else:
                found.append(_file(entry.path, name))

    visit(str(root), "")
    while links:
        links.sort(key=lambda link: natural(link[1]))
        visit(*links.pop(0))
    return sorted(found, key=lambda e: natural(e.name)), sorted(skipped, key=lambda s: natural(s[0]))


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def _file(path: str, name: str) -> Entry:
    """The entry of a file, which a fault of the file system turns into a problem."""
    try:
        facts = os.stat(path)
    except OSError as error:
        return Entry(name, ("file", path), -1, f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(facts.st_mode):
        return Entry(name, ("file", path), -1, "not a regular file")
    return Entry(name, ("file", path), facts.st_size)
