"""Every sampler, guidance and edit on models whose images are not what their network sees: of latents, and cascades."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import diffusion
from diffusion import Denoiser, Pipeline
from diffusion.cli import main
from diffusion.denoiser.codecs import PCA, Frozen
from diffusion.denoiser.hints import LowResolution
from diffusion.denoiser.targets import V
from diffusion.generation import editing
from diffusion.generation.cascade import Cascade
from diffusion.generation.choices import Choices
from diffusion.generation.counting import counted
from diffusion.generation.sheets import denoising
from diffusion.guidance import (
    APG,
    AutoGuidance,
    ClassifierFree,
    ClassifierGuidance,
    Contrast,
    Guidance,
    Interval,
    Likelihood,
    Plain,
    Steer,
    Unbounded,
    Wrapper,
)
from diffusion.guidance.classifier import NoisyImageClassifier
from diffusion.nets import ResidualMLP
from diffusion.nets.autoencoder import ConvAutoencoder
from diffusion.noise import VP, Cosine
from diffusion.samplers import DDIM, Sampler
from diffusion.support.specs import concrete

SHAPE, NAMES = (1, 8, 8), ("a", "b", "c")
SAMPLERS = sorted(concrete(Sampler, "diffusion"), key=lambda kind: kind.__name__)


def network(shape, classes=3, seed=0, **options):
    """A denoiser of random weights."""
    torch.manual_seed(seed)
    net = ResidualMLP(shape[0], shape[1:], width=16, depth=1, num_classes=classes, **options)
    for weight in net.parameters():  # some are initially 0
        nn.init.normal_(weight, std=0.2)
    return Denoiser(net, Cosine(50), V()).eval()


def coder(seed=0):
    """The codec of an untrained autoencoder, 8x8 -> 4x4x2."""
    torch.manual_seed(seed)
    codec = Frozen("runs/auto", net=ConvAutoencoder(1, 2, 8, (1, 2))).requires_grad_(False)
    codec.fit(lambda: iter([torch.rand(100, *SHAPE) * 2 - 1]))
    return codec


def latent(seed=0):
    parts = {"shape": SHAPE, "class_names": NAMES, "clamp": Unbounded()}
    return Pipeline(network((2, 4, 4), seed=seed), DDIM(4), codec=coder(), **parts)


def cascade(seed=0):
    base = Pipeline(network((1, 4, 4), seed=seed), DDIM(4), shape=(1, 4, 4), class_names=NAMES)
    large = network(SHAPE, seed=seed + 1, image_channels=2)
    return Cascade.of(base, Pipeline(large, DDIM(4), hint=LowResolution(2, 0.5), shape=SHAPE, class_names=NAMES))


MODELS = {"latent": latent, "cascade": cascade}
EDITS = ("inpaint", "img2img", "reconstruct", "vary", "interpolate", "stop", "noise")


@pytest.fixture(params=MODELS)
def made(request):
    """A model of 1x8x8 images with three classes; `made.kind` names it."""
    pipe = MODELS[request.param]()
    pipe.kind = request.param
    return pipe


def pictures(n=3):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(5)) * 2 - 1


# --- samplers ---------------------------------------------------------------------------------------------


def walk_of(kind, steps=3):
    return kind() if kind.__name__ == "ProbabilityFlow" else kind(steps=steps)


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.__name__)
def test_every_sampler_makes_images(made, kind):
    """In all stages, with guidance; image k does not depend on its batch."""
    walk, y = walk_of(kind), torch.tensor([0, 1, 2])
    pipe = replace(Choices(sampler=walk, guidance=ClassifierFree(2.0)).apply(made), sampler=walk)
    x = pipe.sample(3, y, seed=1)
    assert x.shape == (3, *SHAPE) and x.isfinite().all() and x.abs().max() <= 1
    if kind.__name__ != "ProbabilityFlow":  # its steps are common to a batch
        torch.testing.assert_close(pipe.sample(2, y[1:], seed=1, first=1), x[1:], rtol=0, atol=1e-4)


# --- guidance ---------------------------------------------------------------------------------------------


class Bright(Likelihood):
    """Bright images; records the shapes that it judges."""

    def __init__(self, seen: list | None = None) -> None:
        self.seen = [] if seen is None else seen

    def log_p(self, x0, t):
        self.seen.append(tuple(x0.shape[1:]))
        return 20 * x0.flatten(1).mean(1)


def guide(pipe, folder):
    """The file of a worse version of a model's last stage, of the same codec."""
    worse = MODELS[pipe.kind](seed=7)
    worse = worse.last if isinstance(worse, Cascade) else worse
    diffusion.export(worse, folder / "guide.safetensors")
    return str(folder / "guide.safetensors")


GUIDANCES = {
    "Plain": lambda pipe, folder: Plain(),
    "ClassifierFree": lambda pipe, folder: ClassifierFree(3.0),
    "rescaled": lambda pipe, folder: ClassifierFree(3.0, rescale=0.7),
    "APG": lambda pipe, folder: APG(3.0, threshold=2.0),
    "Interval": lambda pipe, folder: Interval(ClassifierFree(3.0), 0.1, 5),
    "AutoGuidance": lambda pipe, folder: AutoGuidance(guide(pipe, folder), 2.0),
    "Steer": lambda pipe, folder: Steer(Bright()),
    "Steer through the network": lambda pipe, folder: Interval(Steer(Bright(), through="network"), 0, 5),
    "Steer of another": lambda pipe, folder: Steer(Bright(), guidance=ClassifierFree(3.0)),
}


def test_all_guidances_are_here():
    kinds = {kind for kind in concrete(Guidance, "diffusion.guidance")} - {Contrast, Wrapper}
    assert kinds == {Plain, ClassifierFree, APG, Interval, AutoGuidance, Steer, ClassifierGuidance}


@pytest.mark.parametrize("name", GUIDANCES)
def test_every_guidance_guides(made, name, tmp_path):
    """It changes the images, and what it does is a function of the image's own condition."""
    guidance, y = GUIDANCES[name](made, tmp_path), torch.tensor([0, 1, 2])
    x, plain = made.sample(3, y, guidance=guidance), made.sample(3, y, guidance=Plain())
    assert x.shape == (3, *SHAPE) and x.isfinite().all()
    assert torch.equal(x, plain) == (name == "Plain")
    torch.testing.assert_close(made.sample(1, y[2:], guidance=guidance, first=2), x[2:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("through", ["guess", "network"])
def test_a_steering_function_judges_images_and_moves_them(made, through):
    seen = []
    y = torch.tensor([0, 1, 2])
    x = made.sample(3, y, guidance=Interval(Steer(Bright(seen), through=through), 0, 5))
    assert set(seen) == {SHAPE}
    assert (x.mean((1, 2, 3)) > made.sample(3, y, guidance=Plain()).mean((1, 2, 3))).all()


class Ideal(nn.Module):
    """The ideal network of latents N(0, 1), which receives the time and outputs v."""

    def forward(self, x, clock, y=None, keep=None):
        t = VP().level(clock[0].double() / 1000)
        x0 = t.alpha * x / (t.alpha**2 + t.sigma**2)
        return V().of(x0, (x - t.alpha * x0) / t.sigma, t)


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("through", ["guess", "network"])
def test_steering_by_a_measurement_of_pixels_gives_the_posterior_of_latents(through, time, float64):
    """Pixels y = s E z + m + noise n, with E orthonormal: given E^T (y - m) / s, latents are Gaussian."""
    codec, scale, noise = PCA(1, 2, 2).double(), 0.3, 0.25
    codec.fit(lambda: iter([torch.randn(500, *SHAPE) * 0.5 + 0.1]))
    codec.scale.fill_(scale)
    schedule = VP()
    schedule.clock = lambda t: 1000 * t
    pipe = Pipeline(Denoiser(Ideal(), schedule, V()), codec=codec, shape=SHAPE, clamp=Unbounded())
    wanted = pictures(1).double()

    class Measured:
        def __call__(self, x0, t):
            var = t.sigma**2 / (t.alpha**2 + t.sigma**2)  # of a latent
            return (wanted - x0) / (noise**2 + scale**2 * var)

    x = torch.randn(4, 2, 4, 4)
    t = schedule.level(torch.tensor(time))
    with torch.no_grad():
        pred = pipe.steered(None, guidance=Steer(Measured(), through=through))(x, t)
    seen = codec.encode(wanted)  # z + noise of deviation noise / scale
    var = 1 / (1 + scale**2 / noise**2)
    mean = var * scale**2 / noise**2 * seen
    score = (t.alpha * mean - x) / (t.alpha**2 * var + t.sigma**2)
    torch.testing.assert_close(-pred.eps / t.sigma, score, rtol=1e-6, atol=1e-6)


def test_a_guide_of_other_latents_is_refused(tmp_path):
    pipe, pixels = latent(), Pipeline(network(SHAPE), DDIM(4), shape=SHAPE, class_names=NAMES)
    other = replace(latent(), codec=coder(seed=3))
    for k, (model, theirs) in enumerate([(pipe, other), (pipe, pixels), (pixels, pipe)]):
        file = tmp_path / f"{k}.safetensors"
        diffusion.export(theirs, file)
        with pytest.raises(ValueError, match=r"AutoGuidance: this guide has (the codec \w+|no codec), the model "):
            model.sample(1, guidance=AutoGuidance(str(file), 2.0))


def test_a_classifier_of_noisy_images_is_refused():
    """Also if the latents have the shape of images."""
    classifier = nn.Linear(1, 1)
    classifier.schedule, classifier.shape, classifier.class_names = Cosine(50), SHAPE, NAMES
    with pytest.raises(ValueError) as error:
        latent().sample(1, torch.tensor([0]), guidance=ClassifierGuidance(classifier))
    assert "sees noisy images, the model noisy latents; steer by one of clean images" in str(error.value)


class Pattern(nn.Module):
    """A classifier of noisy images by fixed patterns."""

    def forward(self, x, clock):
        return x.flatten(1) @ torch.linspace(-1, 1, 3 * x[0].numel(), dtype=x.dtype).view(-1, 3)


def test_a_classifier_of_noisy_images_guides_the_base_of_a_cascade():
    whole, y = cascade(), torch.tensor([0, 1, 2])
    classifier = NoisyImageClassifier(Pattern(), Cosine(50), (1, 4, 4), NAMES)
    guided = replace(whole, base=replace(whole.base, guidance=ClassifierGuidance(classifier, 3)))
    x = guided.sample(3, y)
    assert x.isfinite().all() and not torch.allclose(x, whole.sample(3, y), atol=1e-3)


def test_evaluations_are_counted(made):
    pipe, counters = counted(made, lambda n: None)
    pipe.sample(3)
    assert all(counter.images == 3 * 4 for counter in counters)


# --- edits and pictures -----------------------------------------------------------------------------------


def edited(pipe, edit, x, y):
    """Images of an edit, (..., C, H, W)."""
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[:, 3:] = True
    if edit == "inpaint":
        out = editing.inpaint(pipe, x, hidden, y, jumps=1, length=2)
        assert torch.equal(out[..., :3], x[..., :3]) and not torch.equal(out, x)
        return out
    if edit == "img2img":
        torch.testing.assert_close(editing.img2img(pipe, x, 1.0, y, seed=2), pipe.sample(len(x), y, seed=2))
        return editing.img2img(pipe, x, 0.5, y)
    if edit == "reconstruct":
        return editing.reconstruct(pipe, x, y)[0]
    if edit == "vary":
        return editing.vary(pipe, x, 0.3, 2, y)
    if edit == "interpolate":
        return editing.interpolate(pipe, x, x.flip(0), 3, y, y.flip(0))
    if edit == "stop":
        frames = editing.stop(pipe, [1.0, 0.5, 0.0], len(x), y)
        torch.testing.assert_close(frames[-1].x, pipe.sample(len(x), y))
        return torch.stack([part for frame in frames for part in (frame.x, frame.x0)])
    return editing.from_noise(pipe, editing.to_noise(pipe, x, y), y)


@pytest.mark.parametrize("guided", [False, True], ids=["the model's guidance", "steered"])
@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_takes_and_returns_images(made, edit, guided):
    pipe = replace(made, guidance=Steer(Bright(), guidance=ClassifierFree(1.5))) if guided else made
    out = edited(pipe, edit, pictures(), torch.tensor([0, 1, 2]))
    assert out.shape[-3:] == SHAPE and 3 in out.shape[:2] and out.isfinite().all()


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.__name__)
def test_edits_take_every_sampler(made, kind):
    if kind.__name__ == "ProbabilityFlow":
        pytest.skip("it has no levels")
    x, walk = pictures(), kind(steps=3)
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[2:5] = True
    out = editing.inpaint(made, x, hidden, sampler=walk, jumps=1, length=1)
    assert out.isfinite().all() and torch.equal(out[..., 5:, :], x[..., 5:, :])
    assert editing.img2img(made, x, 0.6, sampler=walk).isfinite().all()


def test_frames_are_images(made):
    pages = denoising(made, 3, frames=3)
    assert len(pages) == 3 and len({page.shape for page in pages}) == 1


@pytest.mark.parametrize("verb", ["sample", "film", *(f"edit {v}" for v in EDITS if v != "noise")])
def test_commands_give_images(verb, tmp_path, capsys):
    """Of a model of latents, from its file; `--input` is a picture."""
    diffusion.export(latent(), tmp_path / "m.safetensors")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3).save(tmp_path / "in.png")
    out = tmp_path / ("out.gif" if verb == "film" else "out.png")
    words = [*verb.split(), str(tmp_path / "m.safetensors"), "--out", str(out)]
    if verb.startswith("edit") and "stop" not in verb:
        words += ["--input", *[str(tmp_path / "in.png")] * (2 if "interpolate" in verb else 1)]
    if verb == "edit inpaint":
        words += ["--jumps", "1"]
    assert main(words) == 0, capsys.readouterr().err
    assert out.stat().st_size > 0
