"""Films, read back by independent readers: GIF, APNG, MP4 and WebM by FFmpeg (PyAV), WebP by Pillow.

Loop counts and the times of WebP are read from the bytes, according to the specifications of the formats.
"""

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.container import OutputContainer
from PIL import Image

from diffusion import pictures
from diffusion.pictures import film

IMAGES, VIDEOS = (".gif", ".webp", ".png"), (".mp4", ".webm")
ALL = IMAGES + VIDEOS


def noise(n: int, shape: tuple[int, int, int], seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def smooth(n: int, height: int, width: int, channels: int) -> list[np.ndarray]:
    """Moving slanted planes: video compresses them well, and no two frames or axes are alike."""
    y, x = np.mgrid[:height, :width]
    planes = [60 + x * 120 / width, 200 - y * 120 / height, 40 + (x + y) * 80 / (width + height), 255 - 0 * x]
    frames = [np.stack([p + 40 * k / n for p in planes[:3]] + planes[3:], -1) for k in range(n)]
    return [f[..., :channels].round().astype(np.uint8) for f in frames]


def read(path: Path) -> list[tuple[np.ndarray, float, float]]:
    """Frames (H, W, 4), or (H, W, 3) for video, uint8, with their start times and durations in seconds."""
    if path.suffix == ".webp":
        return read_webp(path)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        kind = "rgb24" if path.suffix in VIDEOS else "rgba"  # for video, swscale leaves the last columns of rgba empty
        shown = [f.duration * f.time_base for f in frames]
        return [
            (f.to_ndarray(format=kind), float(f.pts * f.time_base), float(s))
            for f, s in zip(frames, shown, strict=True)
        ]


def chunks(path: Path, name: bytes) -> list[bytes]:
    """The chunks of a given kind in a WebP (RIFF) or PNG file."""
    data, found = path.read_bytes(), []
    at, riff = (12, True) if data[:4] == b"RIFF" else (8, False)
    while at < len(data):
        if riff:
            kind, size = struct.unpack_from("<4sI", data, at)
            body, after = at + 8, at + 8 + size + size % 2
        else:
            size, kind = struct.unpack_from(">I4s", data, at)
            body, after = at + 8, at + 12 + size
        if kind == name:
            found.append(data[body : body + size])
        at = after
    return found


def read_webp(path: Path) -> list[tuple[np.ndarray, float, float]]:
    times = [int.from_bytes(c[12:15], "little") / 1000 for c in chunks(path, b"ANMF")] or [0.0]
    with Image.open(path) as image:
        assert image.n_frames == len(times)
        frames = []
        for k in range(image.n_frames):
            image.seek(k)
            frames.append(np.asarray(image.convert("RGBA")))
    return [(f, sum(times[:k]), times[k]) for k, f in enumerate(frames)]


def at(read_back: list[tuple[np.ndarray, float, float]], t: float) -> np.ndarray:
    """The frame that is shown at the given time."""
    return next(f for f, begin, shown in read_back if begin <= t + 1e-9 < begin + shown + 1e-3)


def rgba(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame).convert("RGBA"))


def error(a: np.ndarray, b: np.ndarray) -> float:
    """The mean absolute error of red, green and blue."""
    return float(np.abs(a[..., :3].astype(float) - b[..., :3]).mean())


# --------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_apng_and_webp_keep_every_pixel(suffix, channels, tmp_path):
    frames = noise(5, (17, 23, channels))
    seen = read(pictures.save_film(frames, tmp_path / f"a{suffix}", fps=10, hold=0.5))
    assert len(seen) == 5
    for (back, begin, shown), frame, k in zip(seen, frames, range(5), strict=True):
        wanted = rgba(frame)
        visible = wanted[..., 3:] > 0  # libwebp may choose any colour for fully transparent pixels
        assert np.array_equal(back[..., 3], wanted[..., 3])
        assert np.array_equal(back[..., :3] * visible, wanted[..., :3] * visible)
        assert begin == pytest.approx(0.1 * k) and shown == pytest.approx(0.6 if k == 4 else 0.1)


def test_gif_keeps_every_grey_value(tmp_path):
    frames = noise(6, (20, 21, 1))
    seen = read(pictures.save_film(frames, tmp_path / "a.gif", fps=10, hold=1.5))
    assert all(np.array_equal(f, rgba(g)) for (f, *_), g in zip(seen, frames, strict=True))
    assert [s for *_, s in seen] == pytest.approx([0.1] * 5 + [1.6])


def test_gif_of_few_colours_is_exact_and_has_one_palette(tmp_path):
    colours = noise(1, (200, 1, 3))[0][:, 0]
    frames = [colours[i] for i in np.random.default_rng(1).integers(0, 200, (6, 40, 40))]
    path = pictures.save_film(frames, tmp_path / "a.gif")
    assert all(np.array_equal(f, rgba(g)) for (f, *_), g in zip(read(path), frames, strict=True))
    data = path.read_bytes()
    first = data.index(b"\x2c\x00\x00\x00\x00\x28\x00\x28\x00")  # the descriptor of the first image, 40 x 40
    assert data[10] & 0x80 and not data[first + 9] & 0x80  # a global colour table, and no local one


def test_gif_of_many_colours_is_close(tmp_path):
    """A palette of 256 colours for moving planes: an error of 5 would mean 16 levels per channel."""
    frames = smooth(12, 64, 64, 3)
    seen = read(pictures.save_film(frames, tmp_path / "a.gif"))
    assert len(seen) == 12
    assert max(error(f, g) for (f, *_), g in zip(seen, frames, strict=True)) < 5


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize("height, width", [(64, 48), (37, 51), (1, 1)])
def test_video_has_even_sizes_and_every_frame(suffix, channels, height, width, tmp_path):
    frames = smooth(9, height, width, channels)
    seen = read(pictures.save_film(frames, tmp_path / f"a{suffix}", fps=12.5, hold=0.4))
    assert len(seen) == 9 + 5
    for k, (back, begin, _) in enumerate(seen):
        wanted = rgba(frames[min(k, 8)])
        assert back.shape == (height + height % 2, width + width % 2, 3)
        assert error(back[:height, :width], wanted) < 4
        assert error(back[-1:, :width], wanted[-1:]) < 8 and error(back[:height, -1:], wanted[:, -1:]) < 8
        assert begin == pytest.approx(k / 12.5, abs=1e-3)
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p" and stream.average_rate == Fraction(25, 2)
        assert stream.codec.canonical_name == {".mp4": "h264", ".webm": "vp9"}[suffix]
        assert container.duration / 1e6 == pytest.approx(14 / 12.5, abs=1e-3)


# ----------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("fps", [7, 12, 15, 24, 29.97, 30, 50])
@pytest.mark.parametrize("suffix", ALL)
def test_timing_does_not_drift(suffix, fps, tmp_path):
    """Frame k begins at k / fps and the film ends on time, within half a unit of the format."""
    frames = [np.full((16, 16, 1), 7 * k, np.uint8) for k in range(31)]
    seen = read(pictures.save_film(frames, tmp_path / f"a{suffix}", fps, hold=1))
    half = 5.1e-3 if suffix == ".gif" else 1.1e-3
    for k in range(31):
        assert seen[k][1] == pytest.approx(k / fps, abs=half)
    end = max(begin + shown for _, begin, shown in seen)
    assert end == pytest.approx(31 / fps + 1, abs=0.5 / fps + 2e-3 if suffix in VIDEOS else half)


def test_durations_by_hand():
    assert film.durations(4, 15, 2, 10) == [70, 60, 70, 2070]
    assert film.durations(4, 15, 0, 1) == [67, 66, 67, 67]
    assert film.durations(1, 10, 0.5, 10) == [600]
    assert sum(film.durations(1000, 15, 0, 10)) == 66670


EQUAL = [0, 0, 0, 1, 2, 2, 1, 1, 2, 2, 2, 2]  # first, middle and last have all colours, otherwise a GIF changes some


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", ALL)
def test_equal_frames_keep_their_time(suffix, channels, tmp_path):
    kinds = [np.full((32, 32, channels), 20 + 60 * k, np.uint8) for k in range(3)]
    for k, kind in enumerate(kinds):
        kind[4:12, 4 + 5 * k : 9 + 5 * k] = 255 - 50 * k
    seen = read(pictures.save_film([kinds[i] for i in EQUAL], tmp_path / f"a{suffix}", fps=10, hold=0.7))
    assert len(seen) == {".png": 12, ".mp4": 19, ".webm": 19}.get(suffix, 5)
    assert sum(shown for *_, shown in seen) == pytest.approx(1.9, abs=5e-3 if suffix != ".webm" else 2e-2)
    for k in range(19):
        now, wanted = at(seen, 0.1 * k + 0.05), rgba(kinds[EQUAL[min(k, 11)]])
        if suffix in IMAGES:
            assert np.array_equal(now[..., :3], wanted[..., :3])
            assert suffix == ".gif" or np.array_equal(now[..., 3], wanted[..., 3])
        else:
            assert error(now, wanted) < 4


@pytest.mark.parametrize("suffix", ALL)
def test_film_of_equal_frames_only(suffix, tmp_path):
    frame = noise(1, (16, 16, 3))[0]
    path = pictures.save_film([frame] * 10, tmp_path / f"a{suffix}", fps=10, hold=2)
    seen = read(path)
    assert len(seen) == {".png": 10, ".mp4": 30, ".webm": 30}.get(suffix, 1)
    if suffix != ".webp":  # libwebp writes a single frame as a still picture without a duration
        assert sum(shown for *_, shown in seen) == pytest.approx(3, abs=5e-2)


@pytest.mark.parametrize("suffix", ALL)
def test_film_of_one_frame(suffix, tmp_path):
    frame = smooth(1, 31, 33, 3)
    seen = read(pictures.save_film(frame, tmp_path / f"a{suffix}", fps=10, hold=1))
    assert len(seen) == (11 if suffix in VIDEOS else 1)
    assert error(seen[0][0][:31, :33], frame[0]) < (0.5 if suffix in (".png", ".webp") else 5)


@pytest.mark.parametrize("suffix", IMAGES)
def test_animated_images_repeat_endlessly(suffix, tmp_path):
    path = pictures.save_film(noise(3, (8, 8, 3)), tmp_path / f"a{suffix}")
    if suffix == ".gif":
        assert b"NETSCAPE2.0\x03\x01\x00\x00\x00" in path.read_bytes()
    elif suffix == ".webp":
        assert chunks(path, b"ANIM")[0][4:6] == b"\0\0"
    else:
        assert struct.unpack(">II", chunks(path, b"acTL")[0]) == (3, 0)


def test_frames_three_pixels_wide_are_not_mistaken_for_channels(tmp_path):
    """A writer that guesses would take grey frames 3 pixels wide for colour."""
    frames = noise(4, (5, 3, 1))
    for suffix in IMAGES:
        seen = read(pictures.save_film(frames, tmp_path / f"a{suffix}"))
        assert all(np.array_equal(f, rgba(g)) for (f, *_), g in zip(seen, frames, strict=True))


def test_film_accepts_an_upper_case_suffix(tmp_path):
    for suffix in ALL:
        path = pictures.save_film(iter(smooth(3, 16, 16, 3)), tmp_path / f"A{suffix.upper()}", hold=0)
        assert path.name == f"A{suffix.upper()}" and path.stat().st_size > 100
        path.rename(path.with_suffix(suffix))
        assert len(read(path.with_suffix(suffix))) == 3


# ------------------------------------------------------------------------------------- refused, or interrupted


@pytest.mark.parametrize("suffix, fps, hold", [
    (".gif", 0, 1), (".gif", 51, 1), (".gif", 10, -1), (".gif", 10, 700), (".gif", float("nan"), 1),
    (".gif", 10, float("nan")), (".webp", 61, 1), (".png", 10, 65), (".mp4", 121, 1), (".webm", 0.001, 1),
])  # fmt: skip
def test_film_refuses_timing_that_the_format_cannot_store(suffix, fps, hold, tmp_path):
    with pytest.raises(ValueError, match=rf"\{suffix}: fps must lie in"):
        pictures.save_film([np.zeros((2, 2, 1), np.uint8)], tmp_path / f"a{suffix}", fps, hold)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ALL)
def test_longest_hold_is_stored(suffix, tmp_path):
    """The longest hold that is accepted fits the format's field."""
    hold = film.FORMATS[suffix].frame - 1
    path = pictures.save_film(smooth(2, 16, 16, 1), tmp_path / f"a{suffix}", fps=1, hold=hold)
    assert sum(shown for *_, shown in read(path)) == pytest.approx(hold + 2)


def test_gif_of_equal_frames_longer_than_its_field(tmp_path):
    frames = [np.full((2, 2, 1), k, np.uint8) for k in (0, 1, 1, 1)]
    with pytest.raises(ValueError, match="last 900 s"):
        pictures.save_film(frames, tmp_path / "a.gif", fps=1 / 200, hold=300)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.avi", "a", "gif"])
def test_film_refuses_an_unknown_suffix(name, tmp_path):
    with pytest.raises(ValueError, match=r"wanted \.gif, \.mp4, \.webm, \.webp, \.png, got"):
        pictures.save_film(noise(2, (4, 4, 3)), tmp_path / name)


def test_film_refuses_no_frames_and_frames_of_two_shapes(tmp_path):
    with pytest.raises(ValueError, match="film: no frames"):
        pictures.save_film([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"one shape.*\(4, 4, 3\) and \(4, 5, 3\)"):
        pictures.save_film(noise(1, (4, 4, 3)) + noise(1, (4, 5, 3)), tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", VIDEOS)
def test_video_without_av_names_the_extra(suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(film, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'litdiffusion\[video\]'"):
        pictures.check_film(tmp_path / f"a{suffix}", 15, 2)
    pictures.save_film(noise(2, (4, 4, 3)), tmp_path / "a.gif")  # GIF needs no av


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("suffix", ALL)
def test_film_is_written_atomically(suffix, there, tmp_path, monkeypatch):
    """If the disk fills up during writing, no partial film is left and an old file is unchanged."""
    path, frames = tmp_path / f"a{suffix}", smooth(6, 32, 32, 3)
    if there:
        path.write_text("old")
    mux, write_bytes, written = OutputContainer.mux, Path.write_bytes, []

    def full(self, packets):
        written.append(packets)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return mux(self, packets)

    def cut(self, data):
        write_bytes(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OutputContainer, "mux", full)
    monkeypatch.setattr(Path, "write_bytes", cut)
    with pytest.raises(OSError, match="No space left"):
        pictures.save_film(frames, path)
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if there else [])
    assert not there or path.read_bytes() == b"old"


def test_pictures_import_no_imageio():
    """Sampling starts without importing it."""
    code = "import sys, diffusion.pictures; print([m for m in ('imageio', 'av') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "[]\n"
