"""onnxruntime-web from the npm registry: one version, pinned by its hash, and kept in the cache folder."""

import hashlib
import io
import os
import re
import tarfile
from base64 import b64encode
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from diffusion.support.files import atomic
from diffusion.support.paths import cache_root

REGISTRY = "https://registry.npmjs.org/"
SECONDS = 60  # without an answer
BLOCK = 2**18


class Package(NamedTuple):
    """A version of a package: its name, version, bytes, and the hash by which npm knows it."""

    name: str
    version: str
    size: int
    integrity: str

    @property
    def file(self) -> str:
        """The name of its archive."""
        return f"{self.name}-{self.version}.tgz"

    def matches(self, data: bytes) -> bool:
        """Whether these are its bytes."""
        return len(data) == self.size and self.integrity == integrity(data)


ONNXRUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    33106585,
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)


def integrity(data: bytes) -> str:
    """The SHA-512 as npm writes it."""
    return f"sha512-{b64encode(hashlib.sha512(data).digest()).decode()}"


def registry() -> str:
    """The address of the npm registry: $NPM_CONFIG_REGISTRY, else that of the user's .npmrc, else the public one."""
    environment = {name.lower(): value for name, value in os.environ.items() if value}
    chosen = environment.get("npm_config_registry")
    if not chosen:
        file = Path(environment.get("npm_config_userconfig", "~/.npmrc")).expanduser()
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        found = [line.partition("=")[2].strip().strip("\"'") for line in lines if re.match(r"\s*registry\s*=", line)]
        chosen = os.path.expandvars(found[-1]) if found else REGISTRY
    return f"{chosen.rstrip('/')}/"


def archive(package: Package) -> bytes:
    """The archive of a package: from the cache folder, else downloaded once and kept there.

    Raises:
        ConnectionError: it is not in the cache folder and cannot be downloaded; the message says where to put it.
        ValueError: the registry's file is another one than the pinned.
    """
    kept = cache_root() / "npm" / package.file
    if kept.is_file() and package.matches(data := kept.read_bytes()):
        return data
    damaged = "; the file there is damaged or another version" if kept.is_file() else ""
    address = f"{registry()}{package.name}/-/{package.file}"
    try:
        data = downloaded(address, package)
    except (OSError, HTTPException, ValueError) as error:
        # A URL with a password is shown without it.
        shown = re.sub(r"//[^/@]*@", "//", address)
        reason = " ".join(str(getattr(error, "reason", "") or error).split())[:120]
        raise ConnectionError(
            f"the page needs {package.name} {package.version}, and {shown} cannot be downloaded ({reason}); download "
            f"{REGISTRY}{package.name}/-/{package.file} elsewhere and put it at {kept}{damaged}, or set "
            "NPM_CONFIG_REGISTRY to a registry in reach"
        ) from error
    if not package.matches(data):
        shown = re.sub(r"//[^/@]*@", "//", address)
        raise ValueError(
            f"{shown}: wanted {package.size:,} bytes of {package.integrity[:19]}..., got {len(data):,} of "
            f"{integrity(data)[:19]}...; nothing was kept; check the registry (NPM_CONFIG_REGISTRY)"
        )
    with atomic(kept) as temporary:
        temporary.write_bytes(data)
    return data


def downloaded(address: str, package: Package) -> bytes:
    """The bytes at an address, at most one more than the package has."""
    if not address.startswith(("http://", "https://")):
        raise ValueError("not an address of http or https")
    parts, left = [], package.size + 1
    with (
        urlopen(Request(address, headers={"User-Agent": "litdiffusion"}), timeout=SECONDS) as answer,
        tqdm(total=package.size, desc=package.file, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while left and (part := answer.read(min(BLOCK, left))):
            parts.append(part)
            left -= len(part)
            bar.update(len(part))
    return b"".join(parts)


def members(data: bytes, *names: str) -> list[bytes]:
    """Files of an npm archive, by their paths in the package.

    Raises:
        ValueError: one is missing.
    """
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|gz") as opened:
        for entry in opened:
            name = entry.name.removeprefix("package/")
            if name in names and (file := opened.extractfile(entry)):
                found[name] = file.read()
            if len(found) == len(names):
                break
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{missing[0]} is missing in the package")
    return [found[name] for name in names]
