"""PNG files of 16 bits per channel, which Pillow writes for one channel only."""

import struct
import zlib
from pathlib import Path

import numpy as np

TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> colour type: grey, grey and alpha, RGB, RGBA


def save_deep(image: np.ndarray, path: str | Path) -> None:
    """Write (H, W, 1 .. 4) uint16 as a PNG, losslessly. Source: the PNG specification, ISO/IEC 15948.

    Raises:
        ValueError: another type or number of channels.
    """
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] not in TYPES:
        raise ValueError(f"{path}: a 16-bit PNG is uint16 (H, W, 1 .. 4), got {image.dtype} {image.shape}")
    height, width, channels = image.shape
    rows = np.ascontiguousarray(image, dtype=">u2").reshape(height, -1).view(np.uint8)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # each begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 16, TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
