"""The report: each rule of the advice speaks and is silent where it should; bars, mirror images, the page."""

import html.parser

import numpy as np
import pytest
from PIL import Image

from diffusion.preparing.images.marks import bars
from diffusion.preparing.report.advice import RULES, Figures, advice
from diffusion.preparing.report.contact import _handed

SOUND = Figures(train=9000, test=1000, classes={"a": 4500, "b": 4500})
SPEAKING = {
    "few": {"train": 180, "classes": {"a": 90, "b": 90}},
    "few_of_a_class": {"classes": {"a": 400, "b": 40}},
    "uneven": {"classes": {"a": 8000, "b": 700}},
    "letterboxed": {"bars": 0.2},
    "handed": {"handed": {"a": 0.1, "b": 0.5}},
    "twins": {"near": 500},
    "leaks": {"crossing": 1},
    "enlarged": {"enlarged": 0.2},
    "untested": {"test": 0},
    "numbers": {"columns": ("age",)},
}


def test_sound_data_get_no_advice():
    assert advice(SOUND) == [] and {rule.__name__ for rule in RULES} == SPEAKING.keys()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_speaks_alone(rule):
    figures = Figures(**{**SOUND.__dict__, **SPEAKING[rule.__name__]})
    assert rule(figures) and advice(figures) == [rule(figures)] or rule.__name__ == "few_of_a_class"
    assert rule(SOUND) is None


def test_bars_of_letterboxing(picture):
    image = picture(0, 60, 60).transpose(2, 0, 1).copy()
    assert bars(image) == (0.0, 0.0)
    image[:, :10] = image[:, 50:] = 0
    assert bars(image) == (pytest.approx(20 / 60), 0.0)
    assert bars(image.swapaxes(1, 2)) == (0.0, pytest.approx(20 / 60))
    assert bars(np.zeros((3, 8, 8), np.uint8)) == (0.0, 0.0)
    assert bars(image.astype(np.float32) * 1000)[0] == pytest.approx(20 / 60)


def test_mirror_images_of_one_sided_pictures():
    """A letter in noise is told from noise, whatever the number of images."""
    random = np.random.default_rng(0)
    letter = np.zeros((1, 16, 16))
    letter[0, 2:14, 4] = letter[0, 12:14, 4:12] = 60  # L
    for n in (20, 200, 2000):
        noise = random.normal(100, 20, (n, 1, 16, 16))
        assert _handed(list(noise)) < 0.1 < 0.3 < _handed(list(noise + letter))


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.words = [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_no_other_file(make, photos):
    (photos / "cat/<script>.png").write_bytes(b"bad")
    made = make(photos)
    page = Reader()
    page.feed((made.folder / "report.html").read_text(encoding="utf-8"))
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"]
    words = " ".join(page.words)
    for wanted in ("classes", "cat", "dog", "24 x 24", "cat/<script>.png", "no image of a known kind", "3 x 24 x 24"):
        assert wanted in words
    assert Image.open(made.folder / "contact.png").height > 200
