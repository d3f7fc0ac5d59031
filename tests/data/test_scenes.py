"""Drawn sprites with captions: pictures, attributes and sentences by (seed, index), and held-out combinations."""

import numpy as np
import pytest
import torch

from diffusion.data import Sprites
from diffusion.data.scenes import ATTRIBUTES, KIND, VALUES, attributes, draw_scenes, held_out, uniform
from diffusion.data.sentences import captions, named, sentence

COLUMN = {name: k for k, name in enumerate(ATTRIBUTES)}


def test_uniform_numbers_are_uniform_and_independent_between_columns_and_seeds():
    u = uniform(0, np.arange(20_000), 4)
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    others = np.concatenate([u, uniform(1, np.arange(20_000), 2), uniform(0, np.arange(20_000), 2, stream=1)], 1)
    assert np.abs(np.corrcoef(others.T) - np.eye(8)).max() < 0.03
    assert np.abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03
    assert np.histogram(u[:, 2], 10, (0, 1))[0].min() > 1850


def test_a_picture_depends_on_seed_and_index_alone():
    index = np.array([7, 3, 11])
    table, some = attributes(range(20), seed=5), attributes(index, seed=5)
    assert (table[index] == some).all()
    whole = draw_scenes(table, range(20), seed=5)
    assert (whole[index] == draw_scenes(some, index, seed=5)).all()
    assert captions(some, index, 5) == [captions(table, range(20), 5)[k] for k in index]
    assert (attributes(range(20), seed=6) != table).any()


def test_pictures_have_ground_outline_and_margin():
    table = attributes(range(2000))
    images = draw_scenes(table, range(2000))
    assert images.shape == (2000, 16, 16, 3) and images.dtype == np.uint8
    white = (images == 255).all(-1).mean((1, 2))
    assert 0.15 < white.min() and white.max() < 0.85
    assert ((images.max(-1) < 110).mean((1, 2)) > 0.05).mean() > 0.99  # outlines


def test_left_and_right_are_mirror_images():
    table = attributes(range(3000))
    table = table[table[:, COLUMN["pose"]] > 0]
    turned = table.copy()
    turned[:, COLUMN["pose"]] = 3 - table[:, COLUMN["pose"]]
    index = np.arange(len(table))
    shapes = [(draw_scenes(v, index) < 255).any(-1) for v in (turned, table)]  # light comes from the left in both
    assert (shapes[0] == shapes[1][:, :, ::-1]).all() and (shapes[0] != shapes[1]).any((1, 2)).all()
    assert set(table[:, 0]) == {KIND[name] for name in ("sword", "knight", "wizard", "fish", "cat")}


def test_each_attribute_changes_the_picture():
    table = attributes(range(4000))
    for name, k in COLUMN.items():
        if name in ("kind", "item"):
            continue
        mine = table[table[:, k] > 0][:200]
        base = draw_scenes(mine, np.zeros(len(mine), int))
        other = mine.copy()
        other[:, k] = np.where(mine[:, k] == 1, 2 if name != "shape" else 2, 1)
        kept = other[:, 0] != KIND["shield"] if name == "shape" else np.ones(len(mine), bool)
        changed = (draw_scenes(other, np.zeros(len(mine), int)) != base).any((1, 2, 3))
        assert changed[kept].all(), name


def test_every_kind_and_colour_has_training_pictures_and_every_rule_holds_some_out():
    table = attributes(range(24_000))
    out = held_out(table)
    assert 0.15 < out.mean() < 0.20
    pairs = {tuple(row[:2]) for row in table[~out]}
    kinds, colours = len(VALUES["kind"]), len(VALUES["colour"])
    assert len(pairs) == kinds * (colours - 1)  # one colour of each kind
    assert len({row[1] for row in table[~out]}) == colours
    both = table[(table[:, COLUMN["second"]] > 0)]
    seen = {tuple(row[[1, 2]]) for row in both[~held_out(both)]}
    assert len(seen) == colours**2 - colours


def test_training_never_shows_a_held_out_combination_and_the_test_split_does():
    data = Sprites(captions=True)
    train, test = data.attributes("train"), data.attributes("test")
    assert not held_out(train).any() and 100 < held_out(test).sum() < len(test) / 2
    images, y = data.load("test")
    assert images.shape == (len(test), 3, 16, 16) and y.shape == (len(test), data.tokens["length"])
    assert y.dtype == torch.int64 and len(data.texts("test")) == len(test)
    assert not data.flip and data.num_classes == data.context_dim == 0 and not data.labelled
    assert (y > 256).any(1).all() and not ((y > 0) & (y < 257)).any()  # words of the vocabulary only


def test_sentences_name_every_attribute_and_vary():
    table = attributes(range(3000))
    for row in table[:500]:
        told = named(row)
        said = sentence(told)
        for name, value in told.items():
            assert value in said, (name, said)
    varied = captions(table, range(3000))
    assert len(set(varied)) > 1500
    assert " a orange" not in " ".join(varied) and " a iron" not in " ".join(varied)
    assert "a knight in red with a blue shield facing left" == sentence(
        {"kind": "knight", "colour": "red", "item": "shield", "second": "blue", "pose": "left"}
    ).replace(",", "")
    assert sentence({"kind": "potion", "colour": "blue", "shape": "round"}) == "a blue potion in a round flask"


def test_captions_are_of_drawn_sprites_only(tmp_path):
    with pytest.raises(ValueError, match="captions"):
        Sprites(captions=True, balance=1.0)
    assert Sprites(captions=True, labels=False).tokens is None
    with pytest.raises(ValueError, match="no captions"):
        Sprites(drawn=True).texts("train")
    with pytest.raises(ValueError, match="a text_encoder reads captions; give captions: true"):
        Sprites(text_encoder=str(tmp_path))
