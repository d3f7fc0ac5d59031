"""Models of text elsewhere: what a visitor of the served page asks for; ONNX files, the page, and what they refuse."""

from dataclasses import replace

import pytest
import torch

import diffusion
from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.exchange.exporting.page_model import described, refusal
from diffusion.exchange.serving.ask import LETTERS, Ask, Limits, command
from diffusion.generation.engine import in_onnx
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import ClassifierFree
from diffusion.nets.mlp import ResidualMLP
from diffusion.nets.onnx_graph import graph_of
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.support.pretrained import Pretrained
from tests.nets.test_text import dit, reading, unet


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


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet, dit], ids=["UNet", "DiT"])
def test_an_onnx_file_reads_prompts_as_the_model_does(make, tmp_path):
    pytest.importorskip("onnxscript", reason="pip install -e '.[test]'")
    model = pipeline(reading(make))
    file = diffusion.export(model, tmp_path / "m.onnx", storage="int8" if make is unet else "fp32").files[0]
    exact = Pipeline(in_onnx(model.denoiser, model.shape, True), DDIM(2), ClassifierFree(2.0), shape=model.shape)
    again = Pipeline.load(file)
    assert again.tokens == exact.tokens == model.tokens and again.conditional
    prompts = ["a red cat", "a blue dog", "", "\u732b"]
    for options in ({}, {"guidance": ClassifierFree(3.0, negative="a red dog")}):
        wanted = model.sample(4, prompt=prompts, **options)
        torch.testing.assert_close(exact.sample(4, prompt=prompts, **options), wanted, atol=1e-4, rtol=1e-4)
        found = again.sample(4, prompt=prompts, **options)
        assert (found - wanted).norm() < (0.1 if make is unet else 1e-4) * wanted.norm()
    assert (wanted[0] - wanted[1]).abs().max() > 0.01
    with pytest.raises(ValueError, match="between: the text encoder is a part of the ONNX graph"):
        again.prompts(prompts, between=3)


def test_the_page_knows_the_vocabulary_and_the_negative_prompt():
    model = pipeline(reading(unet))
    found = described(replace(model, guidance=ClassifierFree(3.0, negative="a dog")))
    assert found["text"] == model.tokens.plain and found["guidance"]["negative"] == "a dog" and found["kinds"] == 0


@pytest.mark.pretrained
def test_a_pretrained_text_encoder_is_not_exported(tmp_path):
    pretrained = pytest.importorskip("tests.pretrained")
    tokens = Pretrained.measured(pretrained.t5(tmp_path / "t5"), ["a red cat"])
    model = pipeline(unet(tokens=tokens.plain, text_width=16))
    assert "text encoder is a pretrained model in another folder" in refusal(model)
    pytest.importorskip("onnxscript", reason="pip install -e '.[test]'")
    with pytest.raises(ValueError, match="text encoder is a pretrained model in another folder"):
        graph_of(model.denoiser.net, (3, 8, 8))
