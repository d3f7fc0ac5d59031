"""Files behind an address (http, s3, gs, ...): fetched with retries, checked, and kept in the cache folder."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec
from fsspec.core import url_to_fs

from diffusion.data.facts import FACTS, parsed
from diffusion.data.files import DataNotFound
from diffusion.support.files import atomic, digest
from diffusion.support.lock import lock
from diffusion.support.paths import cache_root

TRIES = 5
PAUSE = 1.0  # seconds before the second try; it doubles with each
CONNECT, SILENCE = 20, 60  # seconds after which a connection, and a read, over http counts as dead
POLL = 0.02  # seconds between looks at a file that another process fetches
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
PART = ".part"  # suffix of a file that is being fetched


def is_address(text: str) -> bool:
    """Whether a text is an address rather than a path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE) is not None


class Address:
    """A folder behind an address, of any kind that fsspec knows.

    Args:
        url: of the folder, such as https://host/photos or s3://bucket/photos.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path, in letters, digits, - and _; "data" if there is none."""
        return re.sub(r"[^\w-]", "_", PurePosixPath(urlsplit(self.url).path).name) or "data"

    def fetch(self, file: str, path: Path, tries: int = TRIES) -> None:
        """Write a file of the folder to a local path; dead connections are tried again, with growing pauses.

        Raises:
            DataNotFound: the folder does not have the file.
            ConnectionError: it could not be fetched.
            ImportError: a package for this kind of address is missing.
            OSError: it could not be written.
        """
        whole = f"{self.url}/{file}"
        for k in range(tries):
            try:
                system, remote = url_to_fs(whole, **self._options())
                system.get_file(remote, str(path))
                return
            except FileNotFoundError as error:
                if not path.parent.is_dir():
                    raise
                raise DataNotFound(
                    f"{whole}: no such file; check the address, or copy the whole prepared folder there again"
                ) from error
            except ImportError as error:
                kind = self.url.partition(":")[0]
                package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}.get(kind, "its package")
                raise ImportError(f"{self.url}: {kind}:// needs {package}: pip install {package} ({error})") from error
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise
                unknown = isinstance(error, ValueError) and "Protocol not known" in str(error)
                if unknown or k == tries - 1 or getattr(error, "status", 500) in (400, 401, 403, 410):
                    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                    raise ConnectionError(
                        f"{whole}: cannot be fetched ({reason}; tries: {k + 1}); check the address, the rights and the "
                        "connection; `--resume auto` continues a run"
                    ) from error
            time.sleep(PAUSE * 2**k)

    def _options(self) -> dict:
        """Options of the file system, besides those in fsspec's own configuration."""
        if urlsplit(self.url).scheme.lower() not in ("http", "https"):
            return {}
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
        given = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        return {"client_kwargs": {"trust_env": True, "timeout": timeout} | given}


def local(address: Address) -> Path:
    """The folder in the cache with the small files of a prepared folder; those missing are fetched.

    Its name depends on the address and on dataset.json, so another data set at the same address has another folder.

    Raises:
        DataNotFound, ConnectionError, ImportError: see `Address.fetch`.
        ValueError: dataset.json is damaged, or of another format.
    """
    root = cache_root() / "remote"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as temporary:
        address.fetch(FACTS, Path(temporary) / FACTS, tries=3)
        text = (Path(temporary) / FACTS).read_bytes()
    facts = parsed(text, f"{address}/{FACTS}")
    for shard in facts["shards"]:
        parts = PurePosixPath(shard["file"]).parts
        if (
            len(parts) != 2
            or parts[0] != "shards"
            or ".." in parts
            or not re.fullmatch(r"[0-9a-f]{64}", shard["sha256"])
        ):
            raise ValueError(f"{address}/{FACTS}: damaged (shard {shard}); prepare the folder again")
    key = hashlib.sha256(address.url.encode() + b"\n" + text).hexdigest()[:16]
    folder = root / f"{address.name}-{key}"
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    wanted = ["rows.npy", "split.npy", *(["labels.npy"] * bool(facts["classes"]))]
    for name in [*wanted, *(["targets.npy"] * bool(facts["targets"]))]:
        small(address, folder, name)
    if not (folder / FACTS).is_file():
        with atomic(folder / FACTS) as temporary:
            temporary.write_bytes(text)
    return folder


def small(address: Address, folder: Path, name: str) -> None:
    """Fetch a small file into a local folder, unless it is there.

    Raises:
        DataNotFound, ConnectionError, OSError: see `Address.fetch`.
    """
    if not (folder / name).is_file():
        with atomic(folder / name) as temporary:
            address.fetch(name, temporary)


def keep(address: Address, file: str, sha256: str, path: Path) -> None:
    """Fetch a file of known hash to a local path, unless it is there; one process at a time does.

    At every moment there is either no file at the path or the whole one. A file of another hash is fetched again, once.

    Raises:
        ValueError: it has another hash again.
        DataNotFound, ConnectionError, OSError: see `Address.fetch`.
    """
    part = path.with_name(path.name + PART)
    while not path.exists():
        with open(part, "ab") as held:  # without truncation: another process may be writing
            if not lock(held.fileno()):
                time.sleep(POLL)
                continue
            if not same(held.fileno(), part):  # meanwhile renamed or removed
                continue
            try:
                found = ""
                for _ in range(2):
                    address.fetch(file, part)
                    if (found := digest(part)) == sha256:
                        break
                    os.truncate(part, 0)
                else:
                    raise ValueError(
                        f"{address}/{file}: sha256 {found[:16]}..., wanted {sha256[:16]}..., twice: the file at the "
                        "address is altered or damaged; copy the prepared folder there again"
                    )
                os.fsync(held.fileno())
                os.replace(part, path)
            except BaseException as error:
                part.unlink(missing_ok=True)
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise OSError(
                        f"{path.parent}: no space left for {file}; choose a smaller --data.window or --data.disk, or "
                        "another folder with $DIFFUSION_CACHE",
                    ) from error
                raise


def evict(folder: Path, room: int, own: set[str]) -> None:
    """Remove the least recently used files of a folder until the others take at most `room` bytes.

    Files that a process has locked remain, as do those named in `own`, which do not count.
    """
    found = []
    for entry in os.scandir(folder):
        try:
            facts = entry.stat()
        except FileNotFoundError:
            continue
        if entry.name not in own:
            found.append((facts.st_mtime_ns, facts.st_size, Path(entry.path)))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= room:
            return
        try:
            with open(path, "rb+") as file:
                if not lock(file.fileno()):
                    continue
                if same(file.fileno(), path):
                    path.unlink()
        except FileNotFoundError:  # another process was faster
            pass
        except OSError:  # it stays
            continue
        total -= size


def same(handle: int, path: Path) -> bool:
    """Whether a path is that of an open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
