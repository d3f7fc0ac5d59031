"""`diffusion evaluate`: figures with all that they depend on, remembered, compared, swept; and its extractors."""

import json
import shutil

import numpy as np
import pytest
import torch

from diffusion.cli import main
from diffusion.commands.evaluate import winner
from diffusion.judging import sweep
from diffusion.training.systems import Classifier


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with a classifier of the digits, by the documented command but for its length."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_CACHE", str(folder))
        assert main(["fit", "-c", "configs/features_digits.yaml", "--trainer.max_epochs", "5",
                     "--trainer.check_val_every_n_epoch", "5", "--trainer.accelerator", "cpu"]) == 0  # fmt: skip
        yield folder


@pytest.fixture
def run(tiny, cache, tmp_path):
    """A copy of the tiny run that a test may write to."""
    shutil.copytree(tiny, tmp_path / "digits" / "version_0")
    return tmp_path / "digits" / "version_0"


def evaluate(*words):
    assert main(["evaluate", *map(str, words)]) == 0


def test_the_classifier_is_where_it_is_looked_for(cache):
    run = cache / "features" / "digits" / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file() and (run / "config.yaml").is_file()
    model = Classifier.load(run)
    assert model.extractor().class_names == tuple("0123456789") and model.extractor().shape == (1, 8, 8)


def test_every_figure_carries_what_it_depends_on(run, cache, capsys):
    evaluate(run, "--n", 60, "--steps", 3, "--batch_size", 25)
    said = capsys.readouterr().out
    file = next((run / "evaluation").glob("*.json"))
    record = json.loads(file.read_text())
    names = [f["metric"] for f in record["figures"]]
    assert names[:4] == ["frechet", "kid", "precision", "recall"] and len(names) == 14
    for f in record["figures"]:
        assert {"weights": "ema", "sampler": "DDIM", "steps": 3, "scale": 1.1, "n": 60, "seed": 1}.items() <= f.items()
        assert f["extractor"].startswith("DigitsNet-") and f["reference"] == record["setting"]["reference"]
        assert f["low"] <= f["value"] <= f["high"] and f["m"] in (60, 360)
        assert f["metric"] in said
    assert record["evaluations"] == 3 and record["reference"]["train"]["n"] == 320
    assert "60 samples are few for 64 features" in said and "3 network evaluations" in said
    assert len(list((cache / "references").glob("Digits-*.pt"))) == 2


def test_what_was_measured_is_not_measured_again(run, capsys, monkeypatch):
    options = [run, "--n", 40, "--steps", 2]
    evaluate(*options, "--metrics", "frechet", "--keep")
    kept = np.load(next((run / "evaluation").glob("*.npz")))
    assert kept["images"].shape == (40, 8, 8, 1) and kept["labels"].shape == (40,)
    first = json.loads((file := next((run / "evaluation").glob("*.json"))).read_text())

    def never(*args, **kwargs):
        raise AssertionError("sampled again")

    with monkeypatch.context() as patch:
        patch.setattr("diffusion.generation.pipeline.Pipeline.frames", never)
        evaluate(*options, "--metrics", "frechet")  # known
        evaluate(*options, "--metrics", "frechet,consistency")  # from the kept samples
        second = json.loads(file.read_text())
        assert [f["metric"] for f in second["figures"]] == ["frechet", "consistency"]
        assert second["figures"][0] == first["figures"][0] and second["seconds"] == first["seconds"]
        with pytest.raises(AssertionError, match="sampled again"):
            main(["evaluate", *map(str, options), "--metrics", "frechet", "--again", "--debug"])
    evaluate(*options, "--metrics", "frechet", "--again")
    assert json.loads(file.read_text())["figures"][0] == first["figures"][0]  # the same seed, the same samples


def test_a_sweep(run, capsys):
    evaluate(run, "--n", 40, "--sweep", "sampler=DDIM,Heun steps=2,4 scale=1,2", "--metrics", "consistency,frechet")
    said = capsys.readouterr().out
    record = json.loads(next((run / "evaluation").glob("sweep-*.json")).read_text())
    settings = [(r["setting"]["sampler"], r["setting"]["steps"], r["setting"]["scale"]) for r in record["records"]]
    assert len(set(settings)) == 8
    cost = {s: r["evaluations"] for s, r in zip(settings, record["records"], strict=True)}
    assert cost["DDIM", 4, 1] == 4 and cost["Heun", 4, 2] == 6  # Heun: two a step but in its first and last
    assert record["recommended"] in said and "--sampler" in record["recommended"]
    assert any(r["pareto"] for r in record["records"])
    assert len(list((run / "evaluation").glob("step*.json"))) == 8


def test_the_plot_of_a_sweep(run):
    pytest.importorskip("matplotlib")
    evaluate(run, "--n", 20, "--sweep", "steps=2,3", "--metrics", "frechet")
    assert next((run / "evaluation").glob("sweep-*.png")).stat().st_size > 10_000


def test_sweeps_of_several_parts():
    few = [{"sampler": "DDIM", "steps": 2}, {"sampler": "DDIM", "steps": 4}]
    assert sweep.parse("sampler=DDIM steps=2,4; sampler=DDPM eta=1") == [*few, {"sampler": "DDPM", "eta": "1"}]
    with pytest.raises(ValueError, match="nothing to compare"):
        sweep.parse("steps=2;")


def test_pareto_and_the_recommendation():
    assert sweep.pareto([(5, 3.0), (5, 2.0), (10, 2.0), (10, 1.0), (20, 1.5)]) == [False, True, False, True, False]
    made = [(5, 3.0), (10, 1.2), (20, 1.0), (15, 1.15)]
    records = [{"evaluations": e, "figures": [{"value": v, "low": v - 0.3, "high": v + 0.3, "better": "low"}]} for e, v in made]  # fmt: skip # noqa: E501
    assert sweep.recommend(records) == (1, 2)
    for r in records:
        f = r["figures"][0]
        f |= {"value": -f["value"], "low": -f["high"], "high": -f["low"], "better": "high"}
    assert sweep.recommend(records) == (1, 2)


def test_runs_are_compared(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "digits" / "version_1")
    evaluate("--runs", run, tmp_path / "digits" / "version_1", "--n", 20, "--steps", 2, "--metrics", "frechet")
    said = capsys.readouterr().out
    assert "[1]" in said and "[2]" in said and "*" not in said.split("frechet")[1].split("\n")[0]
    one, other = {"value": 1, "low": 0.5, "high": 1.5, "better": "low"}, {"value": 2, "low": 1.6, "high": 3, "better": "low"}  # fmt: skip # noqa: E501
    assert winner([other, one]) == 2 and winner([one, one | {"value": 1.2}]) == 0
    assert winner([one | {"better": "high"}, other | {"better": "high"}]) == 2


def test_bits(run, capsys):
    """Of 4 steps in place of 1000, which is a bound all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion.judging.measure.STEPS", 4)
        evaluate(run, "--n", 10, "--steps", 2, "--metrics", "nll")
    found = json.loads(next((run / "evaluation").glob("*.json")).read_text())["figures"]
    assert [f["metric"] for f in found] == ["nll"] and found[0]["value"] > 1 and found[0]["m"] == 256


def test_wrong_words_are_one_line(run, cache, tmp_path, capsys):
    def said(*words):
        assert main(["evaluate", *map(str, words)]) == 2
        text = capsys.readouterr().err
        assert len(text.splitlines()) == 1
        return text

    assert "a run is missing" in said()
    assert "did you mean 'frechet'" in said(run, "--metrics", "frechett")
    assert "wanted words like steps=5,10" in said(run, "--sweep", "steps")
    assert "unknown option '--etaa'" in said(run, "--n", 10, "--etaa", 1)
    assert "fetch it once" in said(run, "--features", "Inception")
    assert "not a classifier" in said(run, "--features", run)
    assert "a classifier, not a diffusion model" in said(cache / "features" / "digits")
    assert "--n must be at least 2" in said(run, "--n", 1)
    other = tmp_path / "other"
    shutil.copytree(cache / "features" / "digits" / "version_0", other)
    file = other / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)
    state["hyper_parameters"]["shape"] = [1, 32, 32]
    torch.save(state, file)
    wrong = said(run, "--features", other)
    assert "takes images of 1x32x32, and those of Digits are 1x8x8" in wrong
    assert "right ones for Digits: auto, " in wrong and "features/digits/version_0" in wrong


def test_a_missing_classifier_is_trained(run, tmp_path, monkeypatch, capsys):
    """By the data set's own configuration, on all of its images, though the run had 320."""
    asked = {}

    def fit(argv, final):
        asked["argv"] = argv
        raise ValueError("enough")

    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("diffusion.training.run.fit", fit)
    assert main(["evaluate", str(run), "--n", "10"]) == 2
    assert "training one" in capsys.readouterr().out
    assert asked["argv"][1].endswith("features_digits.yaml")
    assert json.loads(asked["argv"][3])["init_args"]["limit"] == 0


def test_the_system_is_chosen_by_the_configuration(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("system: Clasifier\n")
    assert main(["fit", "-c", str(tmp_path / "a.yaml")]) == 2
    assert "did you mean 'Classifier'" in capsys.readouterr().err
