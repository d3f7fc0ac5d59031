"""Films: frames written as GIF, WebP and APNG by imageio, as MP4 and WebM by PyAV; each is imported when it is needed.

Writers of animated images store consecutive equal frames once. Here every format preserves their total duration, and
APNG, MP4 and WebM also their number.
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffusion.pictures.grid import pillow
from diffusion.support.files import atomic

CODECS = {".mp4": "h264", ".webm": "vp9"}


def save_film(frames: Iterable[np.ndarray], path: str | Path, fps: float = 15, hold: float = 2.0) -> Path:
    """Write frames as a film in the format of the path's suffix, whole or not at all.

    `.gif`, `.webp` and `.png` (APNG) repeat endlessly. WebP and APNG are lossless. A GIF has one palette of 256
    colours for all frames, and grey values are exact. `.mp4` (H.264) and `.webm` (VP9) are yuv420p; an odd width or
    height grows by one pixel, a copy of the edge. GIF and video drop an alpha channel.

    Args:
        frames: (H, W, C) uint8, all of one shape; the first channel is used unless there are 1, 3 or 4.
        fps: frames per second, at most 50 (GIF), 60 (WebP, APNG) or 120 (video).
        hold: additional seconds for which the last frame is shown.
    Raises:
        ValueError: unknown suffix, timing that the format cannot store, no frames, or frames that differ in shape.
        ModuleNotFoundError: `.mp4` or `.webm` without PyAV.
    """
    path = Path(path)
    check_film(path, fps, hold)
    frames = [np.asarray(pillow(f)) for f in frames]
    if not frames:
        raise ValueError("film: no frames; wanted at least one")
    if others := [f.shape for f in frames if f.shape != frames[0].shape]:
        raise ValueError(f"film: frames must have one shape, got {frames[0].shape} and {others[0]}")
    with atomic(path) as temporary:
        FORMATS[path.suffix.lower()].write(temporary, frames, fps, hold)
    return path


def check_film(path: str | Path, fps: float, hold: float) -> None:
    """Reject a film that cannot be written, before its frames are created.

    Raises:
        ValueError: unknown suffix, or timing that the format cannot store.
        ModuleNotFoundError: `.mp4` or `.webm` without PyAV.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: wanted {', '.join(FORMATS)}, got {suffix or 'no suffix'}")
    most, longest = FORMATS[suffix].fps, FORMATS[suffix].frame
    if not (0 < fps <= most and 0 <= hold and 1 / fps + hold <= longest):
        raise ValueError(
            f"{suffix}: fps must lie in (0, {most}], hold must be >= 0 and 1 / fps + hold <= {longest} seconds, "
            f"got fps {fps} and hold {hold}"
        )
    if suffix in CODECS and find_spec("av") is None:
        raise ModuleNotFoundError(f"{suffix} needs PyAV; install it with: pip install 'litdiffusion[video]'")


def durations(n: int, fps: float, hold: float, unit: int) -> list[int]:
    """The duration in milliseconds of each of n >= 1 frames, in whole units: frame k begins at k / fps, rounded.

    Rounding the start times rather than the durations keeps errors from accumulating: 15 fps in units of 10 ms is
    70, 60, 70, 70, 60, 70 ms, ..., and the length of the film is exact to within half a unit.

    Args:
        unit: milliseconds.
    """
    begins = [1000 * k / fps for k in range(n)] + [1000 * (n / fps + hold)]
    ticks = [round(t / unit) for t in begins]
    return [unit * (after - before) for before, after in zip(ticks, ticks[1:], strict=False)]


def merged(frames: Sequence[np.ndarray], times: Sequence[int]) -> tuple[list[np.ndarray], list[int]]:
    """Consecutive equal frames merged into one, shown for the sum of their durations."""
    kept, total = [frames[0]], [times[0]]
    for frame, time in zip(frames[1:], times[1:], strict=True):
        if np.array_equal(frame, kept[-1]):
            total[-1] += time
        else:
            kept.append(frame)
            total.append(time)
    return kept, total


def indexed(frames: Sequence[np.ndarray]) -> tuple[list[np.ndarray], bytes]:
    """Palette indices (H, W) of frames, and the palette as RGBRGB...; grey frames are their own indices.

    One palette, computed from the first, middle and last frame, serves all frames: a palette per frame makes a GIF
    flicker.
    """
    if frames[0].ndim == 2:
        return list(frames), bytes(np.arange(256, dtype=np.uint8).repeat(3))
    rgb = [f[..., :3] for f in frames]
    sample = np.concatenate([rgb[i] for i in (0, len(rgb) // 2, -1)])
    palette = Image.fromarray(sample).quantize(256, dither=Image.Dither.NONE)
    indices = [np.asarray(Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE)) for f in rgb]
    return indices, bytes(palette.getpalette())


def write_gif(path: Path, frames: list[np.ndarray], fps: float, hold: float) -> None:
    """Write a GIF, which is timed in hundredths of a second; Pillow takes grey frames as palette indices."""
    indices, palette = indexed(frames)
    kept, times = merged(indices, durations(len(frames), fps, hold, 10))
    if max(times) > 1000 * FORMATS[".gif"].frame:
        raise ValueError(f".gif: consecutive equal frames last {max(times) / 1000:g} s; the format's limit is 655 s")
    write_images(path, kept, duration=times if len(times) > 1 else times[0], palette=palette, optimize=True)


def write_webp(path: Path, frames: list[np.ndarray], fps: float, hold: float) -> None:
    """Write a lossless WebP; libwebp merges equal frames, and methods above 1 are slower and no smaller here."""
    write_images(path, frames, duration=durations(len(frames), fps, hold, 1), lossless=True, method=1)


def write_apng(path: Path, frames: list[np.ndarray], fps: float, hold: float) -> None:
    """Write an APNG in which every frame is kept: consecutive equal frames alternate between two disposal methods.

    Pillow merges equal frames only if their disposal is the same. PREVIOUS restores the preceding frame, which is
    equal, so nothing changes.
    """
    keep, previous = 0, 2  # dispose_op of the APNG specification: NONE and PREVIOUS
    disposal = [keep]
    for before, frame in zip(frames, frames[1:], strict=False):
        disposal.append(previous if disposal[-1] == keep and np.array_equal(before, frame) else keep)
    write_images(path, frames, duration=durations(len(frames), fps, hold, 1), disposal=disposal)


def write_images(path: Path, frames: list[np.ndarray], **options) -> None:
    """Write an endlessly repeating animation with Pillow and its options.

    It is encoded in memory: imageio would try to write a file a second time after an error.
    """
    import imageio.v3 as iio

    made = iio.imwrite("<bytes>", frames, plugin="pillow", extension=path.suffix.lower(), loop=0, **options)
    path.write_bytes(made)


def write_video(path: Path, frames: list[np.ndarray], fps: float, hold: float) -> None:
    """Write a video; every frame lasts 1 / fps, so the last one is repeated for `hold` seconds.

    One thread encodes it: the bytes of an H.264 stream depend on their number.
    """
    import av

    suffix = path.suffix.lower()
    repeats = round(hold * fps)
    pictures = [even(np.asarray(Image.fromarray(frame).convert("RGB"))) for frame in frames]
    with av.open(str(path), "w", format=suffix[1:]) as film:
        stream = film.add_stream(CODECS[suffix], Fraction(fps).limit_denominator(65535))
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        stream.height, stream.width = pictures[0].shape[:2]
        for picture in [*pictures, *pictures[-1:] * repeats]:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        film.mux(stream.encode())


def even(image: np.ndarray) -> np.ndarray:
    """(H, W, C) with the last row or column repeated where their number is odd: yuv420p needs even sizes."""
    height, width, _ = image.shape
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class Format(NamedTuple):
    """The writer of a film format, and the timing that the format and its players support."""

    write: Callable[[Path, list[np.ndarray], float, float], None]
    fps: float  # maximum frames per second: players slow down faster animations
    frame: float  # maximum seconds of one frame


FORMATS = {
    ".gif": Format(write_gif, 50, 655),
    ".mp4": Format(write_video, 120, 600),
    ".webm": Format(write_video, 120, 600),
    ".webp": Format(write_webp, 60, 600),
    ".png": Format(write_apng, 60, 65),  # 16 bits of milliseconds
}
