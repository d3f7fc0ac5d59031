import numpy as np
import pytest
import torch
from PIL import Image

from diffusion import pictures


def test_scaling_is_fixed_and_rounded():
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 1, 6)
    assert pictures.to_uint8(x).flatten().tolist() == [0, 0, 128, 191, 255, 255]
    # A dim image stays dim: nothing is stretched to its own extremes, and a constant one is no NaN.
    assert pictures.to_uint8(torch.full((1, 3, 2, 2), -0.5)).max() == 64


def test_round_trip_with_the_data():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert np.array_equal(pictures.to_uint8(pixels.float() / 127.5 - 1)[0, ..., 0], pixels[0, 0].numpy())


def test_grid_places_every_image():
    images = np.stack([np.full((2, 3, 1), k, np.uint8) for k in range(5)])
    sheet = pictures.grid(images, columns=3, pad=1, scale=1)[..., 0]
    assert sheet.shape == (7, 13)
    assert [sheet[1 + k // 3 * 3, 1 + k % 3 * 4] for k in range(5)] == [0, 1, 2, 3, 4]
    assert sheet[4, 9] == 128 and sheet[0, 0] == 128  # the empty place and the frame are grey
    big = pictures.grid(images, columns=3, pad=1, scale=4)
    assert big.shape == (28, 52, 1) and np.array_equal(big[::4, ::4, 0], sheet)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_frames_durations_and_loop(tmp_path, channels):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (20, 20, channels), dtype=np.uint8) for _ in range(6)]
    path = pictures.save_gif(frames, tmp_path / "a.gif", fps=10, hold=1.5)
    gif = Image.open(path)
    assert gif.n_frames == 6 and gif.info["loop"] == 0
    durations = []
    for k in range(6):
        gif.seek(k)
        durations.append(gif.info["duration"])
        if channels == 1:
            assert np.array_equal(np.asarray(gif.convert("L")), frames[k][..., 0])
    assert durations == [100] * 5 + [1600]


def test_png_of_any_channels(tmp_path):
    for channels in (1, 2, 3, 4):
        image = np.arange(16 * channels, dtype=np.uint8).reshape(4, 4, channels)
        seen = np.asarray(Image.open(pictures.save_png(image, tmp_path / "a.png")))
        assert np.array_equal(seen, image if channels in (3, 4) else image[..., 0])


@pytest.mark.parametrize("n, frames", [(50, 10), (3, 40), (1, 5), (1000, 2)])
def test_spread_has_first_and_last(n, frames):
    chosen = pictures.spread(n, frames)
    assert chosen[0] == 0 and chosen[-1] == n - 1 and len(chosen) == min(n, frames) and len(set(chosen)) == len(chosen)


@pytest.mark.parametrize("fps, hold", [(0, 1), (51, 1), (10, -1)])
def test_impossible_timing(fps, hold, tmp_path):
    with pytest.raises(ValueError, match="GIF"):
        pictures.save_gif([np.zeros((2, 2, 1), np.uint8)], tmp_path / "a.gif", fps, hold)
    assert not list(tmp_path.iterdir())


def test_films_side_by_side():
    a = [np.full((2, 3, 1), k, np.uint8) for k in range(5)]
    b = [np.full((2, 2, 1), 100 * k, np.uint8) for k in range(3)]
    frames = pictures.abreast([a, b], pad=1)
    assert len(frames) == 5 and frames[0].shape == (2, 6, 1)
    assert [f[0, 0, 0] for f in frames] == [0, 1, 2, 3, 4] and [f[1, 5, 0] for f in frames] == [0, 0, 100, 200, 200]
    assert all((f[:, 3] == 255).all() for f in frames)


def test_quality_against_seconds():
    figure = {"metric": "frechet", "value": 2.0, "low": 1.0, "high": 3.0, "better": "low", "floor": 1, "n": 40, "m": 40,
              "weights": "ema"}  # fmt: skip
    records = [
        {"setting": {"sampler": "DDIM", "scale": 1}, "asked": {}, "evaluations": 10 * s, "seconds": s, "pareto": True,
         "figures": [figure]} for s in (3, 1)
    ]  # fmt: skip
    axes = pictures.quality_plot(records, against="seconds").axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 3] and axes.get_xlabel() == "seconds for 40 samples"
    assert pictures.quality_plot(records).axes[0].lines[0].get_xdata().tolist() == [10, 30]
