"""Models of text: what a visitor of the served page asks for, and the exports that have no place for a prompt."""

import pytest

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.exchange.exporting.page_model import refusal
from diffusion.exchange.serving.ask import LETTERS, Ask, Limits, command
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import ClassifierFree
from diffusion.nets.mlp import ResidualMLP
from diffusion.nets.onnx_graph import graph_of
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from tests.nets.test_text import reading, unet


def pipeline(net):
    return Pipeline(Denoiser(net, Cosine(), V()), DDIM(2), ClassifierFree(2.0), shape=(3, 8, 8))


def test_a_visitors_prompts_are_the_keywords_and_the_command_line():
    words = Ask("run", 2, prompt=" a  red\ncat ", negative="-dog").words(pipeline(reading(unet)), Limits(), 8)
    assert words == {"n": 2, "prompt": "a red cat", "negative": "-dog", "seed": 0}
    line = command("sample", "run", words, "grid.png")
    assert line == "diffusion sample run --n 2 --prompt 'a red cat' --negative=-dog --seed 0 --out grid.png"
    assert "prompt" not in Ask("run", 2).words(pipeline(reading(unet)), Limits(), 8)


@pytest.mark.parametrize("text", ["x" * (LETTERS + 1), 3, ["a"]])
def test_a_prompt_that_is_no_short_text_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="at most 500 characters") as error:
        Ask("run", 2, prompt=text).words(pipeline(reading(unet)), Limits(), 8)
    assert len(str(error.value)) < 200


def test_a_prompt_for_a_model_without_text_is_refused():
    with pytest.raises(ValueError, match="trained without captions"):
        Ask("run", 2, prompt="a").words(pipeline(ResidualMLP(3, size=[8, 8], width=16)), Limits(), 8)


def test_the_page_and_onnx_refuse_a_model_of_text():
    model = pipeline(reading(unet))
    assert "conditioned on text" in refusal(model)
    pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match="reads text, which has no ONNX form"):
        graph_of(model.denoiser.net, (3, 8, 8))
