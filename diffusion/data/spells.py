"""Spells for `sprite_art`: scalar fields on a 16x16 grid, quantised to four tones from a pale core to a dark rim."""

from __future__ import annotations

import numpy as np

from diffusion.data.palette import ramp

Y, X = np.mgrid[-7.5:8, -7.5:8]  # (16,16) pixel centres


def draw_spells(n: int, random: np.random.RandomState) -> np.ndarray:
    """Draw n spells of nine types.

    Returns:
        (N,16,16,3) uint8 on white.
    """
    kinds = (_fireball, _bolt, _swirl, _star, _orb, _nova, _ice, _slash, _sparks)
    kind = random.randint(len(kinds), size=n)
    energy = np.zeros((n, 16, 16))
    for i, field in enumerate(kinds):
        energy[kind == i] = field(random, int((kind == i).sum()))
    hue = random.rand(n) * 360
    tones = ramp(hue, 0.62 + 0.3 * random.rand(n), 0.86 + 0.12 * random.rand(n))  # (N,4,3), dark to light
    second = ramp(hue + random.choice([-35, 0, 25, 40], n), 0.5 + 0.3 * random.rand(n), np.full(n, 0.97))
    palette = np.stack([np.ones((n, 3)), tones[:, 0] * 0.62, tones[:, 1], second[:, 2], 0.2 * tones[:, 3] + 0.8], 1)
    tone = np.digitize(energy, [0.06, 0.26, 0.48, 0.72])
    bright = np.pad(tone >= 2, ((0, 0), (1, 1), (1, 1)))
    near = bright[:, :-2, 1:-1] | bright[:, 2:, 1:-1] | bright[:, 1:-1, :-2] | bright[:, 1:-1, 2:]
    tone[(tone == 0) & near] = 1
    tone[:, [0, -1]] = np.minimum(tone[:, [0, -1]], 1)  # border pixels belong to the rim
    tone[:, :, [0, -1]] = np.minimum(tone[:, :, [0, -1]], 1)
    return np.rint(palette[np.arange(n)[:, None, None], tone] * 255).astype(np.uint8)


def _draw(random: np.random.RandomState, n: int, low: float, high: float) -> np.ndarray:
    return (low + (high - low) * random.rand(n))[:, None, None]


def _turned(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return X * np.cos(angle) + Y * np.sin(angle), Y * np.cos(angle) - X * np.sin(angle)


def _fireball(random: np.random.RandomState, n: int) -> np.ndarray:
    a, b = _turned(np.pi / 4 * random.randint(8, size=(n, 1, 1)) + _draw(random, n, -0.2, 0.2))
    size, flicker = _draw(random, n, 4.6, 5.8), _draw(random, n, 0, 6.28)
    head = 1.15 - np.hypot(a - 2.0, b) / size
    reach = ((a + 8) / 11).clip(0.02, 1)
    tail = 0.85 * reach + 0.15 - np.abs(b + 0.8 * np.sin(a + flicker) * (1 - reach)) / (size * reach)
    return np.maximum(head, np.where(a < 3, tail, 0))


def _bolt(random: np.random.RandomState, n: int) -> np.ndarray:
    rows = np.linspace(-7, 7, random.randint(4, 6))
    joints = random.uniform(2, 4.5, (n, len(rows))) * (-1) ** np.arange(len(rows)) * random.choice([-1, 1], (n, 1))
    joints += np.linspace(1, -1, len(rows)) * random.uniform(-2.5, 2.5, (n, 1))
    distance = np.full((n, 16, 16), 99.0)
    for i in range(len(rows) - 1):
        px, py, qx, qy = joints[:, i, None, None], rows[i], joints[:, i + 1, None, None], rows[i + 1]
        along = (((X - px) * (qx - px) + (Y - py) * (qy - py)) / ((qx - px) ** 2 + (qy - py) ** 2)).clip(0, 1)
        distance = np.minimum(distance, np.hypot(X - px - along * (qx - px), Y - py - along * (qy - py)))
    return 1.0 - distance / _draw(random, n, 1.9, 2.5)


def _swirl(random: np.random.RandomState, n: int) -> np.ndarray:
    r, angle = np.hypot(X, Y), np.arctan2(Y, X)
    arms, twist = random.randint(1, 4, (n, 1, 1)), _draw(random, n, 0.6, 1.0) * random.choice([-1, 1], (n, 1, 1))
    wave = np.cos(arms * angle + twist * r + _draw(random, n, 0, 6.28))
    return np.where(r < 7.3, 0.42 + 0.55 * wave - 0.02 * r, 0) + 0.7 * (1 - r / 2.6).clip(0)


def _star(random: np.random.RandomState, n: int) -> np.ndarray:
    r, angle = np.hypot(X, Y), np.arctan2(Y, X)
    points, turn = random.choice([4, 5, 6, 8], (n, 1, 1)), _draw(random, n, 0, 0.5)
    inner, sharp = _draw(random, n, 2.4, 3.4), _draw(random, n, 1.2, 2.4)
    ray = np.abs(np.cos(points * (angle + np.pi / 2 - turn * (points > 4)) / 2)) ** sharp
    return 1.06 - r / (inner + (7.6 - inner) * ray)


def _orb(random: np.random.RandomState, n: int) -> np.ndarray:
    size, turn = _draw(random, n, 4.2, 6.4), _draw(random, n, 0, 6.28)
    shine = 0.5 * (1 - np.hypot(X + size * 0.35, Y + size * 0.35) / (size * 0.42)).clip(0)
    dim = 0.5 * (np.hypot(X + size * 0.2, Y + size * 0.2) / size - 0.4).clip(0)
    ball = (0.62 - dim + shine) * (np.hypot(X, Y) < size)
    for i in range(3):
        moon = turn + 2.09 * i
        ball = np.maximum(ball, 0.9 - np.hypot(X - 6.6 * np.cos(moon), Y - 6.6 * np.sin(moon)) / 1.5)
    return ball


def _nova(random: np.random.RandomState, n: int) -> np.ndarray:
    r, angle = np.hypot(X, Y), np.arctan2(Y, X)
    waves, turn, radius = random.randint(4, 9, (n, 1, 1)), _draw(random, n, 0, 6.28), _draw(random, n, 4.4, 5.6)
    ring = 0.95 - np.abs(r - radius - _draw(random, n, 0, 0.9) * np.cos(waves * angle + turn)) / 1.7
    return np.maximum(ring, _draw(random, n, 0.7, 1.1) - r / _draw(random, n, 1.5, 3.0))


def _ice(random: np.random.RandomState, n: int) -> np.ndarray:
    arms, turn = random.choice([4, 6, 8], (n, 1, 1)), np.pi / 2 * random.randint(2, size=(n, 1, 1))
    r, sector = np.hypot(X, Y), 2 * np.pi / arms
    angle = np.abs((np.arctan2(Y, X) + turn + sector / 2) % sector - sector / 2)
    along, off = r * np.cos(angle), r * np.sin(angle)
    twig = np.abs(along - off - _draw(random, n, 3.2, 5.0)) / 1.1 + (off > 2.4) * 3
    return np.where(r < _draw(random, n, 6.6, 7.6), np.maximum(1.0 - off / 1.15, 0.75 - twig), 0)


def _slash(random: np.random.RandomState, n: int) -> np.ndarray:
    a, b = _turned(_draw(random, n, 0, 6.28))
    depth = _draw(random, n, 3.0, 4.8)
    outer, inner = 6.9 - np.hypot(a, b), np.hypot(a + depth, b) - 6.3
    return np.minimum(outer, inner) / _draw(random, n, 1.6, 2.2)


def _sparks(random: np.random.RandomState, n: int) -> np.ndarray:
    energy, turn = np.zeros((n, 16, 16)), _draw(random, n, 0, 6.28)
    count = random.randint(3, 6, (n, 1, 1))
    for i in range(5):
        place, size = turn + 2 * np.pi * i / count, _draw(random, n, 2.2, 3.6)
        x, y = np.abs(X - np.rint(4.2 * np.cos(place)) - 0.5), np.abs(Y - np.rint(4.2 * np.sin(place)) - 0.5)
        spark = 1.05 - (x + y + 2.2 * np.sqrt(x * y)) / size
        energy = np.maximum(energy, np.where(i < count, spark, 0))
    return energy
