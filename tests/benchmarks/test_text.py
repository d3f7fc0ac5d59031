"""The benchmark of text: its prompts, shares and intervals, its judge, and the whole on a small untrained model."""

import json

import numpy as np
import pytest
import torch

import diffusion
from benchmarks import common, text
from diffusion.data import Sprites
from diffusion.data.scenes import ATTRIBUTES, held_out
from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import ClassifierFree
from diffusion.nets.unet import UNet
from diffusion.noise import Cosine
from diffusion.samplers import DDIM


def test_prompts_are_of_seen_or_of_held_out_combinations_alone():
    for seen in (True, False):
        index, wanted = text.prompted(100, seen)
        assert len(set(index)) == 100 and (held_out(wanted) != seen).all()


def test_shares_are_of_the_attributes_that_apply():
    wanted = np.array([[1, 2, 0, 0, 0, 1, 0], [1, 2, 0, 0, 0, 1, 0], [5, 2, 3, 1, 3, 0, 2]])
    found = wanted.copy()
    found[0, 1], found[:2, 2] = 3, 4  # a wrong colour, and a second one where none is named
    right = text.shares(found, wanted)
    assert (right["colour"]["share"], right["colour"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (right["second"]["share"], right["second"]["n"]) == (1, 1)
    assert right["all"]["share"] == pytest.approx(2 / 3) and right["pose"]["n"] == 1


def test_the_interval_is_wilsons():
    found = text.interval(
        81, 263
    )  # Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.2553, 0.3662)
    assert text.interval(10, 10)["high"] == pytest.approx(1) and text.interval(0, 10)["low"] == 0


def small(monkeypatch, tmp_path, wanted):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(text, "TRAIN", range(1_000_000, 1_002_048))
    monkeypatch.setattr(text, "TEST", range(2_000_000, 2_000_500))
    monkeypatch.setattr(text, "WANTED", wanted)


def test_a_judge_that_is_wrong_too_often_is_refused_and_not_kept(monkeypatch, tmp_path):
    small(monkeypatch, tmp_path, 0.98)
    monkeypatch.setattr(text, "TRAIN", range(1_000_000, 1_000_256))
    with pytest.raises(SystemExit, match=r"judge: \w+ is right on .*, wanted 98%: give more --epochs"):
        text.main(["judge", "--epochs", "1"])
    assert not list((tmp_path / "cache").rglob("*.pt"))


@pytest.mark.slow
def test_the_benchmark_runs_to_its_end(monkeypatch, tmp_path, capsys):
    small(monkeypatch, tmp_path, 0.0)
    torch.manual_seed(0)
    net = UNet(3, width=16, mults=[1, 2], blocks=1, attention=[1], head_width=16, text_width=16,
               tokens=Sprites(captions=True).tokens)  # fmt: skip
    model = Pipeline(Denoiser(net, Cosine(), V()), DDIM(2), ClassifierFree(2.0), shape=(3, 16, 16))
    run = diffusion.export(model, tmp_path / "model.safetensors").files[0]
    assert text.main([str(run), "--n", "40", "--steps", "2", "--scales", "1", "2", "--epochs", "4"]) == 0
    (file,) = tmp_path.glob("text-*.json")
    kept = json.loads(file.read_text())
    figures = kept["figures"]
    assert [(f["scale"], f["seen"]) for f in figures] == [(s, k) for s in (None, 1, 2) for k in (True, False)]
    for figure in figures:
        assert figure["all"]["n"] == figure["kind"]["n"] == figure["colour"]["n"] == 40
        assert (figure["frechet ratio"] is None) == (figure["scale"] is None)
    drawn, made = figures[0], figures[2]
    assert drawn["kind"]["share"] > made["kind"]["share"] and made["frechet ratio"] > 3
    lines = file.with_suffix(".md").read_text().splitlines()
    assert sum(line.startswith("| drawings") for line in lines) == 2
    assert (
        all(name in lines[2] for name in ATTRIBUTES) and file.with_suffix(".md").read_text() in capsys.readouterr().out
    )
