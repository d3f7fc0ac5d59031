"""The race: its queue, its figures, and this project's entry."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from benchmarks.race import __main__ as race
from benchmarks.race import environment, ours, report, run
from benchmarks.race.clustered import KINDS, ClusteredDigits, clusters
from benchmarks.race.entries import ENTRIES, Entry, entrant
from benchmarks.race.images import CONFIGS, SMALLER, batch
from diffusion.data import Digits
from diffusion.data.clusters import nearest
from diffusion.metrics.evaluator import Evaluator
from diffusion.metrics.extractor import Extractor

ROOT = Path(__file__).resolve().parents[2]


def record(name, minutes, value, seed=0, half=0.5):
    return {
        "name": name, "minutes": minutes, "seed": seed, "value": value, "low": value - half, "high": value + half,
        "precision": 0.9, "recall": 0.8, "train_s": 60 * minutes, "sample_s": 2.0, "steps": 100, "n": 360,
        "recipe": "a recipe", "sampled": "DDIM 50", "parameters": 1234567, "documented": None,
    }  # fmt: skip


def test_seeds_are_averaged_and_their_intervals_joined():
    records = [record("ours", 1, value, seed) for seed, value in enumerate((2.0, 3.0, 7.0))]
    found = report.together([*records, record("azula", 1, 9.0)])
    assert found["ours"][1]["value"] == 4 and (found["ours"][1]["low"], found["ours"][1]["high"]) == (1.5, 7.5)
    assert found["ours"][1]["seeds"] == [0, 1, 2] and list(found) == ["ours", "azula"]


def test_who_is_ahead_and_whether_intervals_are_apart():
    def at(ours, other, labels=False):
        names = ("ours, labels", "azula") if labels else ("ours", "torchcfm")
        records = [record(names[0], 1, ours), record(names[1], 1, other), record("origin", 1, 50.0)]
        return report.ahead(report.together(records), 1, labels)

    assert at(2.0, 9.0) == ("ours", "torchcfm", [])
    assert at(9.0, 2.0) == ("torchcfm", "torchcfm", [])
    assert at(2.0, 2.9) == ("ours", "torchcfm", ["torchcfm"])
    assert at(2.0, 9.0, labels=True) == ("ours, labels", "azula", [])
    wide = [record("ours", 1, 2.0), record("torchcfm", 1, 4.0), record("origin", 1, 5.0, half=3.0)]
    assert report.ahead(report.together(wide), 1, False) == ("ours", "torchcfm", ["origin"])
    clusters = [record("ours", 1, 9.0), record("ours, clusters", 1, 2.0), record("torchcfm", 1, 5.0)]
    assert report.ahead(report.together(clusters), 1, False) == ("ours, clusters", "torchcfm", [])
    assert report.ahead(report.together([record("ours", 1, 1.0), record("azula", 1, 9.0)]), 1, True) is None


def test_second_entries_train_with_our_batch(monkeypatch):
    monkeypatch.setitem(ENTRIES, "plain", Entry(lambda images, y, equal: equal))
    monkeypatch.setitem(ENTRIES, "plain, equal", Entry(lambda images, y, equal: equal, equal=True))
    assert entrant("plain", "digits", None, None) is None
    for data in CONFIGS:
        settings = yaml.safe_load((ROOT / f"configs/{CONFIGS[data]}.yaml").read_text())
        ours_is = SMALLER.get(data, settings["data"]["init_args"]["batch_size"])
        assert entrant("plain, equal", data, None, None) == batch(data) == ours_is
        assert ours.command(data).endswith(f" --data.batch_size {ours_is}" if data in SMALLER else ".yaml")


def test_table_has_one_line_per_entry_best_first():
    records = [record("origin", 1, 120.0) | {"n": 100}, record("ours", 1, 2.0), record("ours", 5, 1.0)]
    lines = report.table(report.together(records), "a machine", {"azula": "0.1"}).splitlines()
    assert lines[2].startswith(
        "| ours | a recipe | 1,234,567 | 100 | **2.00** (1.50 .. 2.50) | **1.00** (0.50 .. 1.50)"
    )
    assert lines[3].startswith("| origin | a recipe, 100 samples |") and "**120** (120 .. 120) |  |" in lines[3]
    assert lines[-1] == "a machine; 360 samples each where no other number is named; azula 0.1"


class Flat(torch.nn.Module):
    """The pixels of rows 2 to 5 as features."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def features(self, x):
        return x[:, 0, 2:6].flatten(1) * self.scale

    def head(self, f):
        return f[:, :10]


def written(path, raw, y=None):
    np.savez(path, images=raw.numpy(), labels=np.full(len(raw), -1) if y is None else y.numpy())
    return path


@pytest.fixture(scope="module")
def judge():
    data = Digits()
    extractor = Extractor(Flat(), "Flat", data.shape, data.class_names, "0")
    return Evaluator(extractor, "Digits", data.arrays("train"), data.arrays("test"))


def test_test_images_are_at_the_floor(judge, tmp_path):
    raw, y = Digits().arrays("test")
    found = report.judged(written(tmp_path / "real.npz", raw), judge, len(raw), len(raw))
    assert found["value"] == pytest.approx(1, abs=1e-6) and found["low"] < 1 < found["high"]
    noise = torch.randint(256, raw.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert report.judged(written(tmp_path / "noise.npz", noise, y), judge, len(raw), len(raw))["low"] > 10


def test_few_samples_and_many_of_the_same_kind_are_judged_alike(judge, tmp_path):
    raw, y = Digits().arrays("train")
    noise = torch.randn(raw.shape, generator=torch.Generator().manual_seed(0))
    raw = (raw + 100 * noise).clamp(0, 255).to(torch.uint8)
    many = report.judged(written(tmp_path / "many.npz", raw[:360], y[:360]), judge, 120, 360)
    few = [
        report.judged(written(tmp_path / "few.npz", raw[i::3][:120], y[i::3][:120]), judge, 120, 360) for i in range(3)
    ]
    for part in few:
        assert part["low"] < many["value"] < part["high"] and many["high"] - many["low"] < part["high"] - part["low"]
        assert abs(many["precision"] - part["precision"]) < 0.1 and abs(many["recall"] - part["recall"]) < 0.1
    assert np.mean([part["value"] for part in few]) == pytest.approx(many["value"], rel=0.1)


def test_queue_skips_what_is_finished_or_taken(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(environment, "python", lambda: sys.executable)
    monkeypatch.setattr(
        race.subprocess, "run", lambda command, **_: calls.append(command) or SimpleNamespace(returncode=0)
    )
    args = Namespace(data="digits", minutes="1,2", n=8, out=tmp_path)
    task = race.Task("ours, labels", 3, args)
    task.taken.touch()
    task.run(None)
    assert not calls and task.taken.exists()
    task.taken.unlink()
    task.run(1)
    assert calls[0][:3] == ["taskset", "-c", "1"] and "ours, labels" in calls[0] and not task.taken.exists()
    for mark in (1, 2):
        (tmp_path / f"digits-ours,_labels-{mark}m-seed3.json").touch()
    task.run(None)
    assert task.done and len(calls) == 1


def test_every_entry_but_ours_has_a_training_loop():
    mine = ["ours", "ours, labels", "ours, clusters"]
    assert [name for name, entry in ENTRIES.items() if entry.kind is None] == mine


def test_clusters_replace_labels():
    data, plain = ClusteredDigits(seed=1), Digits()
    (images, y), (test, other) = data.arrays("train"), data.arrays("test")
    assert torch.equal(images, plain.arrays("train")[0]) and torch.equal(test, plain.arrays("test")[0])
    centres = clusters(ClusteredDigits, None, 1).centres
    assert data.num_classes == 60 and len(y.unique()) == 60 and torch.equal(other, nearest(test, centres))
    asked = ours.asked("digits", "clusters", plain.arrays("train")[1], 360, 1).bincount(minlength=60)
    assert (asked / 360 - y.bincount() / len(y)).abs().max() < 1 / 360
    assert ours.asked("digits", "nothing", y, 360, 1) is None
    assert all(kind.count == len(kind.class_names) for kind in KINDS.values()) and KINDS.keys() == CONFIGS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name, classes", [("ours, labels", 10), ("ours, clusters", 0)])
def test_ours_trains_for_the_time_and_samples(name, classes, tmp_path, monkeypatch):
    monkeypatch.setattr(run.environment, "versions", dict)
    words = ["--data", "digits", "--minutes", "0.02", "--seed", "1", "--n", "8", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["run", name, *words])
    threads = torch.get_num_threads()
    try:
        run.main()
    finally:
        torch.set_num_threads(threads)
    stem = f"digits-{name.replace(' ', '_')}-0.02m-seed1"
    found, kept = json.loads((tmp_path / f"{stem}.json").read_text()), np.load(tmp_path / f"{stem}.npz")
    assert kept["images"].shape == (8, 1, 8, 8) and set(kept["labels"]) <= (set(range(classes)) or {-1})
    assert found["steps"] >= 1 and found["batch"] == 64 and found["train_s"] > 0 and found["sampled"] == "UniPC 10"
    assert found["recipe"].endswith("with labels" if classes else ", 60 clusters as labels")
