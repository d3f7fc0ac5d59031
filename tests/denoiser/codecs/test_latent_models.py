"""Models of latents: everything that a user sees is in pixels, and the codec is part of the model's one file."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from diffusion import Denoiser, Pipeline
from diffusion.data import Digits
from diffusion.denoiser.codecs import PCA, Frozen, Identity
from diffusion.denoiser.targets import V
from diffusion.generation import editing
from diffusion.generation.sheets import denoising
from diffusion.guidance import ClassifierFree
from diffusion.guidance.bounds import Unbounded
from diffusion.judging.nll import Report, Request, measure
from diffusion.nets import AttentionUNet
from diffusion.nets.autoencoder import ConvAutoencoder
from diffusion.noise import VP, Cosine
from diffusion.samplers import DDIM, DDPM, Heun
from diffusion.samplers.base import Sampler
from diffusion.support.specs import concrete
from diffusion.training.callbacks import EMA, Checkpoint, Diagnostics, DurableIO
from diffusion.training.systems import Autoencoder, Diffusion

SHAPE = (1, 8, 8)


def digits(n=64, split="train"):
    return Digits().arrays(split)[0][:n] / 127.5 - 1


def net(channels):
    torch.manual_seed(0)
    return AttentionUNet(channels, (8, 8), heads=2, attention=1, num_classes=10)


def fitted(codec=None):
    codec = codec or PCA(1, 3, 2)
    codec.fit(lambda: iter([digits(500)]))
    return codec


def model(codec, **options):
    channels = codec.latent if codec and codec.latent else 1
    names = list("0123456789")
    return Diffusion(net(channels), Cosine(20), codec=codec, sampler=DDIM(4), shape=SHAPE, class_names=names, **options)


def train(folder, made, steps=4):
    more = [Diagnostics(16)] if isinstance(made, Diffusion) else []
    trainer = pl.Trainer(
        accelerator="cpu", logger=pl.loggers.CSVLogger(folder, name="x", version=0), max_steps=steps,
        callbacks=[EMA(0.9), *more, Checkpoint(steps)], plugins=[DurableIO()], enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(made, Digits(batch_size=8, limit=64))
    return folder / "x" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The file of an untrained autoencoder, 8x8 -> 4x4x2."""
    torch.manual_seed(0)
    system = Autoencoder(ConvAutoencoder(1, 2, 8, (1, 2)), shape=SHAPE)
    return train(tmp_path_factory.mktemp("autoencoder"), system, 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory, autoencoder):
    """The file of a model of that autoencoder's latents, and the file of the autoencoder."""
    return train(tmp_path_factory.mktemp("latent"), model(Frozen(str(autoencoder)))), autoencoder


def test_identity_is_bit_identical_to_no_codec(tmp_path):
    """Hyper-parameters, weights after training, and samples."""
    with_it, without = (train(tmp_path / name, model(codec)) for name, codec in (("a", Identity()), ("b", None)))
    a, b = (torch.load(path, weights_only=True) for path in (with_it, without))
    assert a["hyper_parameters"] == b["hyper_parameters"] and "codec" not in a["hyper_parameters"]
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])
    a, b = (Pipeline.load(path).sample(4, seed=1) for path in (with_it, without))
    assert torch.equal(a, b)


def test_the_denoiser_sees_latents_and_users_see_pixels():
    pipe = model(fitted()).pipeline
    assert pipe.shape == SHAPE and pipe.latent_shape == (3, 4, 4)
    assert isinstance(pipe.clamp, Unbounded)
    frames = list(pipe.frames(4, seed=2))
    assert all(f.x.shape == f.x0.shape == (4, *SHAPE) for f in frames)
    sample = pipe.sample(4, seed=2)
    assert torch.equal(sample, frames[-1].x) and sample.abs().max() <= 1
    assert pipe.start(4, 2).shape == (4, *SHAPE)
    walk = list(pipe.sampler.iterate(pipe.steered(pipe.in_turn(4)), latents(pipe, 4, 2), pipe.denoiser.schedule))
    assert torch.equal(pipe.codec.decode(walk[-1].x).clamp(-1, 1), sample)
    pages = denoising(pipe, 4, frames=3)
    assert len(pages) == 3 and all(page.shape == pages[0].shape for page in pages)


def latents(pipe, n, seed):
    """The start of a walk, in latents."""
    from diffusion.noise.draws import ImageDraws

    return pipe.denoiser.schedule.prior_std * ImageDraws(seed, range(n))(torch.empty(n, *pipe.latent_shape))


def test_a_walk_only_decodes_what_is_looked_at():
    pipe, calls = model(fitted()).pipeline, []
    decode = pipe.codec.image
    pipe.codec.image = lambda z: calls.append(len(z)) or decode(z)
    pipe.sample(6, batch_size=4)
    assert calls == [4, 2]


SAMPLERS = sorted(concrete(Sampler, "diffusion.samplers"), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.__name__)
def test_every_sampler_walks_over_latents(kind):
    pipe = model(fitted()).pipeline
    made = pipe.sample(3, sampler=kind(steps=3), guidance=ClassifierFree(2.0))
    assert made.shape == (3, *SHAPE) and made.isfinite().all()


def test_edits_take_and_return_pixels():
    pipe, x = replace(model(fitted()).pipeline, sampler=DDIM(4)), digits(3)
    half = torch.zeros(8, 8, dtype=torch.bool)
    half[:, :3] = True  # not a whole latent
    made = editing.inpaint(pipe, x, half, jumps=1)
    assert torch.equal(made[..., 3:], x[..., 3:]) and not torch.equal(made[..., :3], x[..., :3])
    same = pipe.pixels.decode(pipe.pixels.encode(x))
    assert torch.equal(editing.img2img(pipe, x, 0.0), same)
    torch.testing.assert_close(editing.img2img(pipe, x, 1.0, torch.arange(3), seed=3), pipe.sample(3, seed=3))
    z = editing.to_noise(pipe, x)
    assert z.shape == (3, *pipe.latent_shape) and editing.from_noise(pipe, z).shape == x.shape
    back, error = editing.reconstruct(pipe, x, sampler=DDIM(20), iterations=10)
    assert back.shape == x.shape and error.shape == (3,)
    assert editing.vary(pipe, x, n=2).shape == (3, 2, *SHAPE)
    assert editing.interpolate(pipe, x, x.flip(0), n=3).shape == (3, 3, *SHAPE)
    assert all(f.x.shape == f.x0.shape == (2, *SHAPE) for f in editing.stop(pipe, [1.0, 0.5, 0.0], 2))


def test_training_measures_the_latents_once_and_keeps_them(file):
    """The measures of the 64 training images are in the file, and the loaded model has them."""
    path, autoencoder = file
    wanted = Frozen(str(autoencoder))
    x, _ = Digits(limit=64).arrays("train")
    wanted.fit(lambda: iter([x / 127.5 - 1]))
    found = Pipeline.load(path).codec
    torch.testing.assert_close(found.scale, wanted.scale)
    torch.testing.assert_close(found.shift, wanted.shift)
    assert found.fitted and not any(p.requires_grad for p in found.parameters())


def test_a_file_in_another_folder_works_without_the_autoencoder(file, tmp_path, monkeypatch):
    path, autoencoder = file
    here = Pipeline.load(path).sample(3)
    moved = tmp_path / "elsewhere.ckpt"
    shutil.copy(path, moved)
    hidden = autoencoder.parent.with_name("hidden")
    autoencoder.parent.rename(hidden)
    try:
        assert torch.equal(Pipeline.load(moved).sample(3), here)
        assert Diffusion.load(str(moved)).pipeline.codec.fitted
    finally:
        hidden.rename(autoencoder.parent)


def test_a_missing_or_changed_codec_is_refused_by_name_and_hash(file, tmp_path):
    path, _ = file
    read = torch.load(path, weights_only=True)
    given = read["hyper_parameters"]["codec"]["init_args"]
    name, hash = given["autoencoder"], given["hash"]
    cut = read | {"state_dict": {k: v for k, v in read["state_dict"].items() if not k.startswith("codec.")}}
    torch.save(cut, tmp_path / "missing.ckpt")
    with pytest.raises(ValueError, match=rf"missing.ckpt: the weights of its codec Frozen\({name}, hash {hash}\) are"):
        Pipeline.load(tmp_path / "missing.ckpt")
    key = next(k for k in read["state_dict"] if k.startswith("codec.net.") and k.endswith("weight"))
    read["state_dict"][key] = read["state_dict"][key] + 0.1
    torch.save(read, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=f"changed.ckpt: .*{name}.*expected hash {hash}, got"):
        Pipeline.load(tmp_path / "changed.ckpt")


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Diffusion(net(1), Cosine(20), codec=PCA(1, 3, 2), shape=SHAPE), "its latents have 3 channels"),
        (
            lambda: Diffusion(net(3), Cosine(20), codec=PCA(3, 3, 2), shape=SHAPE),
            "a codec of 3 channels, got images of",
        ),
        (
            lambda: Diffusion(net(3), Cosine(20), codec=PCA(1, 3, 3), shape=SHAPE),
            "8x8 is not divisible by its factor 3",
        ),
    ],
)
def test_a_codec_that_does_not_fit_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


class Ideal(torch.nn.Module):
    """The ideal network of latents N(0, 1), which receives the time and outputs v."""

    def forward(self, x, clock, y=None, keep=None):
        t = VP().level(clock[0].double() / 1000)
        x0 = t.alpha * x / (t.alpha**2 + t.sigma**2)
        return V().of(x0, (x - t.alpha * x0) / t.sigma, t)


def test_the_likelihood_of_latents_is_their_density(float64):
    """Of latents N(0, 1): -log2 N(z; 0, 1) / dims, up to the noise of the least noisy level."""
    codec, schedule = fitted().double(), VP()
    schedule.clock = lambda t: 1000 * t
    pipe = Pipeline(Denoiser(Ideal(), schedule, V()), codec=codec, shape=SHAPE, clamp=Unbounded())
    images = Digits().arrays("test")[0][:5]
    found = measure(Request("x", tolerance=1e-6, exact=True), pipe, images, torch.zeros(5))
    z = codec.encode(images / 127.5 - 1).flatten(1)
    wanted = (z.square().mean(1) + math.log(2 * math.pi)) / (2 * math.log(2))
    torch.testing.assert_close(found.ode, wanted, rtol=1e-3, atol=1e-3)
    assert found.vlb is None and found.dims == z.shape[1]
    said = str(Report(Request("x"), Path("x"), False, torch.device("cpu"), found))
    assert "density of latents" in said and "of latents, PCA: compare only models of this codec" in said


def test_the_bound_of_latents_is_refused():
    pipe = model(fitted()).pipeline
    with pytest.raises(ValueError, match="nll: this model is of latents, PCA, and the bound is of 8-bit pixels"):
        measure(Request("x", method="vlb"), pipe, torch.zeros(2, *SHAPE, dtype=torch.uint8), torch.zeros(2))


def test_latents_of_gaussian_images_are_sampled_as_pca_says(float64):
    """Sampling the exact latent distribution leaves out exactly the other eigenvalues: E|x|^2 falls by their sum."""
    x = digits(1000).double()
    codec = PCA(1, 2, 2).double()
    codec.fit(lambda: iter([x]))
    rows = codec.patches(x).transpose(0, 1).flatten(1)
    values = torch.linalg.eigvalsh(rows.cov(correction=0)).flip(0)
    z = codec.encode(x)
    back = codec.patches(codec.decode(z)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(back.cov(correction=0).trace(), values[:2].sum(), rtol=1e-6, atol=0)


assert {DDPM, Heun} <= set(SAMPLERS)
