"""Frames of films: selected from a walk, and placed side by side."""

from collections.abc import Sequence

import numpy as np


def spread(n: int, frames: int) -> Sequence[int]:
    """The indices of n steps to show in a given number of frames: evenly spaced, sorted, unique, with the last."""
    return sorted({round(k * (n - 1) / max(frames - 1, 1)) for k in range(frames)} | {n - 1}) if n else []


def abreast(films: Sequence[Sequence[np.ndarray]], pad: int = 8) -> list[np.ndarray]:
    """Films of one height side by side, shorter ones slowed down to the longest: frames (H, W, C) uint8."""
    n, frames = max(map(len, films)), []
    gap = np.full((films[0][0].shape[0], pad, films[0][0].shape[2]), 255, np.uint8)
    for k in range(n):
        now = [film[round(k * (len(film) - 1) / max(n - 1, 1))] for film in films]
        frames.append(np.concatenate([part for frame in now for part in (gap, frame)][1:], axis=1))
    return frames
