"""Images per second and core of `diffusion prepare`, and its memory: `python -m benchmarks.prepare [SOURCE ...]`.

Times are CPU seconds of one process, so other programs on the machine change them little. Without a source, 500 JPEGs
of 500x375 are made.
"""

import resource
import sys
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


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        sources = sys.argv[1:] or [str(photos(Path(scratch) / "photos"))]
        print("| source | size | images/s and core | peak MiB |\n|---|---|---|---|")
        for source in sources:
            for size in (32, 64, 256):
                out, began = Path(scratch) / "out" / f"{size}", time.process_time()
                try:
                    prepare(source, out, size=size, workers=1, max_bad=1)
                except ValueError as error:
                    print(f"| {source} | {size} | {error} | |")
                    continue
                images = len(np.load(out / "rows.npy")) / (time.process_time() - began)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"| {Path(source).name} | {size} | {images:,.0f} | {memory:,.0f} |")


if __name__ == "__main__":
    main()
