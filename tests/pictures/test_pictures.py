import numpy as np
import torch
from PIL import Image

from diffusion import pictures


def test_to_uint8_scales_a_fixed_range_and_rounds():
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 1, 6)
    assert pictures.to_uint8(x).flatten().tolist() == [0, 0, 128, 191, 255, 255]
    # A dim image stays dim (images are not stretched to their own extremes), and a constant one gives no NaN.
    assert pictures.to_uint8(torch.full((1, 3, 2, 2), -0.5)).max() == 64


def test_to_uint8_inverts_the_scaling_of_the_data():
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


def test_save_png_accepts_1_to_4_channels(tmp_path):
    for channels in (1, 2, 3, 4):
        image = np.arange(16 * channels, dtype=np.uint8).reshape(4, 4, channels)
        seen = np.asarray(Image.open(pictures.save_png(image, tmp_path / "a.png")))
        assert np.array_equal(seen, image if channels in (3, 4) else image[..., 0])


def test_quality_plot_against_seconds():
    figure = {"metric": "frechet", "value": 2.0, "low": 1.0, "high": 3.0, "better": "low", "floor": 1, "n": 40, "m": 40,
              "weights": "ema"}  # fmt: skip
    records = [
        {"setting": {"sampler": "DDIM", "scale": 1}, "asked": {}, "evaluations": 10 * s, "seconds": s, "pareto": True,
         "figures": [figure]} for s in (3, 1)
    ]  # fmt: skip
    axes = pictures.quality_plot(records, against="seconds").axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 3] and axes.get_xlabel() == "seconds for 40 samples"
    assert pictures.quality_plot(records).axes[0].lines[0].get_xdata().tolist() == [10, 30]
