"""The pictures of the lessons, from the project's own code: python -m docs.learn.pictures [NAME ...]

All of them, or those of the given names, into docs/images. They need matplotlib (`litdiffusion[notebook]`).
"""

import sys
from pathlib import Path

from matplotlib import rc_context
from PIL import Image

from docs.learn import pictures_1_4, pictures_5_8
from docs.learn.style import DPI, STYLE

IMAGES = Path(__file__).resolve().parent.parent / "images"

PICTURES = {f.__name__: f for f in (*pictures_1_4.ALL, *pictures_5_8.ALL)}


def main(folder: str | Path = IMAGES, names: tuple[str, ...] = ()) -> None:
    """Write the pictures, in at most 256 colours."""
    for name in names or PICTURES:
        with rc_context(STYLE):
            path = Path(folder) / f"learn_{name}.png"
            PICTURES[name]().savefig(path, dpi=DPI, facecolor="white")
        Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(names=tuple(sys.argv[1:]))
