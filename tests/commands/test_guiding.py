"""Guidance on the command line: options, their errors, and user classes by import path."""

import json
import re
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion import Pipeline
from diffusion.cli import main
from diffusion.generation.choices import Choices
from diffusion.guidance import APG, AutoGuidance, ClassifierFree, ClassifierGuidance, Interval, Plain, Steer
from diffusion.samplers import DDIM
from diffusion.support.specs import spec

from .conftest import TINY

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "guidance.md"
MY = re.search(r"```python\n(.*?class Bright.*?)```", PAGE.read_text(), re.S).group(1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny classifier of noisy digits, trained by the documented command."""
    out = tmp_path_factory.mktemp("classifiers")
    options = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu"]
    assert main(["fit", "-c", "configs/digits_classifier.yaml", "--out", str(out), *options,
                 "--model.net.width", "16", "--data.limit", "320"]) == 0  # fmt: skip
    return out / "digits_classifier" / "version_0"


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """A tiny unconditional run."""
    out = tmp_path_factory.mktemp("free")
    options = ["--data.labels", "false", "--trainer.max_epochs", "1", "--samples.n", "4", "--gif.n", "4"]
    assert main(["fit", *TINY, *options, "--out", str(out)]) == 0
    return out / "digits" / "version_0"


@pytest.fixture
def my(tmp_path, monkeypatch):
    """my.py of docs/guidance.md, in the working directory."""
    (tmp_path / "my.py").write_text(MY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my", raising=False)
    yield tmp_path
    sys.modules.pop("my", None)


def chosen(model, arguments=None, **options):
    return Choices(**options, arguments=arguments or {}).resolve(model)[1]


def same(found, wanted):
    assert spec(found) == spec(wanted)


def test_guidance_options_equal_their_objects(tiny, tmp_path):
    """The tiny run has ClassifierFree(1.1)."""
    model = Pipeline.load(tiny)
    for options, wanted in (
        ({}, ClassifierFree(1.1)),
        ({"scale": 3.0}, ClassifierFree(3)),
        ({"w": 3.0}, ClassifierFree(4)),
        ({"scale": 1.0}, Plain()),
        ({"w": 0.0}, Plain()),
        ({"rescale": 0.7}, ClassifierFree(1.1, rescale=0.7)),
        ({"interval": "0.2,5"}, Interval(ClassifierFree(1.1), 0.2, 5)),
        ({"interval": "0.2,inf", "scale": 3.0}, Interval(ClassifierFree(3), 0.2)),
        ({"guidance": "APG"}, APG()),
        ({"guidance": "diffusion.guidance.APG", "w": 1.0, "interval": "0,2"}, Interval(APG(2), 0, 2)),
        ({"guidance": "Plain"}, Plain()),
        ({"guide": str(tiny), "scale": 1.5}, AutoGuidance(str(tiny), 1.5)),
    ):
        same(chosen(model, **options), wanted)
    words = {"parallel": "0.3", "eta": "0.5", "threshold": 2, "grid": "leading"}
    sampler, guidance = Choices(guidance="APG", scale=4.0, arguments=words).resolve(model)
    same(guidance, APG(4, parallel=0.3, threshold=2))
    same(sampler, DDIM(5, eta=0.5, grid="leading"))
    assert Choices().resolve(model)[1] is model.guidance


def test_a_run_with_an_interval_keeps_it(tiny):
    model = replace(Pipeline.load(tiny), guidance=Interval(ClassifierFree(2, rescale=0.5), 0.3, 4))
    same(chosen(model, scale=5.0), Interval(ClassifierFree(5, rescale=0.5), 0.3, 4))
    same(chosen(model, interval="0,1"), Interval(ClassifierFree(2, rescale=0.5), 0, 1))
    same(chosen(model, guidance="APG"), APG())


def test_scale_guides_a_run_without_guidance(tiny):
    model = replace(Pipeline.load(tiny), guidance=Plain())
    same(chosen(model, scale=2.0), ClassifierFree(2))
    with pytest.raises(ValueError, match="no guidance to limit; give a scale as well"):
        chosen(model, interval="0.1,2")
    with pytest.raises(ValueError, match="Plain takes no such argument"):
        chosen(model, rescale=0.5)


def test_classifier_gives_labels_to_an_unconditional_run(free, classifier, tmp_path, capsys):
    """An unconditional run has labels only with a classifier: --label then works, and the file stores them."""
    assert main(["sample", str(free), "--scale", "2"]) == 2
    assert "trained without labels" in (said := capsys.readouterr().err) and "classifier" in said
    out = ["--n", "4", "--steps", "2", "--out", str(tmp_path / "a.npz")]
    assert main(["sample", str(free), *out]) == 0
    assert np.load(tmp_path / "a.npz")["labels"].tolist() == [-1] * 4
    assert main(["sample", str(free), "--classifier", str(classifier), "--scale", "30", *out]) == 0
    turn = np.load(tmp_path / "a.npz")
    assert turn["labels"].tolist() == [0, 1, 2, 3]
    assert main(["sample", str(free), "--classifier", str(classifier), "--scale", "30", "--label", "7", *out]) == 0
    seven = np.load(tmp_path / "a.npz")
    assert seven["labels"].tolist() == [7] * 4 and (seven["images"] != turn["images"]).any()
    assert main(["sample", str(free), "--classifier", str(classifier), "--label", "10", *out]) == 2
    model = Pipeline.load(free)
    guided = Choices(classifier=str(classifier), scale=3.0).apply(model)
    assert guided.num_classes == 10 and model.num_classes == 0  # the model itself is not changed


def test_classifier_and_interval_combine_with_a_conditional_run(tiny, classifier, tmp_path):
    model = Pipeline.load(tiny)
    found = chosen(model, classifier=str(classifier), w=2.0, interval="0,9")
    same(found, Interval(ClassifierGuidance(str(classifier), 3), 0, 9))
    options = ["--n", "2", "--steps", "2", "--frames", "3", "--classifier", str(classifier), "--interval", "0.2,5"]
    assert main(["film", str(tiny), "--out", str(tmp_path / "a.gif"), *options]) == 0


def test_a_custom_cond_fn_guides(tiny, my):
    """--guidance my.Bright makes pictures brighter, and more so with a larger weight (of 200, 4 steps overshoot)."""
    means = []
    for options in ([], ["--guidance", "my.Bright"], ["--guidance=my.Bright", "--weight=5", "--through", "network"]):
        assert main(["sample", str(tiny), "--n", "8", "--steps", "4", "--out", "a.npz", *options]) == 0
        means.append(np.load("a.npz")["images"].mean())
    assert means[1] > means[0] + 5 and means[2] > means[1] + 5
    model = Pipeline.load(tiny)
    found = chosen(model, {"weight": "3", "std": 0.7}, guidance="my.Bright", scale=2.0)
    assert type(found) is Steer and found.fn.weight == 3 and found.std == 0.7 and found.scale == 2
    same(found.guidance, model.guidance)  # labels are guided as before


@pytest.mark.parametrize("options, words", [
    (["--scale", "2", "--w", "1"], ["scale = 1 + w, so give one of the two"]),
    (["--interval", "5,2"], ["0 <= low < high"]),
    (["--interval", "2"], ["wanted low,high"]),
    (["--rescale", "2"], ["rescale must lie in [0, 1]"]),
    (["--guide", "a", "--classifier", "b"], ["give one of them"]),
    (["--guide", "nowhere"], ["nowhere: no such checkpoint"]),
    (["--classifier", "nowhere"], ["nowhere: no such checkpoint"]),
    (["--guidance", "APH"], ["did you mean 'APG'", "ClassifierGuidance"]),
    (["--guidance", "my.Green"], ["cannot import 'my.Green'"]),
    (["--guidance", "my.Loss"], ["is abstract", "log_p"]),
    (["--guidance", "my.Number"], ["is not a subclass of Guidance", "diffusion.guidance.base.Guidance"]),
    (["--guidance", "APG", "--threshold", "x"], ["threshold: wanted float"]),
    (["--guidance", "APG", "--threshold"], ["--threshold needs a value"]),
    (["--guidance", "APG", "--scale", "2", "--rescale", "0.5", "--guide", "x"], ["guide: APG takes no such argument"]),
    (["--guidance", "Steer"], ["missing", "'fn'"]),
    (["--guidance", "my.Bright", "--through", "glass"], ["wanted one of guess, network"]),
    (["--parallel", "1"], ["unknown option '--parallel'"]),
])  # fmt: skip
def test_bad_guidance_options_are_refused(options, words, tiny, my, capsys):
    (my / "my.py").write_text(MY + "\n\nclass Loss(Likelihood):\n    pass\n\n\nclass Number(int):\n    pass\n")
    assert main(["sample", str(tiny), "--n", "2", "--steps", "2", "--out", "a.npz", *options]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffusion")]
    assert len(said) == 1 and all(word in said[0] for word in words), said
    assert not (my / "a.npz").exists()


def test_guides_of_other_data_are_refused(tiny, classifier, tmp_path, capsys):
    """Files that are no guides and guides of other models are refused."""
    other = tmp_path / "other"
    shutil.copytree(classifier, other)
    file = other / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)
    state["hyper_parameters"]["schedule"]["init_args"]["T"] = 500
    torch.save(state, file)
    for options, word in (
        (["--classifier", tiny], "expected a classifier of noisy images"),
        (["--guide", classifier], "expected a diffusion model, got a classifier"),
        (["--classifier", other], "was trained on the schedule"),
    ):
        assert main(["sample", str(tiny), "--out", str(tmp_path / "a.png"), *map(str, options)]) == 2
        assert word in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


@pytest.mark.slow
def test_a_sweep_of_scales(tiny, free, classifier, tmp_path, monkeypatch, capsys):
    """A plot of figures against scale for two guidances, and an unconditional run measured with its classifier."""
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    run, loose = (shutil.copytree(r, tmp_path / name) for r, name in ((tiny, "run"), (free, "free")))
    fit = ["fit", "-c", "configs/features_digits.yaml", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    assert main(fit) == 0
    options = ["--n", "40", "--steps", "2", "--metrics", "consistency,frechet"]
    words = "guidance=ClassifierFree,APG scale=0,1,4"
    assert main(["evaluate", str(run), *options, "--sweep", words]) == 0
    said = capsys.readouterr().out
    record = json.loads(next((run / "evaluation").glob("sweep-*.json")).read_text())
    found = [(r["asked"]["guidance"], r["setting"]["scale"]) for r in record["records"]]
    assert found == [(g, s) for g in ("APG", "ClassifierFree") for s in (0, 1, 4)]  # in order of the scale
    assert "--guidance" in record["recommended"] and "guidance=APG" in said
    assert len(list((run / "evaluation").glob("sweep-*.png"))) == 1
    assert main(["evaluate", str(run), *options, "--sweep", "w=0,2 steps=2,3"]) == 0  # and quality against cost
    assert len(list((run / "evaluation").glob("sweep-*.png"))) == 3
    assert main(["evaluate", str(loose), *options, "--classifier", str(classifier), "--scale", "8"]) == 0
    setting = json.loads(next((loose / "evaluation").glob("step*.json")).read_text())["setting"]
    assert setting["scale"] == 8 and setting["guidance"]["init_args"]["classifier"] == str(classifier)


def test_red_guidance_of_the_docs_makes_images_redder(my, monkeypatch):
    """For grey pictures its gradient raises red and lowers green and blue."""
    monkeypatch.syspath_prepend(my)
    g = import_module("my").Red()(torch.zeros(2, 3, 4, 4), None)
    assert (g[:, 0] > 0).all() and (g[:, 1:] < 0).all() and g.shape == (2, 3, 4, 4)
