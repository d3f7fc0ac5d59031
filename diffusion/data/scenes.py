"""Drawn sprites that a sentence describes: kind, colours, material, held item, shape and pose, by (seed, index).

The pictures are 16x16, painted as those of `sprite_art`, of attributes that are drawn independently. Held-out
combinations, which no training picture shows, are those of `held_out`:

    kind and colour           (3 kind + colour) mod 7 = 2        one colour of each kind
    colour and second colour  (colour + 2 second) mod 7 = 3      a seventh of the pairs, for knights and wizards
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion.data import scene_parts as things
from diffusion.data import sprite_parts as parts
from diffusion.data.sprite_art import LETTERS, SKINS, WOODS, _halves, _stack, _whole, paint

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
VALUES = {  # of each attribute; 0 in a table of attributes is "does not apply", k + 1 the k-th value
    "kind": ("potion", "sword", "shield", "ring", "knight", "wizard", "slime", "ghost", "fish", "cat", "mushroom"),
    "colour": COLOURS,
    "second": COLOURS,
    "material": ("iron", "gold", "copper"),
    "item": ("sword", "axe", "shield"),
    "shape": ("round", "tall", "square", "kite"),
    "pose": ("left", "right"),
}
ATTRIBUTES = tuple(VALUES)
HUES = ((0, 0.85, 0.85), (25, 0.90, 0.97), (52, 0.85, 0.97), (120, 0.72, 0.72), (220, 0.80, 0.90), (274, 0.70, 0.72),
        (325, 0.48, 1.0))  # fmt: skip
METALS = ((215, 0.10, 0.74), (44, 0.78, 0.95), (18, 0.62, 0.66))
ODDS = (2, 2, 2, 1, 5, 3, 1, 1, 1, 1, 1)  # how often each kind is drawn in relation to the others
SHAPES = {"potion": (0, 1, 2), "shield": (0, 3)}
WITH_METAL, WITH_POSE = ("sword", "shield", "ring", "knight"), ("sword", "knight", "wizard", "fish", "cat")
DRAWS = 32  # uniform numbers per picture
BLOCK = 4096  # pictures that are painted at once
KIND = {name: k + 1 for k, name in enumerate(VALUES["kind"])}


def uniform(seed: int, index: np.ndarray, n: int, stream: int = 0) -> np.ndarray:
    """Uniform numbers (N, n) in [0, 1) that are functions of (seed, stream, index, column) alone."""
    with np.errstate(over="ignore"):
        key = _mixed(_mixed(np.array([seed], np.uint64)) + np.uint64(stream))
        at = (np.asarray(index, np.uint64)[:, None] << np.uint64(8)) + np.arange(n, dtype=np.uint64)
        return (_mixed(at + key) >> np.uint64(11)) * 2.0**-53


def _mixed(at: np.ndarray) -> np.ndarray:
    """Pseudorandom bits of uint64 integers: splitmix64 (Steele et al. 2014, doi:10.1145/2660193.2660195, fig. 13)."""
    at = (at + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    at = (at ^ (at >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    at = (at ^ (at >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return at ^ (at >> np.uint64(31))


def attributes(index: Sequence[int] | np.ndarray, seed: int = 0) -> np.ndarray:
    """The attributes (N, 7) int64 of pictures, in the order of `ATTRIBUTES`; 0 where one does not apply."""
    u = uniform(seed, np.asarray(index), len(ATTRIBUTES))
    odds = np.cumsum(ODDS) / np.sum(ODDS)
    table = np.stack([1 + (u[:, j] * len(VALUES[name])).astype(int) for j, name in enumerate(ATTRIBUTES)], 1)
    table[:, 0] = kind = 1 + np.searchsorted(odds, u[:, 0], side="right")
    column = dict(zip(ATTRIBUTES, table.T, strict=True))  # views of the table
    people = kind == KIND["knight"]
    column["item"][~people] = 0
    column["second"][~((people & (column["item"] == 3)) | (kind == KIND["wizard"]))] = 0
    column["material"][~np.isin(kind, [KIND[name] for name in WITH_METAL])] = 0
    column["pose"][~np.isin(kind, [KIND[name] for name in WITH_POSE])] = 0
    shape = np.zeros(len(kind), int)
    for name, among in SHAPES.items():
        mine = kind == KIND[name]
        shape[mine] = 1 + np.array(among)[(u[mine, ATTRIBUTES.index("shape")] * len(among)).astype(int)]
    column["shape"][:] = shape
    return table


def held_out(table: np.ndarray) -> np.ndarray:
    """Whether the combinations of attributes (N, 7) are held out of training, (N,) bool; see the module."""
    kind, colour, second = (table[:, ATTRIBUTES.index(name)] - 1 for name in ("kind", "colour", "second"))
    return ((3 * kind + colour) % 7 == 2) | ((second >= 0) & ((colour + 2 * second) % 7 == 3))


def draw_scenes(table: np.ndarray, index: Sequence[int] | np.ndarray, seed: int = 0) -> np.ndarray:
    """The pictures (N, 16, 16, 3) uint8 on white of attributes (N, 7).

    Args:
        index: numbers of the pictures: shades, skins and strides are functions of (seed, index).
    """
    index = np.asarray(index)
    blocks = [slice(at, at + BLOCK) for at in range(0, len(index), BLOCK)]
    made = [_draw(table[block], uniform(seed, index[block], DRAWS, stream=1)) for block in blocks]
    return np.concatenate(made) if made else np.zeros((0, 16, 16, 3), np.uint8)


def _draw(table: np.ndarray, u: np.ndarray) -> np.ndarray:
    column = dict(zip(ATTRIBUTES, table.T, strict=True))
    figure = np.zeros((len(table), 16, 16), int)
    for k, name in enumerate(VALUES["kind"], 1):
        mine = column["kind"] == k
        figure[mine] = _figures(name, {key: v[mine] for key, v in column.items()}, u[mine])
    left = column["pose"] == 1
    figure[left] = figure[left, :, ::-1]
    return paint(figure, _colours(column, u))


def _figures(kind: str, a: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
    """The materials (N, 16, 16) of pictures of one kind, facing or pointing right."""
    if kind == "potion":
        return np.stack(_halves(things.FLASKS, 1))[a["shape"] - 1]
    if kind == "shield":
        return np.stack(_halves(things.SHIELDS, 1))[(a["shape"] == 4).astype(int)]
    if kind in ("knight", "wizard"):
        return _person(kind, a["item"], u)
    drawing = {
        "sword": lambda: _whole(things.SWORD, 1)[0],
        "ring": lambda: _halves(things.RING, 1)[0],
        "slime": lambda: _halves(parts.MONSTERS, 1)[0],
        "ghost": lambda: _halves(parts.MONSTERS, 1)[1],
        "fish": lambda: _whole(parts.FOODS_2, 1)[2][:, ::-1],
        "cat": lambda: _whole(parts.ANIMALS, 2)[1],
        "mushroom": lambda: _halves(parts.FOODS, 1)[4],
    }[kind]()
    return np.repeat(drawing[None], len(u), 0)


def _person(kind: str, item: np.ndarray, u: np.ndarray) -> np.ndarray:
    heads, bodies = _whole(parts.SIDE_HEADS, 0, 3), _whole(parts.SIDE_BODIES, 8, 3)
    strides, held = _whole(parts.STRIDES, 12, 3), np.stack(_whole(things.HELD, 0, 10))
    if kind == "wizard":
        head = np.where(heads[4] == LETTERS.index("h"), LETTERS.index("c"), heads[4])  # hat and beard in the robe's
        figure = np.repeat(_stack(strides[3], bodies[1], head)[None], len(u), 0)
        return _stack(figure, np.repeat(held[3:], len(u), 0))
    legs = np.stack(strides[:3])[(u[:, 0] * 3).astype(int)]
    figure = _stack(legs, np.repeat(bodies[1][None], len(u), 0), np.repeat(heads[2][None], len(u), 0))
    return _stack(figure, held[item - 1])


def _colours(a: dict[str, np.ndarray], u: np.ndarray) -> dict[str, tuple]:
    """Hue, saturation and value of each letter, (N,) each; jitter is small beside the distance of the named colours."""

    def near(table: Sequence[tuple], which: np.ndarray, first: int) -> tuple:
        h, s, v = np.array(table, float)[which].T
        jitter = u[:, first : first + 3].T - 0.5
        return h + 8 * jitter[0], (s + 0.10 * jitter[1]).clip(0, 1), (v + 0.10 * jitter[2]).clip(0, 1)

    def any_of(table: Sequence[tuple], first: int) -> tuple:
        return near(table, (u[:, first] * len(table)).astype(int), first + 1)

    main = near(HUES, a["colour"] - 1, 1)
    second = near(HUES, np.maximum(a["second"] - 1, 0), 4)
    plain = a["second"] == 0  # g is a part of the same colour: a fish's tail
    return {
        "c": main,
        "g": tuple(np.where(plain, m, s) for m, s in zip(main, second, strict=True)),
        "p": (main[0], main[1] * 0.9, main[2] * 0.6),
        "m": near(METALS, np.maximum(a["material"] - 1, 0), 7),
        "w": any_of(WOODS, 10),
        "s": any_of(SKINS, 14),
        "h": any_of(WOODS, 18),
    }
