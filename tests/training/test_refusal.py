"""Suggestions for wrong options come from the live parser and the system that is trained."""

import pytest

from diffusion.training.build import DiffusionCLI
from diffusion.training.refusal import Refused

DIGITS, CLASSIFIER = "configs/digits.yaml", "configs/digits_classifier.yaml"


@pytest.mark.parametrize("config, words, said", [
    (DIGITS, ["--budgt", "20m"], "no option '--budgt'; did you mean 'budget'"),
    (DIGITS, ["--recompte", "true"], "did you mean 'recompute'"),
    (DIGITS, ["--layot", "contiguous"], "did you mean 'layout'"),
    (DIGITS, ["--emma.decay", "0.9"], "no option '--emma.decay'; did you mean 'ema'"),
    (DIGITS, ["--ema.deca", "0.9"], "did you mean 'decay'"),
    (DIGITS, ["--model.objective.dropp", "0.9"], "did you mean 'drop'"),
    (DIGITS, ["--model.objective.times", "Unifrm"], "no class 'Unifrm'; did you mean 'Uniform'"),
    (DIGITS, ["--model.net", "AttentionUNett"], "did you mean 'AttentionUNet'"),
    (CLASSIFIER, ["--model.net", "HalfUNett"], "no class 'HalfUNett'; did you mean 'HalfUNet'; there are: HalfUNet"),
    (CLASSIFIER, ["--model.times", "Unifrm"], "did you mean 'Uniform'"),
    (CLASSIFIER, ["--gard.retries", "2"], "did you mean 'guard'"),
])  # fmt: skip
def test_suggestions_for_wrong_options(config, words, said):
    with pytest.raises(Refused) as error:
        DiffusionCLI(["-c", config, *words])
    assert said in str(error.value).replace("?", "") and "\n" not in str(error.value)


def test_options_of_another_system_are_not_suggested():
    """A classifier has no EMA, samples or target."""
    with pytest.raises(Refused, match="no option '--emma.decay'") as error:
        DiffusionCLI(["-c", CLASSIFIER, "--emma.decay", "0.9"])
    listed = str(error.value)
    assert "guard" in listed and not {"ema,", "samples,", "evaluation"} & set(listed.split())
