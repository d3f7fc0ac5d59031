"""Latents that are encoded once: the same training as with latents on the fly, exact resume, the file, refusals."""

import pytest
import pytorch_lightning as pl
import torch

from diffusion.cli import main
from diffusion.data import Digits
from diffusion.data import latents as cache
from diffusion.data.augment import PadCrop
from diffusion.data.store import InMemory, Shards
from diffusion.denoiser.codecs import PCA, Frozen
from diffusion.generation.latents import Pixels
from diffusion.nets import AttentionUNet
from diffusion.nets.autoencoder import ConvAutoencoder
from diffusion.noise import Cosine
from diffusion.support import runs
from diffusion.training.callbacks import EMA, Checkpoint, DurableIO
from diffusion.training.systems import Autoencoder, Diffusion

SHAPE = (1, 8, 8)
MORE = {"class_names": list("0123456789"), "warmup": 2, "decay": "cosine", "lr": 1e-3}


class Flipped(Digits):
    """Digits, half of them mirrored."""

    flip = True


def conv():
    """A codec that is not symmetric, so that a mirrored image does not have a mirrored latent."""
    torch.manual_seed(1)
    return Frozen("runs/x", net=ConvAutoencoder(1, 2, 8, (1, 2)))


def pca():
    return PCA(1, 2, 2)


class Killed(BaseException):
    pass


class Killer(pl.Callback):
    """Raise after a number of batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_train_batch_end(self, *args) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def train(folder, data, codec=pca, killer=None):
    """Two epochs of six steps; the weights at the end."""
    torch.manual_seed(0)
    net = AttentionUNet(2, (8, 8), heads=2, attention=1, num_classes=10)
    made = Diffusion(net, Cosine(20), codec=codec(), shape=SHAPE, **MORE)
    path = runs.resumable(folder / "x" / "version_0")[0]
    trainer = pl.Trainer(
        accelerator="cpu", logger=pl.loggers.CSVLogger(folder, name="x", version=0), max_epochs=2,
        callbacks=[*([killer] if killer else []), EMA(0.9), Checkpoint(4)], plugins=[DurableIO()],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=1,
        num_sanity_val_steps=0,
    )  # fmt: skip
    try:
        trainer.fit(made, data, ckpt_path=path, weights_only=True)
    except Killed:
        return None
    return made.state_dict(), trainer.callback_metrics["val/loss"]


@pytest.mark.parametrize("kind", [Digits, Flipped])
@pytest.mark.parametrize("codec", [pca, conv])
def test_training_is_the_same_as_with_latents_on_the_fly(kind, codec, tmp_path):
    """Up to the rounding of an encoder that sees other batches, which Adam enlarges; flips are those of the images.

    A weight moves by several 1e-3.
    """
    (a, one), (b, two) = (
        train(tmp_path / latents, kind(batch_size=8, limit=48, latents=latents), codec) for latents in ("fly", "cache")
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=0)


def test_mirrored_latents_are_those_of_mirrored_images():
    data, codec = Flipped(batch_size=48, limit=48), conv()
    codec.fit(lambda: iter([data.arrays("train")[0] / 127.5 - 1]))
    (x0, _), = data.train_dataloader()  # fmt: skip
    data.encode_once(codec.code, codec.code_mark, lambda codes: codec.measures)
    (z, _), = data.train_dataloader()  # fmt: skip
    torch.testing.assert_close(z, codec.encode(x0))
    assert not torch.allclose(codec.encode(x0.flip(-1)), codec.encode(x0).flip(-1), atol=0.1)


def test_latents_of_training_images_are_those_that_were_encoded():
    data, codec = Digits(limit=48), conv()
    assert data.encoded_once(torch.arange(3)) is None
    images = data.arrays("train")[0] / 127.5 - 1
    codec.fit(lambda: iter([images]))
    data.encode_once(codec.code, codec.code_mark, lambda codes: codec.measures)
    index = torch.tensor([40, 3, 7])
    torch.testing.assert_close(data.encoded_once(index), codec.encode(images[index]))


def test_images_pass_a_codec_in_parts(monkeypatch):
    """The memory of an encoder does not grow with the number of images; nor does that of a decoder."""
    codec, seen = conv(), []
    codec.fit(lambda: iter([torch.randn(40, 1, 8, 8)]))
    for name in ("code", "image"):
        real = getattr(codec, name)
        monkeypatch.setattr(codec, name, lambda x, real=real: seen.append(len(x)) or real(x))
    pixels, x0 = Pixels(codec), torch.rand(600, 1, 8, 8)
    z = pixels.encode(x0)
    assert seen == [256, 256, 88] and len(pixels.decode(z)) == 600 and seen[3:] == [256, 256, 88]
    torch.testing.assert_close(z, codec.encode(x0).detach(), rtol=1e-4, atol=1e-5)


def test_a_killed_run_with_cached_latents_resumes_to_the_bit(tmp_path):
    def data():
        return Digits(batch_size=8, limit=48, latents="cache")

    whole, _ = train(tmp_path / "whole", data())
    assert train(tmp_path / "killed", data(), killer=Killer(7)) is None
    again, _ = train(tmp_path / "killed", data())
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_many_latents_are_kept_in_a_file_that_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path))
    images, codec, calls = Digits(limit=1100).store("train")[0], pca(), []
    codec.fit(lambda: iter([images.images / 127.5 - 1]))

    def encode(raw):
        calls.append(len(raw))
        return codec.encode(raw / 127.5 - 1)

    here = cache.encoded(images, encode, codec.mark)
    there = cache.encoded(images, encode, codec.mark, budget=0)
    assert isinstance(here, InMemory) and isinstance(there, Shards)
    index = torch.tensor([1099, 0, 3, 500])
    assert torch.equal(here.take(index), there.take(index)) and len(there) == 1100
    calls.clear()
    again = cache.encoded(images, encode, codec.mark, budget=0)
    assert calls == [1] and torch.equal(again.take(index), here.take(index))  # only the shape is asked for
    codec.scale.mul_(2)
    other = cache.encoded(images, encode, codec.mark, budget=0)
    assert torch.equal(2 * other.take(index), here.take(index))
    assert len(list((tmp_path / "latents").iterdir())) == 2


def test_a_pass_that_fails_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path))
    images, calls = Digits(limit=2000).store("train")[0], []

    def encode(raw):
        calls.append(len(raw))
        if len(calls) > 2:
            raise OSError("full")
        return raw.float()

    with pytest.raises(OSError, match="full"):
        cache.encoded(images, encode, "x", budget=0)
    assert not list((tmp_path / "latents").iterdir())


def test_latents_are_kept_only_where_they_can_be(tmp_path):
    with pytest.raises(ValueError, match="PadCrop changes the images in each epoch, .* use data.latents fly"):
        train(tmp_path, Digits(limit=48, augment=[PadCrop(1)], latents="cache"))
    with pytest.raises(ValueError, match="latents fly or cache, got 'disk'"):
        Digits(latents="disk")
    system = Autoencoder(ConvAutoencoder(1, 2, 8, (1, 2)), shape=SHAPE)
    trainer = pl.Trainer(accelerator="cpu", logger=False, max_steps=1, enable_checkpointing=False, barebones=True)
    with pytest.raises(ValueError, match="Autoencoder is trained on images; leave data.latents out"):
        trainer.fit(system, Digits(latents="cache"))


def test_the_command_line_takes_it(tmp_path, capsys):
    options = ["--out", str(tmp_path), "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1"]
    words = ["fit", "-c", "configs/digits.yaml", "--data.latents", "cache", *options]
    assert main([*words, "-c", "configs/digits_latent.yaml"]) == 0
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "this model has no codec; give one with --model.codec" in said and "Traceback" not in said
