"""A checksum inside a checkpoint file, which travels with the file and detects a single flipped byte.

torch.save writes a zip archive, which may end in a comment. Ours is "sha256:" followed by 64 hexadecimal digits: the
hash of every preceding byte. Any reader of zip archives, torch.load included, accepts the file unchanged.
"""

import hashlib
import struct
import zipfile
from pathlib import Path

END = b"PK\x05\x06"  # the zip archive's last record: signature, 16 bytes, length of the comment
RECORD = 22
MARK = b"sha256:"
COMMENT = len(MARK) + 64


def seal(path: Path) -> None:
    """Append the checksum to a file that torch.save has just written."""
    with open(path, "r+b") as file:
        file.seek(-2, 2)
        file.write(struct.pack("<H", COMMENT) + MARK)
        file.write(_digest(path, file.tell(), file))


def problem(path: Path) -> str | None:
    """The defect of a file that should be a complete, unchanged checkpoint; None if there is none.

    Files that were written before the seal was introduced are checked by the CRC-32 of each record, which torch.load
    ignores.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - RECORD - COMMENT))
        tail = file.read()
        plain = tail[-RECORD:]
        if tail.startswith(END) and tail[RECORD - 2 :].startswith(struct.pack("<H", COMMENT) + MARK):
            if _digest(path, size - 64, file) == tail[-64:]:
                return None
            return "damaged: its contents do not match its checksum"
    if not (plain.startswith(END) and plain.endswith(b"\0\0")):
        return f"truncated, damaged, or not a checkpoint ({size:,} bytes)"
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                return f"damaged: the checksum of its record {bad} does not match"
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError, KeyError):
        return "damaged: its table of contents cannot be read"
    return None


def identity(path: Path) -> str:
    """What tells a checkpoint from any other, in words: the first 16 digits of its checksum, else its size."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - COMMENT))
        tail = file.read()
    return f"sha256 {tail[len(MARK) :][:16].decode()}" if tail.startswith(MARK) else f"{path.stat().st_size:,} bytes"


def _digest(path: Path, count: int, file) -> bytes:
    """SHA-256 of a file's first `count` bytes, in hexadecimal; the position of `file` is unchanged."""
    file.flush()
    found = hashlib.sha256()
    with open(path, "rb") as reader:
        while count and (block := reader.read(min(count, 2**20))):
            found.update(block)
            count -= len(block)
    return found.hexdigest().encode()
