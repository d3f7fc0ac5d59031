"""Images per second and core of `diffusion prepare`, and its memory.

    python -m benchmarks.prepare [SOURCE ...] [--mixed N] [--sizes 32 64 256]

Times are CPU seconds of one process, so other programs on the machine change them little. Without a source, 500 JPEGs
of 500x375 are made; `--mixed` makes N JPEGs of 72 to 320 pixels, of many shapes, in ten folders of classes.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.preparing.prepare import prepare


def photos(folder: Path, count: int = 500) -> Path:
    """JPEGs of 500x375 with the detail of photographs, about 60 KB each."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        small = Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8)).resize((500, 375))
        noise = random.normal(0, 8, (375, 500, 1))
        pixels = np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
    return folder


def mixed(folder: Path, count: int) -> Path:
    """JPEGs with sides of 72 to 320 pixels in ten folders of classes."""
    for i in range(count):
        random = np.random.default_rng(i)
        wide, high = random.integers(72, 321, 2)
        small = Image.fromarray(random.integers(0, 256, (high // 12, wide // 12, 3), np.uint8))
        (folder / str(i % 10)).mkdir(parents=True, exist_ok=True)
        small.resize((wide, high)).save(folder / str(i % 10) / f"{i}.jpg", quality=90)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", help="see `diffusion prepare`")
    parser.add_argument("--mixed", type=int, default=0, help="make so many JPEGs of mixed size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--scratch", help="where images and results are written; default the folder of temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        made = [str(mixed(Path(scratch) / "mixed", args.mixed))] if args.mixed else []
        sources = args.sources + made or [str(photos(Path(scratch) / "photos"))]
        print("| source | images | size | images/s and core | seconds | peak MiB |\n|---|---|---|---|---|---|")
        for source in sources:
            for size in args.sizes:
                out, began, clock = Path(scratch) / "out" / f"{size}", time.process_time(), time.perf_counter()
                try:
                    prepare(source, out, size=size, workers=1, max_bad=1)
                except ValueError as error:
                    print(f"| {source} | | {size} | {error} | | |")
                    continue
                images, spent = len(np.load(out / "rows.npy")), time.perf_counter() - clock
                rate = images / (time.process_time() - began)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"| {Path(source).name} | {images:,} | {size} | {rate:,.0f} | {spent:,.0f} | {memory:,.0f} |")


if __name__ == "__main__":
    main()
