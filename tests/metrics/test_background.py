"""The background of images: pictures drawn by hand, whose right answers can be counted."""

import pytest
import torch

from diffusion.metrics.background import Background, background, grey, plain, specks
from diffusion.metrics.base import Features, Reference, bootstrap
from diffusion.support.scaling import Scaling

DRAWN = """
  . . . . . . .
  . # # # # . .
  . # . . # . .
  . # . . # . .
  . # # # # . .
  . . . . . # .
  . . . . . . .
"""


def drawn(text=DRAWN):
    """True where a picture is drawn."""
    return torch.tensor([[word == "#" for word in line.split()] for line in text.strip().splitlines()])


def x0(raw):
    """Grey levels (N, C, H, W) as x_0."""
    return Scaling().encode(torch.as_tensor(raw).to(torch.uint8))


def white(n=1, channels=1):
    """A closed ring and a dot in black on white, (n, C, 7, 7) grey levels."""
    return torch.where(drawn(), 0, 255).expand(n, channels, 7, 7).clone()


def features(raw):
    x = x0(raw)
    return Features(x, torch.zeros(len(x), 2), torch.zeros(len(x), 2), torch.zeros(len(x), dtype=torch.int64))


def figures(samples, test=None, train=None):
    reference = Reference(features(white(4) if train is None else train), features(white(4) if test is None else test))
    return {f.name: f for f in Background().figures(features(samples), reference)}


def test_background_is_joined_with_the_border_by_edges():
    """The inside of the ring is none, and neither is a pixel that only touches the background at a corner."""
    found = background(grey(x0(white())), 255)[0]
    inside = torch.zeros(7, 7, dtype=torch.bool)
    inside[2:4, 2:4] = True
    assert torch.equal(found, ~drawn() & ~inside)
    corner = torch.tensor([[0, 0, 0], [0, 255, 0], [0, 0, 255]])[None, None]
    assert background(grey(x0(corner)), 255)[0].nonzero().tolist() == [[2, 2]]
    winding = drawn(". # . . .\n. # . # .\n. # . # .\n. # . # .\n# # # # .")  # a path of 13 pixels
    assert torch.equal(background(grey(x0(torch.where(winding, 0, 255)[None, None])), 255)[0], ~winding)


def test_a_pixel_is_near_up_to_40_in_all_channels():
    raw = white(3, channels=3)
    raw[0, :, 6, 6] = 215
    raw[1, 1, 6, 6] = 214
    raw[2, :, 6, 6] = 214
    assert background(grey(x0(raw)), 255)[:, 6, 6].tolist() == [True, False, False]


def test_deviation_is_the_mean_over_pixels_and_channels():
    """49 pixels without 13 drawn and 4 enclosed are 32, of three channels 96; in two images 192."""
    raw = white(2, channels=3)
    raw[0, 0, 0, 0], raw[0, :, 0, 6], raw[1, 2, 6, 0] = 225, 247, 246  # off by 30, three times 8, and 9
    raw[1, :, 2, 2] = 250  # enclosed
    found = figures(raw)
    assert found["background"].value == pytest.approx((30 + 24 + 9) / 192, rel=1e-6)
    assert found["background_visible"].value == pytest.approx(2 / 192)  # 8 is not above 8
    assert found["background"].floor == found["background_visible"].floor == 0
    assert found["background"].low < found["background"].value < found["background"].high


def test_specks_have_eight_neighbours_in_the_background():
    """A dot alone is one; the dot of the drawing touches the ring, and a dot on the border is none."""
    raw = white(2)
    assert figures(raw)["background_specks"].value == 0
    raw[1, 0, 1:5, 1:5] = 255  # no ring
    raw[1, 0, 3, 0] = 0
    found = specks(background(grey(x0(raw)), 255))
    assert found.nonzero().tolist() == [[1, 5, 5]] and figures(raw)["background_specks"].value == 0.5


def test_white_or_black_is_what_most_of_the_border_is():
    assert plain(x0(white())) == 255 and plain(x0(255 - white())) == 0
    raw = white(2)
    raw[0] = 0  # half of the border pixels are black, none of them of the second image
    assert plain(x0(raw)) == 255
    assert plain(x0(torch.full((2, 1, 7, 7), 128))) is None
    black = figures(255 - white(2) // 51 * 50, 255 - white(4), 255 - white(4))  # 5 above black
    assert black["background"].value == pytest.approx(5)


def test_interval_covers_new_draws():
    """The spread of the mean over 200 sets of images of uneven noise and size is that of the interval."""
    draw = torch.Generator().manual_seed(0)

    def images():
        raw = white(60)
        noise = torch.rand(60, 1, 1, 1, generator=draw) * 20
        raw = (raw - (torch.rand(60, 1, 7, 7, generator=draw) * noise)).clamp(0, 255).round()
        raw[torch.rand(60, generator=draw) < 0.5, :, 3:] = 0
        return raw

    metric, real = Background(), features(white(4))
    scores = [metric.scores(features(images()), real)["background"] for _ in range(200)]
    spread = torch.tensor([s.value for s in scores]).std()
    widths = torch.tensor([(lambda ends: ends[1] - ends[0])(bootstrap(s)) for s in scores[:20]]).mean()
    assert float(widths) == pytest.approx(3.92 * float(spread), rel=0.15)


def test_images_without_a_plain_background_are_refused():
    grey_images = features(torch.full((3, 1, 7, 7), 128))
    with pytest.raises(ValueError, match="background: needs images on a plain background"):
        Background().figures(grey_images, Reference(grey_images, grey_images))


def test_an_image_without_background_is_left_out():
    raw = white(2)
    raw[0] = 0
    assert figures(raw)["background"].value == 0 and figures(raw * 0)["background"].value == 0
