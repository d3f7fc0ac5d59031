"""`diffusion.pull`: a published model is downloaded, checked and imported."""

import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from tqdm.auto import tqdm

from diffusion import __version__
from diffusion.exchange.importing.run import import_run
from diffusion.support import zoo
from diffusion.support.files import digest
from diffusion.support.paths import cache_root

BLOCK = 2**20
SECONDS = 30  # without an answer


def pull(
    name: str,
    out: str | Path | None = None,
    *,
    listed: Path = zoo.LISTED,
    progress: bool = False,
    tell: Callable[[str], None] = print,
) -> Path:
    """Download a published model, check it, import it, and return its run; "zoo:NAME" then refers to it.

    A download that broke off is continued. Files that were put into its place by hand are used.

    Args:
        out: the run directory to write; by default one in the cache, where "zoo:NAME" is looked up.
        listed: the list of models.
        progress: show a progress bar.
        tell: receives notes.
    Raises:
        ValueError: there is no such model, or a file is not the published one.
        ConnectionError: the file cannot be downloaded; the message says where to put it.
    """
    entry = zoo.entry(name, listed)
    if entry.bundled:
        tell(f"{name}: included in this package; use it as zoo:{name}")
        return zoo.located(f"zoo:{name}", listed)
    run = Path(out).expanduser() if out else zoo.folder(name)
    if run.is_dir() and any(run.iterdir()):
        tell(f"{name}: is there already")
        return run
    folder = cache_root() / "zoo" / ".downloads" / name
    for file in entry.files:
        fetch(file, folder / file.path, progress)
    source = folder if len(entry.files) > 1 else folder / entry.files[0].path
    if entry.importer == zoo.OWN:
        run.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, run, dirs_exist_ok=True)
    else:
        import_run(source, run, source=entry.importer, flags=entry.flags, data=entry.data, tell=tell)
    shutil.rmtree(folder)
    tell(f"{name}: {entry.about}; licence {entry.licence}")
    return run


def fetch(file: zoo.File, path: Path, progress: bool = False) -> None:
    """Download a file to a path unless it is there, and check it.

    Raises:
        ValueError: its hash is another one; a downloaded file is removed then, one put there by hand is kept.
        ConnectionError: the download failed; what has arrived is kept.
    """
    if path.is_file():
        check(file, path, "replace it, or remove it to download it")
        return
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    try:
        while (have := part.stat().st_size if part.exists() else 0) < file.size or not file.size:
            download(file, part, have, progress)
            if not part.stat().st_size > have:
                raise ConnectionError("the server sent nothing")
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        reason = getattr(error, "reason", None) or error
        have = part.stat().st_size if part.exists() else 0
        kept = f"; {have:,} of {file.size:,} bytes are kept, repeat the command to continue" if have else ""
        raise ConnectionError(
            f"cannot download {file.address} ({reason}){kept}; or download it elsewhere and save it as {path}"
        ) from error
    try:
        check(file, part, "it was removed; repeat the command")
    except ValueError:
        part.unlink()
        raise
    part.replace(path)


def download(file: zoo.File, part: Path, have: int, progress: bool) -> None:
    """Append to a partial file, or begin anew where the server does not continue."""
    headers = {"User-Agent": f"litdiffusion/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(file.address, headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        continued = answer.status == 206
        every = 0.2 if sys.stderr.isatty() else 15
        bar = tqdm(
            total=file.size, initial=have if continued else 0, desc=Path(file.path).name, unit="B", unit_scale=True,
            mininterval=every, disable=not progress,
        )  # fmt: skip
        with bar, open(part, "ab" if continued else "wb") as target:
            while block := answer.read(BLOCK):
                target.write(block)
                bar.update(len(block))
                if target.tell() > file.size:
                    raise ValueError(f"{file.address}: is larger than the {file.size:,} bytes of the published file")


def check(file: zoo.File, path: Path, remedy: str) -> None:
    """Compare a file's size and hash with the published ones.

    Raises:
        ValueError: they differ.
    """
    found = digest(path)
    if found != file.sha256:
        raise ValueError(
            f"{path}: not the published file: expected sha256 {file.sha256[:16]}... and {file.size:,} bytes, got "
            f"{found[:16]}... and {path.stat().st_size:,}; {remedy}"
        )
