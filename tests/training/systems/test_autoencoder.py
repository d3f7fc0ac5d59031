"""Autoencoder: its losses, exact resume with codebook and discriminator, and its use as a codec."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.data import Digits
from diffusion.denoiser.codecs import Frozen
from diffusion.nets.autoencoder import ConvAutoencoder
from diffusion.nets.bottleneck import Codebook, Gaussian
from diffusion.support import runs
from diffusion.support.specs import spec
from diffusion.training.callbacks import EMA, Checkpoint, DurableIO, Guard, Rate, Reconstructions
from diffusion.training.systems import Autoencoder
from diffusion.training.systems.autoencoder import balance, moved, perceptual

SHAPE = (1, 8, 8)


def model(bottleneck=None, **options):
    torch.manual_seed(0)
    net = ConvAutoencoder(1, 2, 8, (1, 2), bottleneck=bottleneck or Gaussian())
    return Autoencoder(net, shape=SHAPE, **options)


class Killed(BaseException):
    """As sudden as SIGKILL."""


class Killer(pl.Callback):
    """Raise after a number of batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_train_batch_end(self, *args) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def train(folder, make, killer=None, epochs=2, every=4, **options):
    run = folder / "x" / "version_0"
    path, read, _ = runs.resumable(run)
    if read:
        runs.rewind(run, read["logs"])
    callbacks = [*([killer] if killer else []), EMA(0.9), Guard(), Rate(), Reconstructions(0, 4, 2)]
    trainer = pl.Trainer(
        accelerator="cpu", logger=pl.loggers.TensorBoardLogger(folder, name="x", version=0, default_hp_metric=False),
        callbacks=[*callbacks, Checkpoint(every, keep=2)], num_sanity_val_steps=0, plugins=[DurableIO()],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=2, use_distributed_sampler=False,
        max_epochs=epochs, gradient_clip_val=1.0, **options,
    )  # fmt: skip
    made = make()
    try:
        trainer.fit(made, Digits(batch_size=8, limit=48), ckpt_path=path, weights_only=True)
    except Killed:
        return None
    return made, trainer


def state(run):
    read = runs.read_checkpoint(run / "checkpoints" / "last.ckpt")
    found = {f"raw {k}": v for k, v in read["state_dict"].items()}
    found |= {f"ema {k}": v for k, v in read["callbacks"]["EMA"]["shadow"].items()}
    for k, slots in read["optimizer_states"][0]["state"].items():
        found |= {f"adam {k} {name}": v for name, v in slots.items()}
    return found | {"step": torch.tensor(read["global_step"])}


KINDS = {
    "KL": {},
    "VQ": {"bottleneck": Codebook(16)},
    "VQ with discriminator and equivariance": {
        "bottleneck": Codebook(16), "discriminator": 8, "starts": 5, "equivariance": 0.5, "error": "mse",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_to_the_bit(kind, tmp_path):
    """Killed before and after the discriminator starts; weights, codebook, averages and optimizer are compared."""

    def make():
        given = KINDS[kind] | ({"bottleneck": Codebook(16)} if "bottleneck" in KINDS[kind] else {})
        return model(warmup=2, decay="cosine", lr=1e-2, **given)

    assert train(tmp_path / "whole", make, limit_val_batches=1)
    for after in (5, 3):
        assert train(tmp_path / "killed", make, Killer(after), limit_val_batches=1) is None
    assert train(tmp_path / "killed", make, limit_val_batches=1)
    ours, theirs = (state(tmp_path / name / "x" / "version_0") for name in ("whole", "killed"))
    assert ours.keys() == theirs.keys() and ours["step"] == 12
    assert all(torch.equal(ours[k], theirs[k]) for k in ours), [k for k in ours if not torch.equal(ours[k], theirs[k])]
    if "VQ" in kind:
        assert "raw net.bottleneck.book" in ours
    assert (tmp_path / "killed" / "x" / "version_0" / "samples" / "step00000012.png").is_file()


def test_a_discriminator_that_starts_later_changes_nothing_before(tmp_path):
    """Ten steps: the autoencoder's weights with a start at step 10 are those without a discriminator."""
    found = []
    for name, options in (("without", {}), ("later", {"discriminator": 8, "starts": 100})):
        trained, _ = train(tmp_path / name, lambda o=options: model(**o), epochs=1, limit_val_batches=0)
        found.append({k: v for k, v in trained.net.state_dict().items()})
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_neither_side_receives_the_gradient_of_the_others_term():
    """The decoder's term leaves the discriminator's weights alone, the hinge the decoder's."""
    system = model(discriminator=8, starts=0)
    system._trainer = type("T", (), {"global_step": 0})()
    x = torch.rand(4, *SHAPE) * 2 - 1
    out = system.net.decoder(system.net.encode(x))
    error = F.l1_loss(out, x)
    loss = system.judged(out, x, error, due=False)
    d = list(system.discriminator.parameters())
    real, fake = system.discriminator(x), system.discriminator(out.detach())
    hinge = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    for ours, wanted in zip(
        torch.autograd.grad(loss, d, retain_graph=True), torch.autograd.grad(hinge, d), strict=True
    ):
        torch.testing.assert_close(ours, wanted)
    g = -system.discriminator(out).mean()
    weight = system.adversarial * balance(error, g, system.net.final)
    (ours,), (wanted,) = (torch.autograd.grad(v, system.net.final, retain_graph=True) for v in (loss, weight * g))
    torch.testing.assert_close(ours, wanted)
    whole = torch.autograd.grad(error, system.net.final)[0].norm()
    torch.testing.assert_close(ours.norm(), 0.5 * whole, rtol=1e-2, atol=0)


def test_psnr_and_dead_codes_are_logged(tmp_path):
    """The logged PSNR is that of all test images together."""
    trained, trainer = train(tmp_path, lambda: model(Codebook(16)), epochs=1)
    found = trainer.callback_metrics
    assert {"val/loss", "val/bits", "val/psnr", "val/dead_codes", "train/loss", "train/bits"} <= set(found)
    x = Digits().arrays("test")[0] / 127.5 - 1
    ema = next(c for c in trainer.callbacks if isinstance(c, EMA))
    with torch.no_grad(), ema.applied(trained):
        mse = F.mse_loss(trained.eval().reconstructed(x), x)
    assert float(found["val/psnr"]) == pytest.approx(10 * math.log10(4 / mse), abs=1e-3)


def test_a_trained_autoencoder_is_a_codec(tmp_path):
    """Frozen reads its averaged weights, refuses a file that has changed, and needs no file once it has a network."""
    trained, _ = train(tmp_path, model, epochs=1, limit_val_batches=0)
    run = str(tmp_path / "x" / "version_0")
    codec, raw = Frozen(run), Frozen(run, weights="raw")
    x = Digits().arrays("test")[0][:9] / 127.5 - 1
    assert codec.latent_shape(SHAPE) == (2, 4, 4) and codec.hash != raw.hash
    torch.testing.assert_close(raw.code(x), trained.eval().net.encode(x))
    assert spec(codec)["init_args"]["net"]["class_path"].endswith("ConvAutoencoder")
    with pytest.raises(ValueError, match=f"{run}: has changed .* expected hash {raw.hash}, got {codec.hash}"):
        Frozen(run, hash=raw.hash)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        Frozen(str(tmp_path / "gone"))


@pytest.mark.parametrize("turns", range(4))
def test_equivariant_pairs_are_moved_alike(turns):
    """An image of constant quarters, and its latent of 2x2 blocks of it, are moved to the same picture."""
    z = torch.arange(16.0).reshape(1, 1, 4, 4)
    x = F.interpolate(z, scale_factor=2)
    for size, side in ((0.999, 4), (0.34, 2), (0.0, 2)):
        a, b = moved(z, x, 2, turns, size)
        assert a.shape[-2:] == (side, side) and b.shape[-2:] == (2 * side, 2 * side)
        means = F.avg_pool2d(b, 2)
        torch.testing.assert_close(a, means, rtol=0, atol=0.0 if size > 0.9 else 1.0)


def test_perceptual_distance_is_0_of_equal_images_and_ignores_the_scale_of_features():
    stages = [nn.Sequential(nn.Conv2d(1, 4, 3, bias=False)), nn.Sequential(nn.Conv2d(4, 4, 3, bias=False))]
    x, y = torch.rand(2, 3, 1, 8, 8)
    assert perceptual(stages, x, x) == 0 and perceptual(stages, x, y) > 0
    torch.testing.assert_close(perceptual(stages, 3 * x, y), perceptual(stages, x, y))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"lr": 0}, "Autoencoder: wanted"),
        ({"equivariance": 1.5}, "Autoencoder: wanted"),
        ({"starts": -1}, "Autoencoder: wanted"),
        ({"error": "l3"}, "Autoencoder: wanted"),
        ({"discriminator": 3}, "Patches: channels"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        model(**options)


def test_images_that_the_factor_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="9x8 is not divisible by the network's factor 2"):
        Autoencoder(ConvAutoencoder(1, 2, 8, (1, 2)), shape=(1, 9, 8))
