"""`--engine fastest` and `--threads` of the commands."""

import json

import numpy as np
import pytest
import torch

from diffusion.cli import main
from diffusion.nets import fastest
from diffusion.nets.threads import threads_restored
from diffusion.training.callbacks import Crowd
from diffusion.training.run import assemble


def pictures(run, out, *options):
    assert main(["sample", str(run), "--n", "4", "--out", str(out), *options]) == 0
    return np.load(out)["images"].astype(int)


@pytest.fixture
def few(monkeypatch, tmp_path):
    """No compiler and no bf16, and a cache of its own."""
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fastest, "WAYS", ("torch", "channels_last"))
    return tmp_path / "cache"


def test_the_fastest_engine_is_told_and_remembered(tiny, few, tmp_path, capsys):
    """With the same pictures to one grey level; the times are those in the cache, whatever they are."""
    wanted = pictures(tiny, tmp_path / "a.npz")
    assert not few.exists() or not list(few.rglob("fastest-*"))
    capsys.readouterr()
    assert np.abs(pictures(tiny, tmp_path / "b.npz", "--engine", "fastest") - wanted).max() <= 1
    first = capsys.readouterr().err
    assert "diffusion sample: engine fastest: " in first and "ms of CPU time for" in first
    (kept,) = few.rglob("fastest-*.json")
    times = json.loads(kept.read_text())
    assert times["seconds"].keys() == {"torch", "channels_last"}
    times["seconds"] = {"torch": [2.0, 2.1], "channels_last": [1.0, 1.1]}
    kept.write_text(json.dumps(times))
    assert np.abs(pictures(tiny, tmp_path / "c.npz", "--engine", "fastest") - wanted).max() <= 1
    said = capsys.readouterr().err
    assert "engine fastest: channels_last" in said and "(measured before)" in said and "largest difference" in said


def test_threads_are_set_for_the_command_alone(tiny, tmp_path, capsys):
    before = torch.get_num_threads()
    for asked, words in ((str(before + 1), None), ("fastest", "threads: ")):
        pictures(tiny, tmp_path / "a.npz", "--threads", asked)
        assert torch.get_num_threads() == before and (words or "") in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["sample", "nll"])
def test_wrong_numbers_of_threads_are_refused(tiny, verb, capsys):
    assert main([verb, str(tiny), "--threads", "0"]) == 2
    assert "threads: wanted a number from 1 on, or fastest; got '0'" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "words"), [("3", ""), ("fastest", "threads: ")])
def test_fit_sets_them_and_does_not_record_them(tmp_path, asked, words):
    """Training watches whether they wait for cores."""
    with threads_restored():
        run = assemble(["-c", "configs/digits.yaml", "--data.limit", "64", "--out", str(tmp_path), "--threads", asked,
                        "--trainer.accelerator", "cpu", "--model.net.widths", "[8,16]"])  # fmt: skip
        assert run.cli.config.threads == "" and run.counted.startswith(words)
        assert asked == "fastest" or torch.get_num_threads() == 3
    assert any(isinstance(callback, Crowd) for callback in run.trainer.callbacks)
