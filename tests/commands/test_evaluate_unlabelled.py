"""`diffusion evaluate` of runs on images without classes: features learned without labels, patches and spectra."""

import json
import shutil

import numpy as np
import pytest

import diffusion
from diffusion.cli import main
from diffusion.data import Arrays, Digits
from diffusion.judging.judge import called, configuration, open_evaluator, open_extractor
from diffusion.judging.request import SWEEP_UNLABELLED, UNLABELLED

NAMES = [
    "frechet", "kid", "precision", "recall", "density", "coverage", "swd", "swd_fine", "swd_coarse", "spectrum",
    "spectrum_high", "diversity_pixels", "diversity_features", "nearest_pixels", "near_pixels", "nearest_features",
    "near_features",
]  # fmt: skip
CPU = ["--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Digits without labels in a file, a tiny run on them, and a cache with their features, by short trainings."""
    folder = tmp_path_factory.mktemp("unlabelled")
    images = np.concatenate([Digits().arrays(split)[0].numpy()[:, 0] for split in ("train", "test")])[:600]
    np.save(folder / "images.npy", images)
    data = json.dumps({"class_path": "Arrays", "init_args": {"images": str(folder / "images.npy"), "test": 0.2}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_CACHE", str(folder / "cache"))
        assert main(["fit", "-c", "configs/digits.yaml", *CPU, "--trainer.max_steps", "6", "--data", data, "--out",
                     str(folder), "--experiment", "pictures", "--model.net.widths", "[8,16]",
                     "--model.net.attention", "1", "--model.sampler.steps", "3"]) == 0  # fmt: skip
        name = called(Arrays(str(folder / "images.npy"), test=0.2))
        assert main(["fit", "-c", str(configuration(Arrays(str(folder / "images.npy")))), *CPU, "--data", data,
                     "--trainer.max_steps", "6", "--experiment", name]) == 0  # fmt: skip
        yield folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run that a test may write to."""
    shutil.copytree(made / "pictures" / "version_0", tmp_path / "pictures" / "version_0")
    return tmp_path / "pictures" / "version_0"


def test_evaluate_of_an_unlabelled_run(run, made, capsys):
    assert main(["evaluate", str(run), "--n", "30"]) == 0
    said = capsys.readouterr().out
    record = json.loads(next((run / "evaluation").glob("*.json")).read_text())
    assert [f["metric"] for f in record["figures"]] == NAMES
    assert record["setting"]["extractor"].startswith("VICReg-") and record["reference"]["train"]["n"] > 400
    for f in record["figures"]:
        assert f["low"] <= f["value"] <= f["high"] and f["metric"] in said
    table = said.split("95 % interval")[1]
    assert "self-supervised" in table and "not comparable with FID" in table
    assert "judge: VICReg " in said and "right on" not in said and "left out" not in said


def test_metrics_that_need_classes_say_so(run):
    for name, words in (("consistency", "trained without"), ("is", "needs an extractor with classes")):
        with pytest.raises(ValueError, match=f"metrics {name}: .*{words}"):
            diffusion.evaluate(run, 20, metrics=name)


def test_a_sweep_of_an_unlabelled_run(run):
    table = diffusion.evaluate(run, 20, sweep="steps=2,3")
    assert [f["metric"] for f in table[0]["figures"]] == ["frechet", "swd", "swd_fine", "swd_coarse"]
    assert "recommended for this checkpoint" in str(table) and "not comparable with FID" in str(table)
    assert set(SWEEP_UNLABELLED.split(",")) <= set(UNLABELLED.split(","))


def test_unlabelled_runs_are_evaluated_while_they_train(made, tmp_path):
    data = json.dumps({"class_path": "Arrays", "init_args": {"images": str(made / "images.npy"), "test": 0.2}})
    assert main(["fit", "-c", "configs/digits.yaml", *CPU, "--trainer.max_epochs", "1", "--data", data, "--out",
                 str(tmp_path), "--experiment", "pictures", "--model.net.widths", "[8,16]", "--model.net.attention",
                 "1", "--model.sampler.steps", "3", "--evaluation.every_n_epochs", "1", "--evaluation.n", "20",
                 "--evaluation.metrics", "[frechet,swd]", "--evaluation.budget", "100"]) == 0  # fmt: skip
    lines = (tmp_path / "pictures" / "version_0" / "metrics.jsonl").read_text().splitlines()
    found = {line["metric"]: line for line in map(json.loads, lines) if "metric" in line}
    assert {"frechet", "swd", "swd_fine", "swd_coarse"} <= found.keys()
    assert found["swd"]["extractor"].startswith("VICReg-")


def test_vectors_that_are_not_classes_are_no_strata(made, tmp_path):
    """A measurement for each image: asked of the model, and not taken for a class."""
    n = len(np.load(made / "images.npy"))
    np.save(tmp_path / "y.npy", np.linspace(-1, 1, 2 * n, dtype=np.float32).reshape(n, 2))
    data = Arrays(str(made / "images.npy"), str(tmp_path / "y.npy"), test=0.2)
    own = next((made / "cache" / "features").glob("arrays-*"))
    evaluator = open_evaluator(data, open_extractor(data, str(own)))
    assert evaluator.reference.train.labels is None and evaluator.labels(7).shape == (7, 2)
    assert evaluator.describe(data.arrays("test")[0], data.arrays("test")[1]).labels is None


def test_missing_features_are_trained(run, made, tmp_path, monkeypatch, capsys):
    asked = {}

    def train(argv, final):
        asked["argv"] = argv
        raise ValueError("enough")

    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("diffusion.commands.evaluate.train", train)
    assert main(["evaluate", str(run), "--n", "10"]) == 2
    assert "no self-supervised features of Arrays in" in capsys.readouterr().out
    assert asked["argv"][1].endswith("features_unlabelled.yaml")
    with pytest.raises(ValueError, match="train it with: diffusion fit -c .*unlabelled.yaml --data .*images.npy"):
        open_extractor(Arrays(str(made / "images.npy")))


def test_an_extractor_of_other_images_is_refused(run, made, capsys):
    own = next((made / "cache" / "features").glob("arrays-*"))
    wide = made / "wide.npy"
    np.save(wide, np.zeros((40, 9, 12), np.uint8))
    with pytest.raises(ValueError, match=r"VICReg takes images of 1x8x8, and those of Arrays are 1x9x12; .*: auto"):
        open_extractor(Arrays(str(wide)), str(own))
