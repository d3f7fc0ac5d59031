"""`diffusion edit`: the sheet of each verb equals the library's result for the named pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion import Pipeline, pictures
from diffusion.cli import main
from diffusion.data import Digits
from diffusion.generation import editing
from diffusion.generation.editing import midway
from diffusion.generation.editing.inputs import given_mask
from diffusion.guidance import ClassifierFree

from .test_bad_input import refused

VERBS = ("inpaint", "img2img", "interpolate", "vary", "reconstruct", "stop")


def edit(verb, run, out, *options):
    assert main(["edit", verb, str(run), "--out", str(out), *options]) == 0
    return np.load(out) if out.suffix == ".npz" else np.asarray(Image.open(out))


@pytest.fixture(scope="module")
def given(tiny):
    images, y = (v[[4, 7, 9]] for v in Digits(limit=320).arrays("test"))
    return Pipeline.load(str(tiny)), images.float() / 127.5 - 1, y


def test_each_verb_writes_a_sheet(tiny, tmp_path, capsys):
    rows = {"inpaint": 3, "img2img": 3, "interpolate": 2, "vary": 4, "reconstruct": 2, "stop": 6}
    for verb in VERBS:
        options = [] if verb == "stop" else ["--numbers", "4,7,9"]
        height, width = edit(verb, tiny, tmp_path / f"{verb}.png", *options).shape
        columns = {"interpolate": 9, "stop": 6}.get(verb, 3)
        scale = round(640 / (9 * columns + 1))
        assert (height, width) == ((9 * rows[verb] + 1) * scale, (9 * columns + 1) * scale), verb
        said = capsys.readouterr().out.splitlines()
        assert len(said) == rows[verb] + 1 and f"{verb}.png: {verb}, " in said[0]
        assert "numbers 4,7,9 of the test set" in said[0] or verb == "stop"
        assert said[-1].startswith(f"  row {rows[verb]}: ")


def test_edit_inpaint_equals_the_library(tiny, given, tmp_path):
    model, x0, y = given
    options = ["--numbers", "4,7,9", "--mask", "top:0.25", "--jumps", "2", "--length", "2", "--n", "2", "--seed", "5"]
    rows = edit("inpaint", tiny, tmp_path / "a.npz", *options, "--batch_size", "2")
    assert rows.files == ["input", "masked", "result, seed 5", "result, seed 6"]
    mask = torch.arange(8)[:, None].expand(8, 8) < 2
    made = editing.inpaint(model, x0, mask, y, 6, jumps=2, length=2)
    assert np.abs(rows["result, seed 6"].astype(int) - pictures.to_uint8(made)).max() <= 1
    assert np.array_equal(rows["input"], pictures.to_uint8(x0))
    assert np.array_equal(rows["result, seed 5"][:, 2:], rows["input"][:, 2:])
    assert (rows["masked"][:, :2] == 128).all() and np.array_equal(rows["masked"][:, 2:], rows["input"][:, 2:])


def test_other_edits_equal_the_library(tiny, given, tmp_path):
    model, x0, y = given
    three = torch.full((3,), 3)
    cases = {
        ("img2img", "--strength", "0.6", "--label", "3"): ("result, seed 0", editing.img2img(model, x0, 0.6, three)),
        ("img2img", "--labels", "3,5", "--scale", "2", "--strength", "0.5"): (
            "result, seed 0",
            editing.img2img(model, x0, 0.5, torch.tensor([3, 5, 3]), guidance=ClassifierFree(2.0)),
        ),
        ("vary", "--amount", "0.5", "--n", "1"): ("variation, seed 0", editing.vary(model, x0, 0.5, 1, y)[:, 0]),
        ("reconstruct", "--iterations", "2"): ("there and back", editing.reconstruct(model, x0, y, iterations=2)[0]),
        ("interpolate", "--n", "4"): (
            "from picture 2 to 3", editing.interpolate(model, x0[1:2], x0[2:], 4, y[1:2], y[2:])[0],
        ),
    }  # fmt: skip
    for (verb, *options), (row, made) in cases.items():
        rows = edit(verb, tiny, tmp_path / f"{verb}.npz", "--numbers", "4,7,9", *options)
        assert np.abs(rows[row].astype(int) - pictures.to_uint8(made)).max() <= 1, verb
    rows = edit("stop", tiny, tmp_path / "stop.npz", "--at", "0.6,0", "--n", "1", "--label", "2")
    frames = midway.stop(model, [0.6, 0], 1, torch.tensor([2]))
    assert np.array_equal(rows["picture 1: predicted x_0"], pictures.to_uint8(torch.cat([f.x0 for f in frames])))


def test_the_default_pictures_are_of_different_classes(tiny, tmp_path, capsys):
    edit("img2img", tiny, tmp_path / "a.png", "--strength", "0")
    numbers = capsys.readouterr().out.split("numbers ")[1].split(" of")[0].split(",")
    assert len(numbers) == 8 and Digits().arrays("test")[1][[int(k) for k in numbers]].tolist() == list(range(8))


def test_edit_reads_pictures_and_masks_from_files(tiny, given, tmp_path):
    """A file's picture has no label; white pixels of a mask are regenerated."""
    model, x0, _ = given
    names = [tmp_path / f"{k}.png" for k in range(3)]
    for name, image in zip(names, pictures.to_uint8(x0), strict=True):
        Image.fromarray(image[..., 0]).save(name)
    hole = np.zeros((8, 8), bool)
    hole[3:5, 2:7] = True
    Image.fromarray(hole).save(tmp_path / "hole.png")  # one bit
    Image.fromarray((hole * 255).astype(np.uint8)).convert("RGB").save(tmp_path / "rgb.png")
    options = ["--input", *map(str, names), "--jumps", "1", "--mask"]
    rows, same = (
        edit("inpaint", tiny, tmp_path / "a.npz", *options, str(tmp_path / f)) for f in ("hole.png", "rgb.png")
    )
    assert np.array_equal(rows["result, seed 0"], same["result, seed 0"])
    assert ((rows["masked"] != rows["input"])[..., 0] <= hole).all()
    made = editing.inpaint(model, x0, torch.from_numpy(hole), None, jumps=1)
    assert np.abs(rows["result, seed 0"].astype(int) - pictures.to_uint8(made)).max() <= 1


def test_named_masks_cover_their_share():
    shares = {"left": 0.5, "right:0.25": 0.25, "bottom": 0.5, "top:1": 1.0, "center": 0.25, "random:0.3": 0.3}
    found = {text: given_mask(text, (1, 40, 80), 0)[0] for text in shares}
    assert all(mask.shape == (1, 40, 80) for mask in found.values())
    shown = {text: float(mask.float().mean()) for text, mask in found.items()}
    assert shown == pytest.approx(shares, abs=0.03) and 0 < abs(shown["random:0.3"] - 0.3)  # the others are exact
    assert found["left"][..., :40].all() and found["right:0.25"][..., 60:].all()
    assert found["bottom"][:, 20:].all() and found["center"][:, 10:30, 20:60].all()
    assert torch.equal(given_mask("random:0.3", (1, 40, 80), 0)[0], found["random:0.3"])
    assert not torch.equal(given_mask("random:0.3", (1, 40, 80), 1)[0], found["random:0.3"])


@pytest.mark.parametrize("argv, words", [
    (["inpainte"], ["did you mean 'inpaint'"]),
    (["inpaint", "--mask", "lef"], ["did you mean 'left'"]),
    (["inpaint", "--mask", "left:2"], ["(0, 1]", "left:0.5"]),
    (["inpaint", "--mask", "left:0.01"], ["the mask is empty"]),
    (["inpaint", "--mask", "no.png"], ["no.png"]),
    (["inpaint", "--mask", "big.png"], ["16x8 pixels", "8x8"]),
    (["inpaint", "--input", "big.png"], ["16x8 pixels", "crop or scale it to 8x8"]),
    (["inpaint", "--input", "colour.png"], ["3 channels", "8-bit greyscale"]),
    (["inpaint", "--input", "text.png"], ["text.png"]),
    (["inpaint", "--input", "big.png", "--numbers", "1"], ["give one of the two"]),
    (["inpaint", "--numbers", "360"], ["0 .. 359"]),
    (["inpaint", "--numbers", "-1"], ["0 .. 359"]),
    (["inpaint", "--numbers", "a"], ["comma-separated"]),
    (["inpaint", "--jumps", "-1"], ["jumps must be at least 0"]),
    (["inpaint", "--length", "0"], ["length at least 1"]),
    (["inpaint", "--n", "0"], ["at least 1"]),
    (["inpaint", "--label", "10"], ["labels are 0 .. 9"]),
    (["inpaint", "--out", "a.gif"], ["wanted a .png or a .npz"]),
    (["inpaint", "--bogus", "1"], ["unknown option '--bogus'"]),
    (["inpaint", "--data.rooot", "x"], ["rooot"]),
    (["img2img", "--strength", "1.5"], ["[0, 1]"]),
    (["img2img", "--strength", "x"], ["invalid float"]),
    (["interpolate", "--numbers", "1"], ["at least two pictures"]),
    (["interpolate", "--n", "1"], ["n >= 2"]),
    (["interpolate", "--sampler", "Heun"], ["only DDIM", "Heun"]),
    (["vary", "--amount", "-1"], ["[0, 1]"]),
    (["vary", "--eta", "1"], ["eta = 0"]),
    (["reconstruct", "--iterations", "0"], ["iterations >= 1"]),
    (["stop", "--at", "0.5,2"], ["[0, 1]"]),
    (["stop", "--at", "now"], ["comma-separated"]),
    (["stop", "--numbers", "1"], ["unknown option '--numbers'"]),
])  # fmt: skip
def test_edit_reports_bad_input_in_one_line(argv, words, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (16, 8)).save("big.png")
    Image.new("RGB", (8, 8)).save("colour.png")
    (tmp_path / "text.png").write_text("hello")
    refused(capsys, ["edit", argv[0], tiny, *argv[1:]], *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.png", "colour.png", "text.png"]


def test_edit_without_the_runs_configuration_asks_for_pictures(tiny, tmp_path, capsys):
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes((tiny / "checkpoints" / "last.ckpt").read_bytes())
    refused(
        capsys, ["edit", "vary", alone, "--out", tmp_path / "a.png"], "configuration is missing", "--input FILE.png"
    )
    assert edit("stop", alone, tmp_path / "a.png", "--n", "1").size


def test_edit_help_lists_every_verb(capsys):
    assert main(["edit"]) == 0 and main(["edit", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(said.count(f"  {verb} ") == 2 for verb in VERBS)
