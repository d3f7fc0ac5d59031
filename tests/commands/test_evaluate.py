"""`diffusion evaluate`: figures and what they depend on, reuse, comparison, sweeps, and extractors."""

import json
import shutil

import numpy as np
import pytest
import torch

import diffusion
from diffusion.cli import main
from diffusion.data import Digits
from diffusion.generation.choices import Choices
from diffusion.judging import sweep
from diffusion.judging.evaluate import answer
from diffusion.judging.judge import open_extractor
from diffusion.judging.request import Request
from diffusion.judging.table import winner
from diffusion.metrics.bits import Bits
from diffusion.metrics.extractor import load_extractor


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with a digits classifier, trained by the documented command for fewer epochs."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_CACHE", str(folder))
        assert main(["fit", "-c", "configs/features_digits.yaml", "--trainer.max_epochs", "5",
                     "--trainer.check_val_every_n_epoch", "5", "--trainer.accelerator", "cpu"]) == 0  # fmt: skip
        yield folder


@pytest.fixture
def run(tiny, cache, tmp_path):
    """A copy of the tiny run that tests may write to."""
    shutil.copytree(tiny, tmp_path / "digits" / "version_0")
    return tmp_path / "digits" / "version_0"


def evaluate(*words):
    assert main(["evaluate", *map(str, words)]) == 0


def evaluate_request(request):
    return answer(request, train=None)


def test_classifier_is_trained_where_evaluate_looks(cache):
    run = cache / "features" / "digits" / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file() and (run / "config.yaml").is_file()
    extractor = load_extractor(run)
    assert extractor.class_names == tuple("0123456789") and extractor.shape == (1, 8, 8)


def test_every_figure_records_what_it_depends_on(run, cache, capsys):
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


def test_existing_measurements_are_not_repeated(run, capsys, monkeypatch):
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


def test_a_sweep_writes_a_table_and_a_recommendation(run, capsys):
    evaluate(run, "--n", 40, "--sweep", "sampler=DDIM,Heun steps=2,4 scale=1,2", "--metrics", "consistency,frechet")
    said = capsys.readouterr().out
    record = json.loads(next((run / "evaluation").glob("sweep-*.json")).read_text())
    settings = [(r["setting"]["sampler"], r["setting"]["steps"], r["setting"]["scale"]) for r in record["records"]]
    assert len(set(settings)) == 8
    cost = {s: r["evaluations"] for s, r in zip(settings, record["records"], strict=True)}
    assert cost["DDIM", 4, 1] == 4 and cost["Heun", 4, 2] == 6  # Heun: two per step except the last and the first
    assert record["recommended"] in said and "--sampler" in record["recommended"]
    assert any(r["pareto"] for r in record["records"])
    assert len(list((run / "evaluation").glob("step*.json"))) == 8


def test_sweep_writes_a_plot(run):
    pytest.importorskip("matplotlib")
    evaluate(run, "--n", 20, "--sweep", "steps=2,3", "--metrics", "frechet")
    assert next((run / "evaluation").glob("sweep-*.png")).stat().st_size > 10_000


def test_sweeps_have_independent_groups():
    few = [{"sampler": "DDIM", "steps": 2}, {"sampler": "DDIM", "steps": 4}]
    assert sweep.parse("sampler=DDIM steps=2,4; sampler=DDPM eta=1") == [*few, {"sampler": "DDPM", "eta": "1"}]
    with pytest.raises(ValueError, match="nothing to compare"):
        sweep.parse("steps=2;")


def test_pareto_front_and_recommendation_by_hand():
    assert sweep.pareto([(5, 3.0), (5, 2.0), (10, 2.0), (10, 1.0), (20, 1.5)]) == [False, True, False, True, False]
    made = [(5, 3.0), (10, 1.2), (20, 1.0), (15, 1.15)]
    records = [{"evaluations": e, "figures": [{"value": v, "low": v - 0.3, "high": v + 0.3, "better": "low"}]} for e, v in made]  # fmt: skip # noqa: E501
    assert sweep.recommend(records) == (1, 2)
    for r in records:
        f = r["figures"][0]
        f |= {"value": -f["value"], "low": -f["high"], "high": -f["low"], "better": "high"}
    assert sweep.recommend(records) == (1, 2)


def test_comparison_of_runs_names_a_winner_beyond_the_intervals(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "digits" / "version_1")
    evaluate("--runs", run, tmp_path / "digits" / "version_1", "--n", 20, "--steps", 2, "--metrics", "frechet")
    said = capsys.readouterr().out
    assert "[1]" in said and "[2]" in said and "*" not in said.split("frechet")[1].split("\n")[0]
    one, other = {"value": 1, "low": 0.5, "high": 1.5, "better": "low"}, {"value": 2, "low": 1.6, "high": 3, "better": "low"}  # fmt: skip # noqa: E501
    assert winner([other, one]) == 2 and winner([one, one | {"value": 1.2}]) == 0
    assert winner([one | {"better": "high"}, other | {"better": "high"}]) == 2


def test_metric_nll_equals_the_variational_bound(run):
    """With 4 steps instead of 1,000, which is still a bound; the metric keeps no state."""
    table = evaluate_request(Request.of(run, n=10, steps=2, metrics="nll", bound=4))
    (figure,) = table.figures
    assert figure["metric"] == "nll" and figure["m"] == 256
    bits = {split: nll(run, split, 4) for split in ("test", "train")}
    assert figure["value"] == pytest.approx(float(bits["test"].mean()), rel=1e-12)
    assert figure["floor"] == pytest.approx(float(bits["train"].mean()), rel=1e-12)
    assert Bits().bits is None and "needs a model" in Bits().missing(None, None)


def nll(run, split, steps):
    """Bits/dim of the first 256 images, by the library's function."""
    report = diffusion.nll(run, method="vlb", split=split, n=256, steps=steps, seed=1, batch_size=500)
    return report.bits.totals["vlb"]


def test_evaluate_in_python_equals_the_command(run, capsys):
    evaluate(run, "--n", 40, "--steps", 2, "--metrics", "frechet,consistency", "--eta", 0.5)
    said = capsys.readouterr().out
    table = diffusion.evaluate(run, 40, steps=2, metrics=["frechet", "consistency"], eta=0.5)
    assert str(table) in said and capsys.readouterr().out == ""
    assert [f["metric"] for f in table.figures] == ["frechet", "consistency"] and len(table) == 1
    (record,) = table
    assert table[0] is record and record["setting"]["sampler_args"]["eta"] == 0.5
    assert json.loads(table.files[0].read_text())["figures"] == record["figures"]
    assert table.notes[0].startswith("judge: DigitsNet ") and table.notes[0] in said


def test_sweeps_as_mappings_equal_sweeps_as_text(run):
    few = {"n": 20, "metrics": "frechet"}
    words = diffusion.evaluate(run, sweep="steps=2,3 scale=1", **few)
    mappings = diffusion.evaluate(run, sweep=[{"steps": 2, "scale": 1.0}, {"steps": 3, "scale": 1.0}], **few)
    assert words.records == mappings.records and "recommended for this checkpoint" in str(words)


def test_recommendation_repeats_the_options_of_all_settings(run):
    table = diffusion.evaluate(run, 20, sweep="scale=1,2", metrics="frechet", steps=2, interval="0.2,4", eta=0.5)
    chosen = str(table).split("recommended for this checkpoint")[1]
    assert "--steps 2" in chosen and "--interval 0.2,4 --eta 0.5" in chosen


def test_settings_of_a_sweep_change_choices_by_name():
    base = Choices(sampler="DDIM", steps=5, arguments={"eta": "1"})
    setting = {"steps": 2, "classifier": "run", "threshold": "3"}
    wanted = Choices(sampler="DDIM", steps=2, classifier="run", arguments={"eta": "1", "threshold": "3"})
    assert sweep.changed(base, setting) == wanted and base.steps == 5


@pytest.mark.parametrize("words, said", [
    ({"n": 1}, "n must be at least 2"),
    ({"batch_size": 0}, "batch_size 1, got 5000 and 0"),
    ({"metrics": "frechett"}, "did you mean 'frechet'"),
    ({"sweep": "steps"}, "wanted words like steps=5,10"),
    ({"sweep": "steps=x"}, "steps wants numbers"),
])  # fmt: skip
def test_requests_out_of_range_are_refused_before_anything_is_opened(words, said):
    with pytest.raises(ValueError, match=said):
        Request.of("nowhere", **words)


def test_several_runs_of_one_model_are_measured_alike(run, tmp_path):
    shutil.copytree(run, tmp_path / "digits" / "version_1")
    table = diffusion.evaluate([run, tmp_path / "digits" / "version_1"], 20, steps=2, metrics="frechet")
    one, other = table
    assert one["figures"] == other["figures"] and one["file"] != other["file"]


def test_evaluate_reports_bad_input_in_one_line(run, cache, tmp_path, capsys):
    def said(*words):
        assert main(["evaluate", *map(str, words)]) == 2
        text = capsys.readouterr().err
        assert len(text.splitlines()) == 1
        return text

    assert "a run is missing" in said()
    assert "did you mean 'frechet'" in said(run, "--metrics", "frechett")
    assert "wanted words like steps=5,10" in said(run, "--sweep", "steps")
    assert "unknown option '--etaa'" in said(run, "--n", 10, "--etaa", 1)
    assert "download the file once" in said(run, "--features", "Inception")
    assert "not a classifier" in said(run, "--features", run)
    assert "expected a diffusion model, got a classifier" in said(cache / "features" / "digits")
    assert "n must be at least 2" in said(run, "--n", 1)
    other = tmp_path / "other"
    shutil.copytree(cache / "features" / "digits" / "version_0", other)
    file = other / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)
    state["hyper_parameters"]["shape"] = [1, 32, 32]
    torch.save(state, file)
    wrong = said(run, "--features", other)
    assert "takes images of 1x32x32, and those of Digits are 1x8x8" in wrong
    assert "valid for Digits: auto, " in wrong and "features/digits/version_0" in wrong


def test_a_missing_classifier_is_trained(run, tmp_path, monkeypatch, capsys):
    """The classifier uses the data set's configuration and all of its images, although the run had 320."""
    asked = {}

    def train(argv, final):
        asked["argv"] = argv
        raise ValueError("enough")

    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("diffusion.commands.evaluate.train", train)
    assert main(["evaluate", str(run), "--n", "10"]) == 2
    assert "training one" in capsys.readouterr().out
    assert asked["argv"][1].endswith("features_digits.yaml")
    assert json.loads(asked["argv"][3])["init_args"]["limit"] == 0


def test_a_missing_classifier_is_an_error_that_names_the_command(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="train it with: diffusion fit -c .*features_digits.yaml"):
        open_extractor(Digits())
    trained = []
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):  # this `train` trains nothing
        open_extractor(Digits(), train=trained.append)
    assert [type(data) for data in trained] == [Digits]


def test_unknown_system_in_a_configuration_gets_a_suggestion(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("system: Clasifier\n")
    assert main(["fit", "-c", str(tmp_path / "a.yaml")]) == 2
    assert "did you mean 'Classifier'" in capsys.readouterr().err
