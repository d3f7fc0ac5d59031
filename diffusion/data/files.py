"""Files on disk: the error for missing data, atomic downloads, checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


class DataNotFound(FileNotFoundError):
    """The files of a data set are neither on disk nor available for download."""


def not_found(name: str, folder: Path, files: Sequence[str], tried: str, cause: object = None) -> DataNotFound:
    """The one-line error for missing files.

    Args:
        name: of the data set.
        folder: its root.
        files: paths below `folder` that would be read.
        tried: the attempt to obtain them, such as "tried to download from torchvision's mirrors".
        cause: the error of that attempt, if any.
    """
    reason = f" ({' '.join(str(cause).split())[:200]})" if cause is not None else ""
    return DataNotFound(
        f"{name}: no files under {folder}; {tried}{reason}; put {', '.join(files)} in {folder} (or name another folder "
        "with root or $DIFFUSION_DATA), or use the data sets digits and sprites, which need no files"
    )


def fetch(folder: Path, download: Callable[[Path], None], keep: Sequence[str]) -> None:
    """Run `download(temporary folder)` inside `folder`, then move the paths `keep` from there into place atomically.

    Args:
        folder: root of the data; created if necessary, and removed again if it stays empty.
        download: writes files into the given folder.
        keep: files or folders below it to move to the same place below `folder`.

    Raises:
        RuntimeError, OSError: raised by the download; its files are removed.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".download-", dir=folder))
    try:
        download(temporary)
        for path in keep:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():  # a damaged older copy; os.replace cannot replace a folder that is not empty
                shutil.rmtree(target)
            os.replace(temporary / path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()


def check_md5(path: Path, data: bytes, wanted: str) -> bytes:
    """Return `data` if its md5 is `wanted`.

    Raises:
        ValueError: that names the file.
    """
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != wanted:
        raise ValueError(
            f"{path}: md5 {md5} of {len(data)} unpacked bytes, wanted {wanted}: the file is truncated or altered; "
            "delete it and download it again"
        )
    return data
