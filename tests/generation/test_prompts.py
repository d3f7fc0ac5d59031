"""Prompts: several, negative, interpolated, and those that are not read as they stand."""

import warnings

import numpy as np
import pytest
import torch

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.generation.conditioning import PromptWarning
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.request import Request
from diffusion.generation.sample import sample
from diffusion.generation.sheets import Given, denoising
from diffusion.guidance import APG, ClassifierFree, Interval
from diffusion.nets.mlp import ResidualMLP
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from tests.nets.test_text import TOKENS, reading, unet

pytestmark = pytest.mark.filterwarnings("error::diffusion.generation.conditioning.PromptWarning")


@pytest.fixture(scope="module")
def pipeline():
    denoiser = Denoiser(reading(unet), Cosine(), V())
    return Pipeline(denoiser, DDIM(steps=3), ClassifierFree(3.0), shape=(3, 8, 8))


def test_prompts_are_sampled_in_turn_and_by_row(pipeline):
    both = sample(pipeline, prompt=["a red cat", "a blue dog"])
    assert len(both) == 2
    torch.testing.assert_close(sample(pipeline, 4, prompt=["a red cat", "a blue dog"])[:2], both)
    torch.testing.assert_close(pipeline.sample(2, prompt=["a red cat", "a blue dog"]), both)
    rows = Request.of(pipeline, n=3, prompt=["a red cat", "a blue dog"], each=True).open(64)
    assert (rows.n, rows.columns) == (6, 3) and torch.equal(rows.given.y[:3], TOKENS.encode(["a red cat"] * 3))
    assert (sample(pipeline, 1, prompt="a blue dog") - both[:1]).abs().max() > 1e-3


def test_no_prompt_is_the_unconditional_model(pipeline):
    without = sample(pipeline, 2, scale=0.0, prompt="a red cat")
    torch.testing.assert_close(sample(pipeline, 2), without, rtol=0, atol=1e-4)


@pytest.mark.parametrize("guide", [ClassifierFree, APG])
def test_a_negative_prompt_takes_the_place_of_the_unconditional_prediction(pipeline, guide):
    """At scale 0 the result is the negative prompt's own; an empty one is no prompt at all."""
    kwargs = {} if guide is ClassifierFree else {"parallel": 1.0, "momentum": 0.0}
    alone = sample(pipeline, 2, prompt="a blue dog", scale=1.0)
    pushed = sample(pipeline, 2, prompt="a red cat", guidance=guide(0.0, negative="a blue dog", **kwargs))
    torch.testing.assert_close(pushed, alone, rtol=0, atol=1e-4)
    plain = sample(pipeline, 2, prompt="a red cat")
    torch.testing.assert_close(sample(pipeline, 2, prompt="a red cat", negative=""), plain)
    assert (sample(pipeline, 2, prompt="a red cat", negative="a blue dog") - plain).abs().max() > 1e-3


def test_a_negative_prompt_reaches_the_guidance_inside_an_interval(pipeline):
    request = Request.of(pipeline, n=1, prompt="a red cat", negative="dog", interval="0.1,2", scale=2.0)
    guidance = request.open(1).pipeline.guidance
    assert isinstance(guidance, Interval) and guidance.guidance.negative == "dog"


def test_a_negative_prompt_with_unknown_words_has_a_hint(pipeline):
    with pytest.warns(PromptWarning, match="negative prompt 'a car': not among the words of training: 'car'"):
        sample(pipeline, 1, prompt="a red cat", negative="a car")


@pytest.mark.parametrize("more", [{}, {"negative": "a blue dog"}, {"interval": "0.1,2"}, {"scale": 1.0}])
def test_a_walk_encodes_its_prompts_once(pipeline, more, monkeypatch):
    seen, encoder = [], pipeline.denoiser.net.text
    monkeypatch.setattr(encoder, "encode", lambda ids, encode=encoder.encode: seen.append(len(ids)) or encode(ids))
    sample(pipeline, 2, prompt="a red cat", steps=5, **more)
    assert len(seen) <= 3 and set(seen) <= {1, 2, 4}  # with and without guidance, and the negative prompt


def test_a_film_of_one_noise_begins_with_it(pipeline):
    given = Given(pipeline.prompts(["a red cat", "a blue dog"]), same=True)
    first, *_, last = denoising(pipeline, 2, given=given, seed=3, scale=1, columns=2)
    assert np.array_equal(first[1:9, 1:9], first[1:9, 10:18])
    assert not np.array_equal(last[1:9, 1:9], last[1:9, 10:18])


def test_pictures_between_prompts_have_one_noise_and_end_at_the_prompts(pipeline):
    prompts = ["a red cat", "a blue dog", "a cat"]
    made = sample(pipeline, prompt=prompts, between=4)
    assert len(made) == 8
    for k, prompt in ((0, prompts[0]), (3, prompts[1]), (4, prompts[1]), (7, prompts[2])):
        torch.testing.assert_close(made[k], sample(pipeline, 1, prompt=prompt)[0], rtol=0, atol=1e-4)
    steps = (made[1:4] - made[:3]).flatten(1).norm(dim=1)
    assert steps.min() > 0 and steps.max() < (made[3] - made[0]).norm()


def test_between_needs_two_prompts_and_two_pictures(pipeline):
    for words in ({"prompt": "a red cat", "between": 4}, {"prompt": ["a", "cat"], "between": 1}, {"between": 3}):
        with pytest.raises(ValueError, match="between"):
            sample(pipeline, **words)
    with pytest.raises(ValueError, match="between: makes 3 pictures"):
        sample(pipeline, 7, prompt=["a", "cat"], between=3)


@pytest.mark.parametrize("prompt", ["", "a green cat", "\u8d64\u3044\u732b", "red " * 99])
def test_a_prompt_that_is_not_read_as_it_stands_is_sampled_with_a_hint(pipeline, prompt):
    with pytest.warns(PromptWarning, match="no words|not among|first 8 are read"):
        made = sample(pipeline, 1, prompt=prompt)
    assert made.isfinite().all()
    if not prompt:
        torch.testing.assert_close(made, sample(pipeline, 1), rtol=0, atol=1e-4)


def test_a_prompt_in_the_words_of_training_has_no_hint(pipeline):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.prompts(["A red CAT", "a blue dog"])


def test_conditions_of_another_kind_are_refused(pipeline):
    with pytest.raises(ValueError, match="trained with captions; use prompt"):
        sample(pipeline, label=3)
    with pytest.raises(ValueError, match="takes text, not mixes; use prompt"):
        sample(pipeline, context="hero=1")
    with pytest.raises(ValueError, match="label and prompt contradict"):
        sample(pipeline, label=3, prompt="a")
    with pytest.raises(ValueError, match="each: give prompts"):
        sample(pipeline, each=True)
    other = Pipeline(Denoiser(ResidualMLP(3, size=[8, 8], width=16, num_classes=2), Cosine(), V()), shape=(3, 8, 8))
    with pytest.raises(ValueError, match="trained without captions"):
        sample(other, prompt="a")
    with pytest.raises(ValueError, match="trained without captions"):
        sample(other, 1, label=0, scale=2.0, negative="a")
