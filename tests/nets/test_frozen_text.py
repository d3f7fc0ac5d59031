"""Networks that read text by a frozen CLIP or T5: its features, padding, null, files."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from diffusion.denoiser import Denoiser
from diffusion.nets.frozen_text import FrozenTextEncoder, text_encoder
from diffusion.nets.text import TextEncoder
from diffusion.noise import Cosine
from diffusion.support.pretrained import MOST, Pretrained, tokens_of
from diffusion.support.specs import build, spec
from tests import pretrained
from tests.nets.test_text import TOKENS, dit, inputs, unet

pytestmark = pytest.mark.pretrained
transformers = pretrained.transformers
TEXTS = ["a red cat", "", "a blue dog and"]


@pytest.fixture(scope="module", params=["clip", "t5"])
def folder(request, tmp_path_factory):
    return getattr(pretrained, request.param)(tmp_path_factory.mktemp("text") / request.param)


@pytest.fixture(scope="module")
def tokens(folder):
    return Pretrained.measured(folder, TEXTS)


@pytest.fixture(scope="module", params=[unet, dit], ids=["UNet", "DiT"])
def net(request, tokens):
    torch.manual_seed(0)
    net = request.param(tokens=tokens.plain, text_width=16)
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return net.eval()


@torch.no_grad()
def test_features_are_those_of_the_model(folder, tokens):
    """The outputs are the Linear of the normed features that transformers itself computes, text by text."""
    torch.manual_seed(0)
    encoder = FrozenTextEncoder(tokens.plain, 8)
    out = encoder(tokens.encode(TEXTS), None, 3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = "T5EncoderModel" if folder.endswith("t5") else "CLIPTextModel"
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    for k in (0, 2):
        made = model(**tokenizer(TEXTS[k], return_tensors="pt"))
        h = made.last_hidden_state[0]
        whole = h.mean(0) if folder.endswith("t5") else made.pooler_output[0]
        wanted = encoder.proj(F.layer_norm(torch.cat([whole[None], h]), (16,)))
        torch.testing.assert_close(out[k, : 1 + len(h)], wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(out[k, 1 + len(h) :], encoder.null[1:].expand(tokens.length - len(h), -1))
    assert torch.equal(out[1], torch.cat([encoder.null[:1], encoder.null[1:].expand(tokens.length, -1)]))


@torch.no_grad()
def test_dropped_missing_and_empty_texts_are_the_same_null_condition(net, tokens):
    x, clock = inputs(3)
    y = tokens.encode(TEXTS)
    null = net(x, clock, None)
    assert torch.equal(net(x, clock, tokens.encode(["", "  ", None])), null)
    assert torch.equal(net(x, clock, y, torch.zeros(3, dtype=torch.bool)), null)
    changed = (net(x, clock, y) - null).abs().amax((1, 2, 3))
    assert changed[1] == 0 and changed[0] > 1e-4 and changed[2] > 1e-4


@torch.no_grad()
def test_a_prediction_does_not_depend_on_the_other_texts_of_the_batch(net, tokens):
    x, clock = inputs(3)
    y = tokens.encode(["a red cat", "a", "a blue dog a red cat"])
    together = net(x, clock, y)
    for k in range(3):
        torch.testing.assert_close(net(x[k : k + 1], clock[k : k + 1], y[k : k + 1])[0], together[k], rtol=0, atol=1e-4)


def test_the_frozen_model_is_neither_trained_nor_saved(net, tokens):
    x, clock = inputs(3)
    net(x, clock, tokens.encode(TEXTS)).square().mean().backward()
    own = {name for name, _ in net.text.named_parameters()}
    assert own == {"proj.weight", "proj.bias", "null"} == set(net.text.state_dict())
    assert all(p.grad is not None and p.grad.any() for p in net.text.parameters())
    assert not any(p.requires_grad for p in net.text.frozen[0].parameters())
    assert not net.text.frozen[0].training and not net.train().text.frozen[0].training
    net.eval().zero_grad(set_to_none=True)


def test_the_frozen_model_moves_with_the_network(tokens):
    net = unet(tokens=tokens.plain, text_width=16).double()
    assert {p.dtype for p in net.text.frozen[0].parameters()} == {torch.float64}
    x, clock = inputs(1)
    assert net(x.double(), clock, tokens.encode(["a cat"])).dtype == torch.float64


@torch.no_grad()
def test_a_network_is_rebuilt_from_its_spec_and_the_folder(net, tokens):
    plain = spec(net)
    assert plain["init_args"]["tokens"] == tokens.plain and tokens_of(tokens.plain) == tokens
    other = build(plain).eval()
    other.load_state_dict(net.state_dict())
    x, clock = inputs(3)
    assert torch.equal(other(x, clock, tokens.encode(TEXTS)), net(x, clock, tokens.encode(TEXTS)))


@torch.no_grad()
def test_encoded_text_is_used_as_it_is(net, tokens):
    x, clock = inputs(2)
    y = tokens.encode(["a red cat", "a blue dog"])
    denoiser = Denoiser(net, Cosine())
    once = denoiser.encoded(y)
    assert once.shape == (2, 1 + tokens.length, 16) and denoiser.conditional and denoiser.tokens == tokens
    assert torch.equal(net(x, clock, once), net(x, clock, y))


def test_tokens_are_counted_cut_and_read_back(folder, tokens):
    limit = pretrained.LIMIT if folder.endswith("clip") else MOST
    assert 8 <= tokens.length <= limit and tokens.size == 1 + len(tokens.tokenizer)
    assert tokens.decode(tokens.encode(["a red cat"])) == ["a red cat"]
    assert tokens.encode([]).shape == (0, tokens.length)
    assert Pretrained.measured(folder, ["red " * 99]).length == limit
    assert Pretrained.measured(folder, [None, ""]).length == 8
    long = tokens.encode(["red " * 99])
    assert long.shape == (1, tokens.length) and long.all()


def test_hints_of_prompts_that_are_not_read_as_they_stand(folder, tokens):
    assert tokens.hint("a red cat") == "" and "no words" in tokens.hint(" \n\t ")
    assert f"of which the first {tokens.length} are read" in tokens.hint("red " * 99)
    other = tokens.hint("\u8d64\u3044 cat")
    assert ("unknown to the text encoder" in other) == folder.endswith("t5")  # CLIP's tokens are bytes


def test_a_changed_missing_or_unfit_folder_is_refused_in_one_line(folder, tokens, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    moved = tokens.plain | {"folder": str(copy)}
    assert isinstance(text_encoder(moved, 16, 2), FrozenTextEncoder)
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path))  # a folder that has moved is looked for there
    monkeypatch.delenv("SM_CHANNEL_TRAINING", raising=False)
    assert isinstance(text_encoder(moved | {"folder": "/away/copy"}, 16, 2), FrozenTextEncoder)
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="not the text encoder of the training; wanted hash"):
        text_encoder(moved, 16, 2)
    with pytest.raises(FileNotFoundError, match="wanted the folder of a text model"):
        Pretrained.measured(str(tmp_path / "none"), [])
    (copy / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="wanted a tokenizer"):
        Pretrained.measured(str(copy), ["a"])
    (copy / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="wanted a text encoder of the types clip"):
        Pretrained.measured(str(copy), ["a"])
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="wanted weights as .safetensors"):
        FrozenTextEncoder(tokens.plain | {"folder": str(bare), "hash": ""})
    torch.save({}, bare / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be read as a"):
        FrozenTextEncoder(tokens.plain | {"folder": str(bare), "hash": ""})


def test_weights_of_another_model_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    state = load_file(copy / "model.safetensors")
    save_file(dict(list(state.items())[: len(state) // 2][:1]), copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="are missing, e.g."):
        FrozenTextEncoder(Pretrained.measured(str(copy), ["a"]).plain)


def test_without_transformers_the_error_says_how_to_install_it(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'litdiffusion\[text\]'"):
        Pretrained.measured(folder, ["a"])


def test_a_vocabulary_of_words_has_an_encoder_that_is_trained():
    assert isinstance(text_encoder(TOKENS.plain, 16, 2), TextEncoder) and text_encoder(None, 16, 2) is None
