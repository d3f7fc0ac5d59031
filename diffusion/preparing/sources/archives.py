"""Archives as sources: zip and tar are read in place, a compressed tar and an array in an archive are unpacked once."""

import bz2
import gzip
import hashlib
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from diffusion.preparing.items import natural
from diffusion.preparing.sources.folders import Entry
from diffusion.support.files import atomic

OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, RuntimeError, lzma.LZMAError, zlib.error
)  # fmt: skip


def zip_entries(path: Path) -> list[Entry]:
    """The files in a zip archive, in canonical order; two of one name are two files.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGE as error:
        raise ValueError(f"{path}: no zip archive, or a damaged one: {error}") from error
    found = [
        Entry(m.filename, ("zip", str(path), k), m.file_size, "encrypted" if m.flag_bits & 1 else None)
        for k, m in enumerate(members)
        if not m.is_dir()
    ]
    return sorted(found, key=lambda e: natural(e.name))


def tar_entries(path: Path, work: Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The files in a tar archive in canonical order, and what was left out as (name, reason).

    A compressed archive is unpacked to a plain one in `work` first.

    Raises:
        ValueError: it cannot be read.
    """
    plain = _plain_tar(path, work)
    found, skipped, places = [], [], {}
    try:
        with tarfile.open(plain, "r:") as archive:
            for member in archive:
                name, place = member.name.removeprefix("./"), ("part", str(plain), member.offset_data, member.size)
                if member.isdir():
                    continue
                if member.islnk() and member.linkname.removeprefix("./") in places:
                    place = places[member.linkname.removeprefix("./")]
                elif not member.isreg() or member.issparse():
                    skipped.append((name, "a link or no regular file in an archive"))
                    continue
                places[name] = place
                found.append(Entry(name, place, place[3]))
    except DAMAGE as error:
        if not found:
            raise ValueError(f"{path}: no tar archive, or a damaged one: {error}") from error
        found.append(
            Entry(f"{found[-1].name}~", ("part", str(plain), 0, 0), -1, f"the archive is damaged here: {error}")
        )
    return sorted(found, key=lambda e: natural(e.name)), skipped


def _plain_tar(path: Path, work: Path) -> Path:
    """The archive itself, or its unpacked copy."""
    with open(path, "rb") as file:
        first = file.read(8)
    opener = next((o for sign, o in OPENERS if first.startswith(sign)), None)
    return path if opener is None else unpacked(path, ".tar", work, lambda: opener(path))


def unpacked(path: Path, ending: str, work: Path, source: Callable[[], BinaryIO]) -> Path:
    """A file in `work` with the contents of a stream, written unless it is there.

    Args:
        path: what the stream is from; with its size it names the file.
        ending: of the file's name; different for each stream of one path.
        source: opens the stream.
    Raises:
        ValueError: the stream is damaged.
    """
    name = hashlib.sha256(f"{path.name} {path.stat().st_size} {ending}".encode(errors="surrogateescape")).hexdigest()
    target = work / "unpacked" / f"{name[:16]}{Path(ending).suffix}"
    if not target.exists():
        with atomic(target) as temporary:
            try:
                with source() as stream, open(temporary, "wb") as file:
                    shutil.copyfileobj(stream, file, 2**20)
            except OSError as error:
                if error.errno:  # of the file system; damage has no number
                    raise
                raise ValueError(f"{path}: cannot be unpacked: {error}") from error
            except DAMAGE as error:
                raise ValueError(f"{path}: cannot be unpacked: {error}") from error
    return target
