"""Sources for the tests of `prepare`, and what it made of them."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusion.preparing.prepare import prepare


class Made:
    """A prepared folder, read back."""

    def __init__(self, folder):
        self.folder = folder
        self.facts = json.loads((folder / "dataset.json").read_text())
        self.manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        self.by_name = {line["file"]: line for line in self.manifest}
        shards = [np.load(folder / s["file"]) for s in self.facts["shards"]]
        self.stored = np.concatenate(shards)
        self.rows = np.load(folder / "rows.npy")
        self.images = self.stored[self.rows]
        self.split = np.load(folder / "split.npy")

    @property
    def labels(self):
        return np.load(self.folder / "labels.npy")

    @property
    def captions(self):
        return [json.loads(line) for line in (self.folder / "captions.jsonl").read_text().splitlines()]

    def image(self, name):
        """The stored image of a file."""
        return self.stored[self.by_name[name]["row"]]


@pytest.fixture
def make(tmp_path):
    """A function that prepares a source into a new folder."""
    count = iter(range(100))

    def run(source, **words):
        out = tmp_path / f"out{next(count)}"
        prepare(source, out, **{"workers": 1, "max_bad": 1, **words})
        return Made(out)

    return run


@pytest.fixture
def picture():
    """A function that makes a colourful random image (h, w, 3) with smooth areas."""

    def draw(seed, h=24, w=24):
        random = np.random.default_rng(seed)
        small = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
        return np.asarray(small.resize((w, h), Image.Resampling.BICUBIC))

    return draw


@pytest.fixture
def photos(tmp_path, picture):
    """A folder of two classes, 12 PNG images each."""
    folder = tmp_path / "photos"
    for k, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(picture(100 * k + i)).save(folder / name / f"{i}.png")
    return folder
