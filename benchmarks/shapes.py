"""A folder of drawn shapes, for trying 64 and more pixels without a download: python -m benchmarks.shapes FOLDER.

A coloured disc, square, triangle or star of random size, place and turn before a two-coloured gradient; image k is a
function of the seed and k.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import trange

FINE = 4  # drawn at this multiple of the size and reduced, for smooth edges
SHAPES = ("disc", "square", "star", "triangle")


def draw(kind: str, size: int, random: np.random.RandomState) -> Image.Image:
    """One picture of size x size pixels."""
    n = size * FINE
    one, two = random.randint(0, 256, (2, 3))
    turn = random.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    share = ((math.cos(turn) * x + math.sin(turn) * y) / math.sqrt(2) + 1)[..., None] / 2
    picture = Image.fromarray((one * (1 - share) + two * share).round().astype(np.uint8))
    radius = random.uniform(0.2, 0.42) * n
    centre = random.uniform(radius, n - radius, 2)
    start = random.uniform(0, 2 * math.pi)
    colour = tuple(random.randint(0, 256, 3).tolist())
    pen = ImageDraw.Draw(picture)
    if kind == "disc":
        pen.ellipse((*(centre - radius), *(centre + radius)), fill=colour)
    else:
        corners = {"square": 4, "triangle": 3, "star": 10}[kind]
        lengths = [radius * (0.45 if kind == "star" and k % 2 else 1) for k in range(corners)]
        angles = [start + 2 * math.pi * k / corners for k in range(corners)]
        pen.polygon(
            [tuple(centre + r * np.array([math.cos(a), math.sin(a)])) for r, a in zip(lengths, angles, strict=True)],
            colour,
        )
    return picture.resize((size, size), Image.Resampling.BOX)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="written: FOLDER/<shape>/<number>.png")
    parser.add_argument("--n", type=int, default=4000, help="number of images (default: 4000)")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    args = parser.parse_args(argv)
    for k in trange(args.n, unit="image"):
        kind = SHAPES[k % len(SHAPES)]
        path = args.folder / kind / f"{k:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(kind, args.size, np.random.RandomState([args.seed, k])).save(path)
    print(f"next:\n  diffusion prepare {args.folder} --out {args.folder}-{args.size} --size {args.size}")


if __name__ == "__main__":
    main()
