"""Steering by a CLIP model: transformers' own figures, the crops, and the choices that lead there."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion.bench.analytic import Gaussian
from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.generation.choices import Choices, UnknownArgument
from diffusion.generation.conditioning import PromptWarning
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.sample import sample
from diffusion.guidance import ClassifierFree, ClipPrompt, Interval, Plain, Steer
from diffusion.guidance.clip import MEAN, STD, normalization
from diffusion.noise import VP
from diffusion.samplers import DDIM
from diffusion.support.scaling import Scaling
from diffusion.support.specs import build, spec
from tests import pretrained
from tests.nets.test_text import reading, unet

pytestmark = pytest.mark.pretrained
transformers = pretrained.transformers


class Best(nn.Module):
    """The ideal network of Gaussian pixels, which outputs v."""

    def forward(self, x, clock, y=None, keep=None):
        t = VP().level(clock[0].double() / 1000)
        pred = Gaussian(0.1, 0.4)(x, t)
        return V().of(pred.x0, pred.eps, t)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pretrained.clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def pipeline():
    return Pipeline(Denoiser(Best(), VP(), V()), DDIM(steps=8), Plain(), shape=(3, 16, 16))


def images(n=3, side=16):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_log_p_is_the_logit_that_transformers_computes(folder):
    """CLIP's size is 16 here, so nothing is resized."""
    x0 = images()
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    text = transformers.AutoTokenizer.from_pretrained(folder)(["a red cat"], return_tensors="pt")
    pixels = ((x0 + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    wanted = model(**text, pixel_values=pixels).logits_per_image[:, 0]
    got = ClipPrompt("a red cat", folder, crops=0).log_p(x0, None)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 0.01


def test_the_gradient_is_that_of_log_p(folder):
    fn = ClipPrompt("a red cat", folder, crops=2)
    x0, at = images(2, 12), (slice(None), 1, 5, 6)
    g, step = fn(x0, None), 1e-2
    up, down = x0.clone(), x0.clone()
    up[at] += step
    down[at] -= step
    with torch.no_grad():
        slope = (fn.log_p(up, None) - fn.log_p(down, None)) / (2 * step)
    torch.testing.assert_close(g[at], slope, rtol=2e-2, atol=2e-2)
    assert g.shape == x0.shape and slope.abs().max() > 0.02


@torch.no_grad()
def test_crops_lie_in_the_image_are_the_same_in_every_step_and_count_as_much_as_the_whole(folder):
    fn, x0 = ClipPrompt("a cat", folder, crops=6), images(2, 20)
    views = fn.views(x0)
    assert len(views) == 7 and views[0] is x0
    assert all(12 <= view.shape[2] == view.shape[3] <= 20 for view in views[1:])
    assert all(torch.equal(a, b) for a, b in zip(views, ClipPrompt("a dog", folder, crops=6).views(x0), strict=True))
    each = torch.stack([fn.cosines(fn.seen(view)) for view in views])
    torch.testing.assert_close(fn.log_p(x0, None), fn._clip.logit_scale.exp() * each.mean(0), rtol=1e-4, atol=1e-4)
    assert all(view.shape[2] == view.shape[3] <= 9 for view in fn.views(torch.zeros(1, 3, 30, 9))[1:])


@torch.no_grad()
def test_grey_images_are_seen_as_colour_images_with_three_equal_channels(folder):
    grey, fn = images()[:, :1], ClipPrompt("a cat", folder)
    torch.testing.assert_close(fn.log_p(grey, None), fn.log_p(grey.expand(-1, 3, -1, -1), None))
    with pytest.raises(ValueError, match="these have 4 channels"):
        fn.log_p(torch.zeros(1, 4, 16, 16), None)


@pytest.mark.parametrize("through", ["guess", "network"])
def test_samples_agree_more_with_the_prompt(pipeline, folder, through):
    """CLIP's own logit is higher for every steered picture, from the same noise."""
    judge = ClipPrompt("a red cat", folder)
    options = {"clip_prompt": "a red cat", "clip": folder, "through": through}
    plain, off = sample(pipeline, 4), sample(pipeline, 4, **options, clip_scale=0.0)
    assert torch.equal(plain, off)
    steered = sample(pipeline, 4, **options, clip_scale=2.0)
    with torch.no_grad():
        assert (judge.log_p(steered, None) > judge.log_p(plain, None)).all()


def test_it_steers_on_top_of_the_other_guidance(folder):
    reads = Pipeline(Denoiser(reading(unet), VP(), V()), DDIM(steps=2), ClassifierFree(3.0), shape=(3, 8, 8))
    found = Choices(scale=2.0, negative="a dog", interval="0.1,5", clip_prompt="a cat", clip=folder, clip_scale=3.0,
                    arguments={"crops": "1", "std": "0.3", "eta": "0.5"}).apply(reads)  # fmt: skip
    steer, within = found.guidance, found.guidance.guidance
    assert isinstance(steer, Steer) and (steer.scale, steer.std, steer.fn.crops) == (3.0, 0.3, 1)
    assert isinstance(within, Interval) and within.guidance.negative == "a dog" and found.sampler.eta == 0.5
    assert found.sample(2, prompt="a red cat").isfinite().all()


def test_a_guidance_is_rebuilt_with_its_hash_and_refuses_another_folder(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "clip"))
    plain = spec(Steer(ClipPrompt("a cat", str(copy)), 2.0))
    assert len(plain["init_args"]["fn"]["init_args"]["hash"]) == 12 and build(plain).fn.prompt == "a cat"
    pretrained.clip(copy, seed=1)
    with pytest.raises(ValueError, match="has changed since it was chosen as a guide"):
        build(plain)


def test_normalization_is_the_folders_if_it_has_one(tmp_path):
    assert normalization(tmp_path) == (list(MEAN), list(STD))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}')
    assert normalization(tmp_path) == ([0.5] * 3, [1.0] * 3)
    for broken in ("{", "[]", '{"image_mean": 3, "image_std": null}', '{"image_mean": [0], "image_std": [1]}'):
        (tmp_path / "preprocessor_config.json").write_text(broken)
        assert normalization(tmp_path) == (list(MEAN), list(STD))


@pytest.mark.parametrize("prompt", ["\u8d64\u3044\u732b", "\U0001f431", "zzz"])
def test_other_alphabets_and_unknown_words_have_no_hint_since_clip_reads_bytes(folder, prompt):
    assert ClipPrompt(prompt, folder).hint == "" and ClipPrompt(prompt, folder)(images(1), None).isfinite().all()


def test_a_long_prompt_is_cut_with_a_hint(pipeline, folder):
    with pytest.warns(PromptWarning, match=f"clip_prompt .* of which the first {pretrained.LIMIT} are read"):
        Choices(clip_prompt="red " * 99, clip=folder).apply(pipeline)


def test_choices_that_do_not_fit_are_refused_in_one_line(pipeline, folder, tmp_path):
    for words, match in (
        ({"clip_prompt": "a cat"}, r"give the folder of a CLIP model with clip \(--clip FOLDER\)"),
        ({"clip": folder}, "say what the pictures show"),
        ({"clip_scale": 2.0}, "say what the pictures show"),
        ({"clip_prompt": " ", "clip": folder}, "clip_prompt: wanted what the pictures show"),
        ({"clip_prompt": "a", "clip": folder, "arguments": {"crops": "-1"}}, "wanted crops >= 0"),
        ({"clip_prompt": "a", "clip": pretrained.t5(tmp_path / "t5")}, "CLIPModel"),
    ):
        with pytest.raises(ValueError, match=match) as error:
            Choices(**words).apply(pipeline)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="wanted the folder of a text model"):
        Choices(clip_prompt="a", clip=str(tmp_path / "none")).apply(pipeline)
    with pytest.raises(UnknownArgument, match="crops"):
        Choices(arguments={"crops": "1"}).apply(pipeline)
    pipeline.scaling = Scaling.of({"dtype": "float32", "shift": [0.0], "scale": [1.0], "bounded": False})
    with pytest.raises(ValueError, match="grey or RGB images of 8 or 16 bits"):
        Choices(clip_prompt="a", clip=folder).apply(pipeline)


def test_without_transformers_the_error_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'litdiffusion\[text\]'"):
        ClipPrompt("a cat", folder)
