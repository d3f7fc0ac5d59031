"""Requests become pictures, and the command line of each makes the same files."""

import math
import shlex
from threading import Event

import numpy as np
import pytest
from PIL import Image

from diffusion.cli import main
from diffusion.exchange.serving import answers
from diffusion.exchange.serving.answers import Desk, Stopped, covered, difference, enlarged, fitted
from diffusion.exchange.serving.ask import Ask, Limits, samplers
from diffusion.exchange.serving.shelf import Shelf

DIGITS, SPRITES = "runs/digits/version_0", "runs/sprites/version_0"


@pytest.fixture
def desk(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return Desk(Shelf(["runs"], "cpu"))


def same(answer, tmp_path, monkeypatch, folder):
    """Run an answer's command in a folder with links to the runs and its input files, and compare the bytes."""
    for name in ("runs", *(file.name for file in answer.files[1:])):
        source = folder / name if name == "runs" else answer.files[0].parent / name
        (tmp_path / name).symlink_to(source)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(answer.command)
    assert words[0] == "diffusion" and main([*words[1:], "--device", "cpu"]) == 0
    return (tmp_path / words[-1]).read_bytes() == answer.files[0].read_bytes()


SAMPLES = [
    Ask(DIGITS, 3, seed=7),
    Ask(DIGITS, 4, labels=["3", "5"], sampler="DDPM", steps=5, scale=2.0, seed=1),
    Ask(f"{DIGITS}/checkpoints/step00000010.ckpt", 2, sampler="Heun", steps=4, scale=1.0),
    Ask(SPRITES, 2, labels=["spell", "food, raw"], steps=4),
    Ask(SPRITES, 2, mix={"hero": 0.35, "food, raw": -0.5, "spell": 0.0}, steps=4),
    Ask(SPRITES, 2, mix={"hero": 0.0, "spell": 0.0}, steps=4),
]


@pytest.mark.parametrize("ask", SAMPLES, ids=range(len(SAMPLES)))
def test_the_command_makes_the_same_grid(ask, desk, folder, tmp_path, monkeypatch, tmp_path_factory):
    made = desk.sample(ask, tmp_path_factory.mktemp("answer"))
    assert made.images.shape[0] == ask.n and len(made.files) == 1
    assert same(made, tmp_path, monkeypatch, folder)


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_the_command_makes_the_same_film(suffix, desk, folder, tmp_path, monkeypatch, tmp_path_factory):
    if suffix == ".mp4":
        pytest.importorskip("av")
    made = desk.film(Ask(DIGITS, 4, steps=6, scale=2.0, seed=3), tmp_path_factory.mktemp("answer"), suffix)
    assert same(made, tmp_path, monkeypatch, folder)


@pytest.mark.parametrize("how", [{}, {"mask": "left"}, {"mask": "random"}, {"strength": 0.4}])
def test_the_command_makes_the_same_edit(how, desk, folder, tmp_path, monkeypatch, tmp_path_factory):
    picture = Image.fromarray(np.arange(64 * 48, dtype=np.uint32).reshape(48, 64).astype(np.uint8))
    drawn = Image.new("RGBA", picture.size)
    drawn.paste((255, 0, 0, 255), (0, 0, 30, 48))
    verb, n = ("img2img", 1) if "strength" in how else ("inpaint", 2)
    ask = Ask(DIGITS, n, labels=["3"], steps=4, seed=5)
    made = desk.edit(verb, ask, picture, drawn, tmp_path_factory.mktemp("answer"), **how)
    assert made.images.shape == (n, 8, 8, 1)
    assert same(made, tmp_path, monkeypatch, folder)


def test_comparison_is_of_the_same_noise(desk, tmp_path):
    one, two, far = Ask(DIGITS, 2, steps=5), Ask(DIGITS, 2, sampler="DDIM", steps=5), Ask(DIGITS, 2, steps=2)
    a, b = desk.compare([one, two], tmp_path)
    assert difference(a, b) == 0 and {file.name for file in a.files + b.files} == {"a.png", "b.png"}
    a, b = desk.compare([one, far], tmp_path)
    assert difference(a, b) > 0 and (a.evaluations, b.evaluations) == (5, 2)


def test_progress_ends_at_one(desk, tmp_path):
    parts = []
    desk.sample(Ask(DIGITS, 2, sampler="Heun", steps=4), tmp_path, parts.append)
    assert parts == sorted(parts) and parts[-1] == 1 and len(parts) > 4


def test_a_request_is_stopped_or_ends_when_its_time_is_up(desk, tmp_path):
    stop = Event()
    stop.set()
    with pytest.raises(Stopped):
        desk.sample(Ask(DIGITS, 2), tmp_path, stop=stop)
    with pytest.raises(TimeoutError, match="ended after 0 seconds"):
        Desk(desk.shelf, Limits(seconds=0)).sample(Ask(DIGITS, 2), tmp_path)
    assert not list(tmp_path.iterdir())


BAD = [
    (Ask("../outside/version_0"), "no such model"),
    (Ask("/etc/passwd"), "no such model"),
    (Ask("runs/leads_out/version_0"), "no such model"),
    (Ask("runs/one"), "no such model"),
    (Ask(None), "no such model"),
    (Ask(DIGITS, 65), "from 1 to 64, got 65"),
    (Ask(DIGITS, 10**400), "from 1 to 64, got a huge"),
    (Ask(DIGITS, 10**5000), "got a huge number"),
    (Ask(DIGITS, 1e308), "from 1 to 64"),
    (Ask(DIGITS, math.nan), "from 1 to 64, got nan"),
    (Ask(DIGITS, 1.5), "whole number"),
    (Ask(DIGITS, "8; rm -rf"), "got 8; rm -rf"),
    (Ask(DIGITS, True), "got True"),
    (Ask(DIGITS, seed=-1), "seed"),
    (Ask(DIGITS, seed=2**64), "seed"),
    (Ask(DIGITS, steps=1001), "steps: wanted a number from 1 to 1,000"),
    (Ask(DIGITS, scale=math.inf), "guidance: wanted"),
    (Ask(DIGITS, sampler="os.system"), "there is no os.system"),
    (Ask(DIGITS, sampler="../my.Walk"), "choose one of the list"),
    (Ask(DIGITS, labels=["<img src=x onerror=alert(1)>" * 1000]), "labels are 0 .. 9"),
    (Ask(DIGITS, labels=["1"] * 65), "at most 64, got 65"),
    (Ask(DIGITS, mix={"1": 1.0}), "conditioned on single classes"),
    (Ask(SPRITES, mix={"hero": 1e9}), "mix, hero: wanted a number from -4.0 to 4.0"),
    (Ask(SPRITES, mix={"nobody": 1.0}), "labels are 0 .. 2"),
    (Ask(SPRITES, mix={"hero": 1.0}, labels=["hero"]), "exclude each other"),
]


@pytest.mark.parametrize("ask, said", BAD, ids=range(len(BAD)))
def test_a_bad_request_gets_one_short_line(ask, said, desk, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        desk.sample(ask, tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
    assert not list(tmp_path.iterdir())


def test_edits_without_picture_or_mask_are_refused(desk, tmp_path):
    picture = Image.new("L", (8, 8))
    with pytest.raises(ValueError, match="there is no picture"):
        desk.edit("inpaint", Ask(DIGITS, 1), None, None, tmp_path)
    with pytest.raises(ValueError, match="nothing is drawn"):
        desk.edit("inpaint", Ask(DIGITS, 1), picture, Image.new("RGBA", (8, 8)), tmp_path)
    with pytest.raises(ValueError, match="wanted drawn, left"):
        desk.edit("inpaint", Ask(DIGITS, 1), picture, None, tmp_path, mask="/etc/passwd.png")
    with pytest.raises(ValueError, match="strength: wanted"):
        desk.edit("img2img", Ask(DIGITS, 1), picture, None, tmp_path, strength=2)
    with pytest.raises(ValueError, match="wanted inpaint or img2img"):
        desk.edit("stop", Ask(DIGITS, 1), picture, None, tmp_path)


def test_an_enlarged_picture_is_restored_exactly():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert (fitted(enlarged(image), 3, 8, 8) == image).all()


def test_a_picture_is_cropped_in_the_middle_and_a_drawing_with_it():
    wide = Image.new("L", (30, 10), 0)
    wide.paste(200, (10, 0, 20, 10))
    assert (fitted(wide, 1, 5, 5) == 200).all()
    drawn = Image.new("RGBA", (30, 10))
    drawn.paste((0, 0, 0, 255), (10, 0, 12, 10))
    assert covered(drawn, 5, 5).tolist() == [[True] + 4 * [False]] * 5


def test_every_sampler_is_offered_but_the_abstract_one():
    assert {"DDIM", "DDPM", "Heun", "UniPC"} <= set(samplers()) and "Sampler" not in samplers()


def test_the_library_of_answers_needs_no_gradio():
    assert not hasattr(answers, "gr")
