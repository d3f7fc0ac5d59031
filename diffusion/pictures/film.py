"""Films: frames chosen from a walk, put side by side, and written as a GIF."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.pictures.grid import pillow
from diffusion.support.files import atomic


def abreast(films: Sequence[Sequence[np.ndarray]], pad: int = 8) -> list[np.ndarray]:
    """Films of one height side by side, the shorter ones slowed down to the longest: frames (H, W, C) uint8."""
    n, frames = max(map(len, films)), []
    gap = np.full((films[0][0].shape[0], pad, films[0][0].shape[2]), 255, np.uint8)
    for k in range(n):
        now = [film[round(k * (len(film) - 1) / max(n - 1, 1))] for film in films]
        frames.append(np.concatenate([part for frame in now for part in (gap, frame)][1:], axis=1))
    return frames


def save_gif(frames: Iterable[np.ndarray], path: str | Path, fps: float = 15, hold: float = 2.0) -> Path:
    """Write frames (H, W, C) uint8 as an endless GIF with one palette, whole or not at all.

    Args:
        fps: frames a second, in (0, 50]; GIF players slow anything faster down.
        hold: seconds that the last frame stays.
    Raises:
        ValueError: no frames, fps outside (0, 50], or hold < 0.
    """
    check_timing(fps, hold)
    pictures = [pillow(f).convert("RGB" if f.shape[-1] in (3, 4) else "L") for f in frames]
    if not pictures:
        raise ValueError("GIF: there are no frames")
    if pictures[0].mode == "RGB":  # one palette for all, from first, middle and last: no flicker
        sample = [np.asarray(pictures[i]) for i in (0, len(pictures) // 2, -1)]
        palette = Image.fromarray(np.concatenate(sample)).quantize(256, dither=Image.Dither.NONE)
        pictures = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    durations = [round(1000 / fps)] * (len(pictures) - 1) + [round(1000 / fps + 1000 * hold)]
    with atomic(Path(path)) as temporary:
        pictures[0].save(temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return Path(path)


def check_timing(fps: float, hold: float) -> None:
    """Refuse what a GIF cannot do, before the frames are made."""
    if not 0 < fps <= 50 or not 0 <= hold <= 600:
        raise ValueError(f"GIF: fps must lie in (0, 50] and hold in [0, 600] seconds, got {fps} and {hold}")


def spread(n: int, frames: int) -> Sequence[int]:
    """Which of n steps to show in a given number of frames: evenly, always with the last; sorted, no repeats."""
    return sorted({round(k * (n - 1) / max(frames - 1, 1)) for k in range(frames)} | {n - 1}) if n else []
