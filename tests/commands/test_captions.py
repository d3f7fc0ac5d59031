"""Drawn images with captions, from `diffusion prepare` to samples by words, figures and a resumed run."""

import json
from inspect import signature

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from diffusion import Pipeline, nets
from diffusion.cli import main
from diffusion.data import Prepared
from diffusion.judging.judge import called, configuration
from diffusion.judging.request import UNLABELLED
from diffusion.support import runs

CPU = ["--trainer.accelerator", "cpu"]
SMALL = ["--model.net.widths", "[8,16]", "--model.net.attention", "1", "--model.sampler.steps", "2", "--samples.n", "4",
         "--gif.n", "2", "--gif.frames", "2", "--diagnostics.images", "0"]  # fmt: skip
COLOURS, SHAPES = {"red": (255, 0, 0), "blue": (0, 0, 255)}, ("disc", "bar")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """48 drawn images in the current folder's data/drawn, and a run of a few steps on them."""
    folder = tmp_path_factory.mktemp("captions")
    (folder / "raw").mkdir()
    for k in range(48):
        colour, shape = list(COLOURS)[k % 2], SHAPES[k // 2 % 2]
        picture = Image.new("RGB", (16, 16), (k * 5, 90, 90))
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if shape == "disc" else draw.rectangle)((2 + k % 5, 4, 9 + k % 5, 11), fill=COLOURS[colour])
        picture.save(folder / "raw" / f"{k:02d}.png")
        if k % 6:
            (folder / "raw" / f"{k:02d}.txt").write_text(f"A {colour} {shape}, number {k}.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_CACHE", str(folder / "cache"))
        assert main(["prepare", str(folder / "raw"), "--out", str(folder / "drawn"), "--workers", "1"]) == 0
        argv = ["fit", "--data", str(folder / "drawn"), "--out", str(folder), *CPU, *SMALL, "--data.batch_size", "16"]
        assert main([*argv, "--trainer.max_epochs", "1"]) == 0
        yield folder, argv


def test_fit_says_what_the_model_is_conditioned_on(made, capsys):
    folder, argv = made
    words = Prepared(str(folder / "drawn")).class_names
    assert set(words) == {"red", "blue", "disc", "bar"}
    pipeline = Pipeline.load(folder / "drawn")
    assert pipeline.class_names == words and pipeline.context_dim == 4
    assert type(pipeline.guidance).__name__ == "ClassifierFree" and pipeline.guidance.scale == 1.5
    resumed = [*argv, "--trainer.max_epochs", "2", "--resume", "auto"]
    assert main(resumed) == 0
    said = capsys.readouterr().out
    assert f"on Prepared, conditioned on 4 words ({', '.join(words)}), cpu" in said
    run = runs.find_checkpoint(folder / "drawn")
    assert runs.read_checkpoint(run)["epoch"] >= 1 and run.is_relative_to(folder / "drawn" / "version_0")


def test_samples_by_words(made, tmp_path):
    folder, _ = made
    out = tmp_path / "x.npz"
    argv = ["sample", str(folder / "drawn"), "--out", str(out), "--context"]
    assert main([*argv, "red,disc", "--context", "blue=0.5", "--n", "4"]) == 0
    found, words = np.load(out), Prepared(str(folder / "drawn")).class_names
    both, half = ([amounts.get(w, 0) for w in words] for amounts in ({"red": 1, "disc": 1}, {"blue": 0.5}))
    assert found["labels"].tolist() == [both, half] * 2 and found["class_names"].tolist() == list(words)
    assert main([*argv, "red,green"]) == 2


def test_evaluation_is_that_of_unlabelled_data(made, capsys, monkeypatch):
    folder, _ = made
    monkeypatch.setenv("DIFFUSION_CACHE", str(folder / "cache"))
    data = Prepared(str(folder / "drawn"))
    chosen = json.dumps({"class_path": "Prepared", "init_args": {"folder": str(folder / "drawn"), "batch_size": 16}})
    assert main(["fit", "-c", str(configuration(data)), *CPU, "--data", chosen, "--trainer.max_steps", "3",
                 "--experiment", called(data)]) == 0  # fmt: skip
    assert main(["evaluate", str(folder / "drawn"), "--n", "12"]) == 0
    said = capsys.readouterr().out
    assert "judge: VICReg" in said and "self-supervised" in said and "left out" not in said
    record = json.loads(next((folder / "drawn" / "version_0" / "evaluation").glob("*.json")).read_text())
    assert record["figures"][0]["metric"] == "frechet" and len(record["figures"]) > len(UNLABELLED.split(","))


@pytest.mark.parametrize("kind", [getattr(nets, name) for name in nets.__all__], ids=nets.__all__)
def test_every_network_takes_several_words_at_once(kind):
    """Two words are neither of the two alone, and no word is not null."""
    torch.manual_seed(0)
    sides = {"size": [32, 32]} if "size" in signature(kind).parameters else {}
    net = kind(channels=1, context_dim=3, **sides).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)  # those that begin at zero, too
    y = torch.tensor([[1.0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]])
    keep = torch.tensor([True, True, True, True, False])
    with torch.no_grad():
        out = net(torch.ones(5, 1, 32, 32), torch.full((5,), 0.5), y, keep)
    assert len({x.numpy().tobytes() for x in out}) == 5
