"""A sweep over guidances: each setting uses its own guidance and does not affect the next one."""

import json
import shutil

import pytest

import diffusion
from diffusion.cli import main
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import ClassifierGuidance
from diffusion.judging.request import Request
from diffusion.support.specs import spec

from .conftest import TINY

CPU = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny unconditional run and a tiny classifier of noisy images; the digits' own classifier is in the cache."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_CACHE", str(out / "cache"))
        assert main(["fit", *TINY, "--data.labels", "false", "--trainer.max_epochs", "1", "--out", str(out)]) == 0
        fit = ["fit", "-c", "configs/digits_classifier.yaml", "--model.net.width", "16", "--data.limit", "320"]
        assert main([*fit, *CPU, "--out", str(out)]) == 0
        assert main(["fit", "-c", "configs/features_digits.yaml", *CPU]) == 0
        yield out / "digits" / "version_0", out / "digits_classifier" / "version_0"


def test_a_classifier_of_one_setting_does_not_guide_the_next(runs, tmp_path):
    """On an unconditional model, for which a classifier provides the labels."""
    run, classifier = shutil.copytree(runs[0], tmp_path / "run"), runs[1]
    name = "diffusion.guidance.ClassifierGuidance"
    table = diffusion.evaluate(run, 30, sweep=f"guidance={name} classifier={classifier} scale=40 steps=2; steps=3")
    of = {r["setting"]["steps"]: r for r in table}
    guided, plain = of[2]["setting"], of[3]["setting"]
    assert guided["guidance"]["class_path"].endswith(".ClassifierGuidance") and guided["scale"] == 40
    assert plain["guidance"] == spec(Pipeline.load(run).guidance)
    alone = diffusion.evaluate(run, 30, steps=3, metrics="frechet", again=True)
    assert alone[0]["setting"] == plain and alone[0]["figures"] == of[3]["figures"]
    # Without labels nothing can be consistent with them: a metric is left out unless every setting has it.
    assert [f["metric"] for f in table.figures] == ["frechet", "frechet"]
    assert any("left out consistency: needs samples with labels" in note for note in table.notes)


def test_choosing_a_guidance_leaves_the_pipeline_as_it_was(runs):
    run, classifier = runs
    pipeline = Pipeline.load(run)
    before = pipeline.sampler, pipeline.guidance
    request = Request.of(run, sweep=[{"classifier": str(classifier), "steps": 2}, {"steps": 3}])
    first, second = (request.choices_of(setting).apply(pipeline) for setting in request.settings())
    assert (pipeline.sampler, pipeline.guidance) == before and pipeline.num_classes == 0
    assert type(first.guidance) is ClassifierGuidance and first.num_classes == 10 and first.sampler.steps == 2
    assert second.guidance is pipeline.guidance and second.num_classes == 0 and second.sampler.steps == 3


def test_figures_that_need_labels_are_refused_when_asked_for_by_name(runs, tmp_path):
    run, classifier = shutil.copytree(runs[0], tmp_path / "run"), runs[1]
    few = {"n": 20, "metrics": "consistency"}
    with pytest.raises(ValueError, match="metrics consistency: needs samples with labels"):
        diffusion.evaluate(run, sweep=[{"classifier": str(classifier)}, {"steps": 2}], **few)
    table = diffusion.evaluate(run, classifier=str(classifier), steps=2, **few)
    assert table.figures[0]["metric"] == "consistency" and json.loads(table.files[0].read_text())["figures"]
