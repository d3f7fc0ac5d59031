"""What is brought home: results, logs, pictures and weights in at most 8 files of at most 16 MiB."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion.support.files import atomic

FILES, SIZE = 8, 16 * 2**20
RESULTS, LOGS, PICTURES, WEIGHTS = "results.json", "logs.tar.gz", "trainings.tar", "weights.tar"
LOG = 2**18  # bytes of a log that are kept, from its end
KEPT = ("samples/*.png", "samples/*.gif", "samples/*.mp4", "watch*.csv", "watch.png", "config.yaml")  # of a run


def pack(out: Path, work: Path, results: dict[str, Any], size: int = SIZE) -> dict[str, Any]:
    """Write everything again; returns the results with what was left out.

    results.json has the records of the steps, the JSON files that they wrote, and the list of what did not fit.

    Args:
        work: folder of `plan.Processes`.
    """
    out.mkdir(parents=True, exist_ok=True)
    left_out = logs(out / LOGS, sorted(work.glob("*.log")), size)
    left_out += pictures(out / PICTURES, work, runs_in(work), size)
    left_out += weights(out, sorted(work.glob("*/weights/*")), size)
    written = {str(p.relative_to(work)): json.loads(p.read_text()) for p in sorted(work.glob("*/*.json"))}
    whole = results | {"written": written, "left_out": left_out}
    text = json.dumps(whole, indent=1) + "\n"
    if len(text.encode()) > size:
        whole = results | {"written": {}, "left_out": [*left_out, "what the steps wrote: too large"]}
        text = json.dumps(whole, indent=1) + "\n"
    with atomic(out / RESULTS) as temporary:
        temporary.write_text(text)
    return whole


def runs_in(work: Path) -> list[Path]:
    """The runs that the steps made."""
    return sorted(p.parent for p in work.rglob("config.yaml") if p.parent.name.startswith("version_"))


def archived(files: Sequence[tuple[str, bytes]], mode: str = "w") -> bytes:
    """A tar archive of files by name; the same bytes for the same files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def write(path: Path, data: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def logs(path: Path, files: Sequence[Path], size: int) -> list[str]:
    """The ends of the logs, all shortened until they fit."""
    keep = LOG
    while True:
        data = archived([(p.name, p.read_bytes()[-keep:]) for p in files], "w:gz")
        if len(data) <= size or keep <= 1:
            break
        keep //= 2
    write(path, data)
    return [f"{p.name}: all but its last {keep:,} bytes" for p in files if p.stat().st_size > keep]


def pictures(path: Path, work: Path, runs: Sequence[Path], size: int) -> list[str]:
    """Grid, film, record of the machine and configuration of each run, small files first, as far as they fit."""
    found = {p for run in runs for pattern in KEPT for p in run.glob(pattern)}
    taken, used = [], 10240  # tarfile ends an archive at a multiple of this
    left = []
    for file in sorted(found, key=lambda p: (p.stat().st_size, str(p))):
        name, needed = str(file.relative_to(work)), 2048 + -(-file.stat().st_size // 512) * 512
        if used + needed > size:
            left.append(f"{name}: {file.stat().st_size:,} bytes do not fit into {path.name}")
            continue
        used += needed
        taken.append((name, file.read_bytes()))
    write(path, archived(sorted(taken)))
    return left


def weights(out: Path, files: Sequence[Path], size: int) -> list[str]:
    """The exported models as one archive, in parts of `size` bytes, as many as there are files left."""
    for old in out.glob(f"{WEIGHTS}.*"):
        old.unlink()
    if not files:
        return []
    data = archived([(p.name, p.read_bytes()) for p in files])
    parts = [data[k : k + size] for k in range(0, len(data), size)]
    most = FILES - 3  # besides results, logs and pictures
    if len(parts) > most:
        return [f"weights: {len(data):,} bytes, but {most} files of {size:,} are left; train a narrower network"]
    for k, part in enumerate(parts):
        write(out / f"{WEIGHTS}.{k}", part)
    return []


def joined(path: Path, into: Path) -> Path:
    """The exported model that was brought home: a .safetensors file itself, or the folder with the parts.

    Args:
        into: an empty folder, where parts are unpacked.
    Raises:
        FileNotFoundError: there are no parts.
        ValueError: a part is missing, or they hold no model.
    """
    if path.suffix == ".safetensors":
        return path
    parts = sorted((path if path.is_dir() else path.parent).glob(f"{WEIGHTS}.*"), key=lambda p: int(p.suffix[1:]))
    if not parts:
        raise FileNotFoundError(f"{path}: neither a .safetensors file nor a folder with {WEIGHTS}.0")
    into.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in parts))) as archive:
            for entry in archive.getmembers():
                name = Path(entry.name).name
                if entry.isfile() and Path(name).suffix in (".safetensors", ".json"):
                    (into / name).write_bytes(archive.extractfile(entry).read())
    except tarfile.TarError as error:
        raise ValueError(f"{path}: {WEIGHTS}.* is damaged, or a part of it is missing") from error
    found = sorted(into.glob("*.safetensors"))
    if not found:
        raise ValueError(f"{path}: {WEIGHTS}.* holds no .safetensors file")
    return found[0]
