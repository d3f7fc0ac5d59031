"""Scaling: there and back, its ranges, its plain form, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from diffusion.guidance import Clamp, Unbounded
from diffusion.guidance.bounds import usual
from diffusion.support.scaling import Scaling, arranged, channels_first

MEAN, STD = [1500.0, -3.0, 270.0], [800.0, 0.02, 0.0]


def fields():
    """Three bands of very different units, one of them constant."""
    x = torch.randn(50, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shape = (3, 1, 1)
    return (x * torch.tensor(STD).view(shape) + torch.tensor(MEAN).view(shape)).float()


def measured(x):
    low, high = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    mean, std = x.double().mean((0, 2, 3)), x.double().std((0, 2, 3), correction=0)
    return Scaling.measured("float32", *(v.tolist() for v in (mean, std, low, high)))


def test_every_8_bit_value_comes_back_and_is_scaled_as_ever():
    raw = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(Scaling().encode(raw), raw.float() / 127.5 - 1)
    assert torch.equal(Scaling().decode(Scaling().encode(raw)), raw)
    assert Scaling().decode(torch.tensor([-1.2, 1.2, 0.0]).view(1, 1, 1, 3)).flatten().tolist() == [0, 255, 128]


@pytest.mark.parametrize("low, high", [(0, 65535), (5, 6), (60000, 60100), (7, 7)])
def test_every_16_bit_value_comes_back(low, high):
    scaling = Scaling.measured("uint16", [0], [1], [low], [high])
    raw = torch.arange(low, high + 1, dtype=torch.int32).to(torch.uint16).view(1, 1, 1, -1)
    x0 = scaling.encode(raw)
    assert scaling.bounded and (low == high or (x0.min(), x0.max()) == (-1, 1))
    assert torch.equal(scaling.decode(x0).int(), raw.int())
    assert scaling.decode(x0 + 9).int().max() <= high + (low == high)


def test_floats_come_back_to_a_millionth_and_have_standard_deviation_a_half():
    raw = fields()
    scaling = measured(raw)
    x0 = scaling.encode(raw)
    assert not scaling.bounded and x0.dtype == torch.float32
    assert x0.mean((0, 2, 3)).abs().max() < 1e-4  # -3 +- 0.02 has 5 digits in float32
    assert (x0[:, :2].std((0, 2, 3), correction=0) - 0.5).abs().max() < 1e-4 and not x0[:, 2].any()
    largest = raw.abs().amax((0, 2, 3), keepdim=True)  # of each band
    assert ((scaling.decode(x0) - raw).abs() / largest).max() < 1e-6


def test_a_scaling_survives_its_plain_form():
    for scaling in (Scaling(), measured(fields()), Scaling.measured("uint16", [1], [1], [3], [900])):
        assert Scaling.of(json.loads(json.dumps(scaling.plain))) == scaling == Scaling.of(scaling)
        assert hash(scaling) == hash(Scaling.of(scaling.plain))
    assert Scaling.of(None) == Scaling()


def test_only_bounded_data_are_clamped():
    assert isinstance(usual(Scaling().bounded), Clamp)
    assert isinstance(usual(measured(fields()).bounded), Unbounded)
    far = torch.full((1, 3, 1, 1), 9.0)
    assert (measured(fields()).decode(far).flatten()[0] - MEAN[0]) > 17 * STD[0]  # 9 is 18 standard deviations


@pytest.mark.parametrize("arguments, words", [
    ({"dtype": "float64"}, "wanted dtype uint8, uint16, float32, got 'float64'"),
    ({"dtype": "float32", "shift": (1,), "scale": (0,)}, "positive scale"),
    ({"dtype": "float32", "shift": (1, 2), "scale": (1,)}, "of one length"),
    ({"dtype": "float32", "shift": (float("nan"),), "scale": (1,)}, "finite shift"),
    ({"shift": (0,), "scale": (255,)}, "8-bit images are scaled by raw / 127.5 - 1"),
])  # fmt: skip
def test_scaling_refuses_wrong_numbers(arguments, words):
    with pytest.raises(ValueError, match=words):
        Scaling(**arguments)
    with pytest.raises(ValueError, match="for 3 channels, and the images have 2"):
        measured(fields()).check(2)


def test_layouts_of_files():
    for C in (1, 3, 4, 5, 9):
        raw = torch.arange(2 * C * 10 * 12).view(2, C, 10, 12)
        array = arranged(raw)
        assert array.shape == ((2, 10, 12, C) if C <= 4 else (2, C, 10, 12))
        assert np.array_equal(channels_first(array), raw)  # what is written is read
    assert channels_first(np.zeros((7, 10, 12))).shape == (7, 1, 10, 12)
    assert channels_first(np.zeros((7, 3, 10, 12))).shape == (7, 3, 10, 12)
    assert channels_first(np.zeros((7, 10, 12, 5))).shape == (7, 5, 10, 12)
