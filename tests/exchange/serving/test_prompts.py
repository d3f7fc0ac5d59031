"""Prompts on the served page: the command line of each makes the same file, and unknown words are told."""

import pytest
import torch

pytest.importorskip("gradio", reason="the extra `ui` is not installed")
from diffusion.exchange.serving import handlers
from diffusion.exchange.serving.answers import Desk
from diffusion.exchange.serving.ask import Ask
from diffusion.exchange.serving.shelf import Shelf
from diffusion.nets.unet import UNet
from diffusion.support.tokens import Tokens

from .conftest import write
from .test_answers import same

TEXT = "runs/text/version_0"


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """A folder with the run of a model of text."""
    top = tmp_path_factory.mktemp("captions")
    torch.manual_seed(0)
    net = UNet(3, width=16, mults=[1, 2], blocks=1, attention=[1], head_width=16, text_width=16,
               tokens=Tokens(("a", "red", "cat", "dog"), 8).plain)  # fmt: skip
    write(top / TEXT / "checkpoints/last.ckpt", net, (), 4)
    return top


@pytest.mark.parametrize("verb", ["sample", "film"])
def test_the_command_of_a_prompt_makes_the_same_file(verb, captions, tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(captions)
    desk = Desk(Shelf(["runs"], "cpu"))
    ask = Ask(TEXT, 2, prompt="a red cat, it's", negative="-a dog", scale=3.0, seed=2)
    made = getattr(desk, verb)(ask, tmp_path_factory.mktemp("answer"), *([".gif"] if verb == "film" else []))
    assert "'--negative=-a dog'" in made.command and same(made, tmp_path, monkeypatch, captions)


def test_a_visitor_is_told_of_what_is_not_read(captions, monkeypatch):
    said = []
    monkeypatch.chdir(captions)
    monkeypatch.setattr(handlers.gr, "Warning", lambda text, **options: said.append(text))
    made = handlers.Handlers(Desk(Shelf(["runs"], "cpu")), captions)
    assert made.facts(TEXT)["text"] and "captions" in made.facts(TEXT)["words"]
    given = {
        "model": TEXT,
        "condition": handlers.TURN,
        "scale": 2.0,
        "seed": 0,
        "prompt": " a red <b>ox ",
        "negative": "",
    }
    ask = made.ask(given, 2, handlers.OWN, 4)
    assert (ask.prompt, ask.negative) == ("a red <b>ox", "")
    assert len(said) == 1 and "not among the words of training: '&lt;', 'b', '&gt;' and 1 more" in said[0]
    assert made.ask(given | {"prompt": "a red cat"}, 2, handlers.OWN, 4).prompt == "a red cat" and len(said) == 1
