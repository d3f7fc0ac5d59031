import numpy as np
import pytest

from diffusion.data.sprite_art import _halves, _whole, draw_sprites, parts


@pytest.fixture(scope="module")
def drawn():
    return draw_sprites()


def test_drawn_sprites_are_distinct_and_balanced(drawn):
    images, classes = drawn
    assert images.shape == (7500, 16, 16, 3) and images.dtype == np.uint8
    assert np.bincount(classes).tolist() == [1500] * 5
    assert len({image.tobytes() for image in images}) == 7500


def test_drawn_sprites_depend_on_the_seed(drawn):
    a, b, c = draw_sprites(20, seed=1), draw_sprites(20, seed=1), draw_sprites(20, seed=2)
    assert (a[0] == b[0]).all() and not (a[0] == c[0]).all((1, 2, 3)).any()
    assert (draw_sprites()[0] == drawn[0]).all()
    with pytest.raises(ValueError, match="per_class"):
        draw_sprites(0)


def test_sprites_have_ground_outline_and_few_colours(drawn):
    images, classes = drawn
    white = (images == 255).all(-1)
    share = white.mean((1, 2))
    assert 0.15 < np.quantile(share, 0.01) and np.quantile(share, 0.99) < 0.85
    colours = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in images[::50]]
    assert 3 <= min(colours) and max(colours) <= 40
    dark = images.max(-1) < 90  # outlines: almost every sprite that is not a spell has many
    assert (dark.mean((1, 2))[classes != 3] > 0.08).mean() > 0.95


def test_heroes_are_symmetric_but_for_what_they_hold_and_walkers_are_not(drawn):
    images, classes = drawn
    shape = (images != 255).any(-1)
    same = (shape == shape[:, :, ::-1]).mean((1, 2))
    assert same[classes == 1].min() > 0.95 and same[classes == 0].mean() > 0.85 > same[classes == 4].mean()


def test_every_drawing_leaves_room_for_its_outline():
    shapes = [
        *_halves(parts.MONSTERS, 1),
        *_halves(parts.FOODS, 1),
        *_whole(parts.FOODS_2, 1),
        *_whole(parts.ANIMALS, 2),
    ]
    shapes += [*_halves(parts.MONSTERS_2, 1), *_whole(parts.FOODS_3, 1), *_halves(parts.HEADS, 0)]
    for shape in shapes:
        assert not shape[[0, 15]].any() and not shape[:, [0, 15]].any(), shape
