"""Draws 16x16 sprites: parts are put together, coloured from ramps, shaded from the top left and outlined.

All in whole arrays over N sprites; 7,500 take less than a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion.data import sprite_parts as parts
from diffusion.data.palette import ramp
from diffusion.data.spells import draw_spells

LETTERS = ".shcpmwgke"  # the index of a letter is its material number
SKINS = ((26, 0.38, 0.98), (24, 0.48, 0.90), (22, 0.55, 0.74), (20, 0.58, 0.56), (30, 0.30, 1.00))  # hue, sat, value
METALS = ((215, 0.10, 0.82), (210, 0.22, 0.68), (42, 0.62, 0.92), (24, 0.55, 0.72), (265, 0.18, 0.72))
WOODS = ((28, 0.62, 0.58), (22, 0.68, 0.46), (34, 0.52, 0.68))
BONES = ((44, 0.12, 0.97), (60, 0.18, 0.88), (200, 0.10, 0.92))
# For each drawing of FOODS, FOODS_2 and FOODS_3: hue ranges of c, of p, of g; degrees. A range may pass 360.
FOOD_HUES = (
    ((340, 440), (0, 20), (90, 130)), ((0, 360), (0, 360), (0, 360)), ((345, 410), (30, 50), (340, 360)),
    ((28, 38), (22, 30), (90, 130)), ((350, 400), (0, 360), (90, 130)), ((330, 400), (28, 36), (0, 360)),
    ((0, 360), (0, 360), (0, 360)), ((320, 395), (40, 200), (90, 130)), ((50, 95), (60, 90), (90, 130)),
    ((30, 36), (95, 125), (350, 370)), ((30, 44), (25, 40), (90, 130)), ((20, 40), (190, 260), (90, 130)),
    ((345, 370), (0, 20), (90, 130)), ((42, 54), (40, 50), (90, 130)), ((150, 400), (0, 360), (170, 260)),
    ((15, 28), (10, 20), (90, 130)), ((14, 30), (20, 30), (95, 130)), ((260, 340), (270, 300), (90, 130)),
    ((345, 362), (0, 10), (100, 140)), ((46, 60), (40, 50), (90, 130)),
)  # fmt: skip


def draw_sprites(per_class: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw sprites of five classes: 0 hero, 1 monster, 2 food, 3 spell, 4 walker seen from the side, facing right.

    Args:
        per_class: sprites of each class, >= 1.
        seed: the same seed draws the same sprites on every machine.

    Returns:
        (5 * per_class, 16, 16, 3) uint8 images on white, all different, and their (5 * per_class,) int64 classes,
        in the order of the classes.

    Raises:
        ValueError: for per_class < 1.
    """
    if per_class < 1:
        raise ValueError(f"draw_sprites: wanted per_class >= 1, got {per_class}")
    painters = (_heroes, _monsters, _foods, draw_spells, _walkers)
    images = [paint(per_class, np.random.RandomState((seed, i))) for i, paint in enumerate(painters)]
    return np.concatenate(images), np.repeat(np.arange(5), per_class)


def _heroes(n: int, random: np.random.RandomState) -> np.ndarray:
    body, head = _pick(random, n, _halves(parts.BODIES, 8)), _pick(random, n, _halves(parts.HEADS, 0))
    item, shield = _items()
    weapon = _pick(random, n, [*item, np.zeros_like(item[0])])
    guard = _pick(random, n, [*shield, *[np.zeros_like(item[0])] * 3])
    figure = _stack(body, head, weapon, guard)
    left_handed = random.rand(n) < 0.3
    figure[left_handed] = figure[left_handed, :, ::-1]
    return paint(figure, _people(random, n))


def _monsters(n: int, random: np.random.RandomState) -> np.ndarray:
    shapes = [*_halves(parts.MONSTERS, 1), *_halves(parts.MONSTERS_2, 1)]
    figure = _pick(random, n, shapes)
    tall = figure[:, 1:3].any((1, 2)) | (random.rand(n) < 0.5)
    figure[~tall] = np.concatenate([np.zeros_like(figure[~tall, :1]), figure[~tall, :-1]], 1)  # a short one may crouch
    colours = _people(random, n)
    hue = random.rand(n) * 360
    colours["c"] = hue, 0.35 + 0.45 * random.rand(n), 0.62 + 0.33 * random.rand(n)
    other = hue + random.choice([-60, 40, 150, 200], n)
    colours["p"] = other, 0.45 + 0.35 * random.rand(n), 0.5 + 0.35 * random.rand(n)
    colours["m"] = _choose(random, n, BONES + METALS[1:2])
    colours["g"] = random.choice([0, 15, 52, 120, 185, 300], n), 0.85 + 0 * hue, 0.98 + 0 * hue
    return paint(figure, colours)


def _foods(n: int, random: np.random.RandomState) -> np.ndarray:
    shapes = np.stack([*_halves(parts.FOODS, 1), *_whole(parts.FOODS_2, 1), *_whole(parts.FOODS_3, 1)])
    kind = random.randint(len(shapes), size=n)
    figure = shapes[kind]
    mirrored = random.rand(n) < 0.5
    figure[mirrored] = figure[mirrored, :, ::-1]
    colours = _people(random, n)
    for j, letter in enumerate("cpg"):
        low, high = np.array([hues[j] for hues in FOOD_HUES], float)[kind].T
        colours[letter] = low + (high - low) * random.rand(n), 0.62 + 0.28 * random.rand(n), 0.78 + 0.2 * random.rand(n)
    colours["s"] = 38 + 8 * random.rand(n), 0.1 + 0.25 * random.rand(n), 0.95 + 0 * mirrored
    return paint(figure, colours)


def _walkers(n: int, random: np.random.RandomState) -> np.ndarray:
    head, body = _pick(random, n, _whole(parts.SIDE_HEADS, 0, 3)), _pick(random, n, _whole(parts.SIDE_BODIES, 8, 3))
    legs = _pick(random, n, _whole(parts.STRIDES, 12, 3))
    item = [np.roll(item, -1, axis=1) for item in _items()[0]]
    held = _pick(random, n, [*item, *[np.zeros_like(item[0])] * 6])
    figure = _stack(legs, body, held, head)
    colours = _people(random, n)
    animal = random.rand(n) < 0.3
    figure[animal] = _pick(random, int(animal.sum()), _whole(parts.ANIMALS, 2))
    fur = random.choice([0, 22, 28, 34, 42, 215], n) + 8 * random.rand(n)
    for letter, share in (("c", 1.0), ("p", 0.62)):
        for i, value in enumerate((fur, 0.15 + 0.5 * random.rand(n), (0.5 + 0.4 * random.rand(n)) * share)):
            colours[letter][i][animal] = value[animal]
    colours["g"][0][animal], colours["g"][1][animal] = random.choice([0, 48], int(animal.sum())), 0.85
    return paint(figure, colours)


def paint(figure: np.ndarray, colours: dict[str, tuple]) -> np.ndarray:
    """Colour, shade and outline.

    Args:
        figure: (N,16,16) numbers of materials, 0 where there is nothing.
        colours: a letter's hue in degrees, saturation and value in [0, 1], each (N,).

    Returns:
        (N,16,16,3) uint8 on white.
    """
    n = len(figure)
    ramps = np.zeros((n, len(LETTERS), 4, 3))
    for i, letter in enumerate(LETTERS):
        if letter in colours:
            ramps[:, i] = ramp(*colours[letter])
    ramps[:, LETTERS.index("k")] = ramps[:, LETTERS.index("c"), :1] * 0.22
    ramps[:, LETTERS.index("e")] = np.array([[216, 216, 228], [240, 240, 246], [252, 252, 252], [255, 255, 255]]) / 255
    around = np.pad(figure, ((0, 0), (1, 1), (1, 1)))
    up, down, left, right = around[:, :-2, 1:-1], around[:, 2:, 1:-1], around[:, 1:-1, :-2], around[:, 1:-1, 2:]
    edge = 1.0 * (up != figure) + 0.6 * (left != figure) - 1.0 * (down != figure) - 0.8 * (right != figure)
    y, x = np.mgrid[-7.5:8, -7.5:8]
    tone = np.rint(1.45 + 0.75 * edge - 0.10 * y - 0.06 * x).clip(0, 3).astype(int)  # light comes from the top left
    image = ramps[np.arange(n)[:, None, None], figure, tone]
    image[figure == 0] = 1.0
    outline = (figure == 0) & ((up > 0) | (down > 0) | (left > 0) | (right > 0))
    dark = ramps[:, LETTERS.index("c"), 0] * 0.35  # (N,3)
    return np.rint(np.where(outline[..., None], dark[:, None, None], image) * 255).astype(np.uint8)


def _people(random: np.random.RandomState, n: int) -> dict[str, tuple]:
    hue, gold = random.rand(n) * 360, random.choice([46.0, 50, 0, 130, 200, 290], n)
    dyed = random.rand(n) < 0.25
    shade = random.choice([0.25, 0.45, 0.65, 0.92], n)
    natural = random.choice([18, 24, 30, 44, 48], n), 0.3 + 0.5 * random.rand(n), shade
    return {
        "s": _choose(random, n, SKINS),
        "h": (
            np.where(dyed, random.rand(n) * 360, natural[0]),
            np.where(dyed, 0.65, natural[1]),
            np.where(dyed, 0.8, natural[2]),
        ),
        "c": (hue, 0.5 + 0.4 * random.rand(n), 0.6 + 0.35 * random.rand(n)),
        "p": (hue + random.choice([30, 120, 180, 220], n), 0.3 + 0.45 * random.rand(n), 0.4 + 0.4 * random.rand(n)),
        "m": _choose(random, n, METALS),
        "w": _choose(random, n, WOODS),
        "g": (gold, 0.6 + 0.3 * random.rand(n), 0.88 + 0.1 * random.rand(n)),
    }


def _choose(random: np.random.RandomState, n: int, colours: Sequence[tuple]) -> tuple:
    h, s, v = np.array(colours, float)[random.randint(len(colours), size=n)].T
    return h + 6 * random.rand(n), s + 0.05 * random.rand(n), v * (0.94 + 0.06 * random.rand(n))


def _pick(random: np.random.RandomState, n: int, shapes: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(shapes)[random.randint(len(shapes), size=n)]


def _stack(*layers: np.ndarray) -> np.ndarray:
    figure = layers[0].copy()
    for layer in layers[1:]:
        figure = np.where(layer > 0, layer, figure)
    return figure


def _whole(block: str, row: int, column: int = 0) -> list[np.ndarray]:
    """The drawings of a block, each (16,16), with its corner at (row, column)."""
    rows = [line.split() for line in block.strip().splitlines()]
    shapes = []
    for lines in zip(*rows, strict=True):
        drawing = np.array([[LETTERS.index(letter) for letter in line] for line in lines])
        shape = np.zeros((16, 16), int)
        shape[row : row + drawing.shape[0], column : column + drawing.shape[1]] = drawing
        shapes.append(shape)
    return shapes


def _halves(block: str, row: int) -> list[np.ndarray]:
    return [shape + shape[:, ::-1] for shape in _whole(block, row)]


def _items() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weapons at the right hand, shields at the left."""
    weapons, shields = _whole(parts.ITEMS, 0, 12), _whole(parts.ITEMS, 0, 1)
    return weapons[:6], shields[6:]
