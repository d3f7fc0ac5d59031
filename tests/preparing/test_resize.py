"""The pixels that are stored, against Pillow on whole pictures and against closed forms."""

import io

import numpy as np
import pytest
from PIL import Image

from diffusion.preparing.images.decode import Picture, decode, of_array
from diffusion.preparing.images.resize import fit
from diffusion.preparing.images.window import Window, reduced
from diffusion.preparing.items import Refused
from diffusion.preparing.settings import Form, settings

LANCZOS = Image.Resampling.LANCZOS


def stored(image, shape, dtype="uint8", at=(0.5, 0.5), **words):
    """The stored array (H, W, C) of a picture, and its notes."""
    picture = of_array(image) if isinstance(image, np.ndarray) else Picture(image, *image.size, image.mode, [])
    found = fit(picture, Form(*shape, dtype), settings("a", "b", **words), at)
    assert found.shape == shape and found.dtype == dtype
    return found.transpose(1, 2, 0), picture.notes


@pytest.fixture
def wide(picture):
    return Image.fromarray(picture(0, 90, 160))


def boxed(image, box, size, filter=LANCZOS):
    """A part of an image, resized with its neighbourhood."""
    return np.asarray(image.resize(size, filter, box=box))


def test_center_is_the_middle_square(wide):
    found, notes = stored(wide, (3, 30, 30))
    assert (found == boxed(wide, (35, 0, 125, 90), (30, 30))).all() and notes == []
    bicubic = boxed(wide, (35, 0, 125, 90), (30, 30), Image.Resampling.BICUBIC)
    assert (stored(wide, (3, 30, 30), filter="bicubic")[0] == bicubic).all() and (bicubic != found).any()


def test_sides_are_height_by_width(wide):
    assert (stored(wide, (3, 45, 80))[0] == np.asarray(wide.resize((80, 45), LANCZOS))).all()


def test_random_depends_on_its_position_alone(wide):
    left = stored(wide, (3, 30, 30), at=(0, 0), crop="random")[0]
    right = stored(wide, (3, 30, 30), at=(1, 1), crop="random")[0]
    assert (left == boxed(wide, (0, 0, 90, 90), (30, 30))).all()
    assert (right == boxed(wide, (70, 0, 160, 90), (30, 30))).all()


def test_pad_keeps_the_whole_picture(wide):
    found, _ = stored(wide, (3, 40, 40), crop="pad", background="#102030")
    rows = np.flatnonzero((found != (16, 32, 48)).any((1, 2)))
    assert rows[0] == 9 and rows[-1] == 30 and (found[9:31] == np.asarray(wide.resize((40, 22), LANCZOS))).all()


def test_none_changes_the_ratio_and_says_so(wide):
    found, notes = stored(wide, (3, 40, 40), crop="none")
    assert (found == np.asarray(wide.resize((40, 40), LANCZOS))).all() and notes == ["sides scaled differently"]


def test_the_right_size_is_copied(wide):
    assert (stored(wide, (3, 90, 160))[0] == np.asarray(wide)).all()
    assert (stored(wide, (3, 90, 90))[0] == np.asarray(wide)[:, 35:125]).all()
    assert (stored(wide, (3, 90, 160), linear=True)[0] == np.asarray(wide)).all()


def test_nothing_is_enlarged_silently(wide):
    for crop, shape in (("center", (3, 91, 91)), ("none", (3, 10, 161)), ("pad", (3, 200, 200))):
        with pytest.raises(Refused, match="160x90 is smaller .* --enlarge"):
            stored(wide, shape, crop=crop)
        assert stored(wide, shape, crop=crop, enlarge=True)[1][0].startswith("enlarged 1.")
    stored(wide, (3, 100, 160), crop="pad")  # fits between its bars


def test_linear_light_averages_energies():
    """Half black, half white: 50 % of the light is byte 188, and of the bytes 128."""
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    image = Image.fromarray(board)
    assert abs(int(stored(image, (3, 8, 8), linear=True)[0].mean()) - 188) <= 1
    assert abs(int(stored(image, (3, 8, 8))[0].mean()) - 128) <= 1
    alpha = Image.fromarray(np.dstack([board, np.full((64, 64), 255, np.uint8)]))
    kept, _ = stored(alpha, (4, 8, 8), linear=True, alpha="keep")
    assert abs(int(kept[..., :3].mean()) - 188) <= 1 and (kept[..., 3] == 255).all()


def test_alpha_is_composited_or_kept():
    image = Image.new("RGBA", (32, 32), (200, 100, 0, 51))
    assert stored(image, (3, 16, 16), background="black")[0][0, 0].tolist() == [40, 20, 0]
    assert stored(image, (3, 16, 16))[0][0, 0].tolist() == [244, 224, 204]
    assert stored(image, (4, 16, 16), alpha="keep")[0][0, 0].tolist()[3] == 51
    assert stored(Image.new("RGB", (32, 32)), (4, 16, 16), alpha="keep")[0][0, 0].tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize("dtype, top, error", [("uint8", 255, 0.5), ("uint16", 65535, 0), ("float32", 1, 1e-7)])
def test_sixteen_bits(dtype, top, error):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    found, notes = stored(Image.fromarray(ramp), (1, 64, 64), dtype)
    assert np.abs(found[..., 0].astype(float) - ramp / 65535 * top).max() <= error + 1e-9
    assert notes == (["16-bit grey reduced to 8 bits"] if dtype == "uint8" else [])
    assert (stored(Image.new("L", (8, 8), 100), (1, 8, 8), "uint16")[0] == 25700).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_arrays_of_many_bands_are_averaged_band_by_band(dtype):
    random = np.random.default_rng(0)
    bands = (random.random((48, 80, 5)) * 200).astype(dtype)
    assert (stored(bands, (5, 48, 80), dtype)[0] == bands).all()
    found, _ = stored(bands, (5, 12, 20), dtype)
    for k in range(5):
        plane = np.asarray(Image.fromarray(bands[..., k].astype(np.float32)).resize((20, 12), LANCZOS))
        assert np.abs(found[..., k] - plane).max() <= (0 if dtype == "float32" else 0.5001)
    with pytest.raises(Refused, match="5 channels, the others have 3"):
        stored(bands, (3, 12, 20), dtype)


def test_values_that_are_not_finite_are_refused():
    bands = np.zeros((8, 8, 2))
    bands[0, 0] = np.nan
    with pytest.raises(Refused, match="2 values are nan or infinite"):
        stored(bands, (2, 8, 8), "float32")
    with pytest.raises(Refused, match="beyond the range of float32"):
        stored(np.full((8, 8), 1e300), (1, 8, 8), "float32")


@pytest.mark.parametrize("turn", [1, 6])
def test_a_jpeg_at_a_lower_resolution_differs_little(turn, picture):
    """Decoded at an eighth, a quarter or a half, at least twice what is wanted: 40 dB from the full decoding."""
    tags, file = Image.Exif(), io.BytesIO()
    tags[0x0112] = turn
    Image.fromarray(picture(3, 600, 800)).save(file, "JPEG", quality=95, exif=tags.tobytes())
    form = Form(3, 64, 64, "uint8")
    full, low = decode(file.getvalue()), decode(file.getvalue(), lambda w, h: reduced((w, h), form, "center"))
    assert full.image.size[0] == 4 * low.image.size[0] and low[1:3] == full[1:3]
    assert (full.width, full.height) == ((800, 600) if turn == 1 else (600, 800))
    words = settings("a", "b")
    a, b = (fit(p, form, words, (0.5, 0.5)).astype(float) for p in (full, low))
    assert 10 * np.log10(255**2 / ((a - b) ** 2).mean()) > 40


def test_a_window_lies_within_its_picture():
    for w, h in ((7, 5), (1000, 3), (64, 64), (333, 777)):
        for crop in ("center", "random", "none", "pad"):
            for at in ((0, 0), (0.999, 0.5)):
                left, top, right, bottom = Window((w, h), Form(3, 16, 24, "uint8"), crop, at).box
                assert 0 <= left < right <= w + 1e-9 and 0 <= top < bottom <= h + 1e-9
