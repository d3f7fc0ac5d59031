"""On a GPU: the same results, and training steps that never wait for the device."""

import pytest
import pytorch_lightning as pl
import torch

from diffusion import Condition, Diffusion
from diffusion.data import Batches, Digits
from diffusion.denoiser.targets import V
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.noise.draws import StepDraws
from diffusion.samplers import DDIM
from diffusion.training.callbacks import EMA, Diagnostics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = AttentionUNet(1, (32, 64, 64), heads=2, num_classes=10, ones=True)
    return Diffusion(net, Cosine(), V(), sampler=DDIM(10), shape=(1, 8, 8))


def test_pictures_of_a_seed_equal_those_of_the_cpu(model):
    torch.testing.assert_close(model.cuda().pipeline.sample(10), model.cpu().pipeline.sample(10), rtol=0, atol=0.02)


def test_the_loss_and_its_gradient_never_wait_for_the_device(model):
    model = model.cuda()
    x0, y = torch.randn(64, 1, 8, 8, device="cuda"), torch.arange(64, device="cuda") % 10
    draws = StepDraws(0, 0, 0, "cuda")
    model.objective(model.denoiser, x0, Condition(y), draws.normal, draws.uniform).loss.backward()  # warm-up
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = model.objective(model.denoiser, x0, Condition(y), draws.normal, draws.uniform).loss
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_diagnostics_wait_for_the_device_only_when_they_log(tmp_path):
    """A training with a log at step 4: the callback waits in no other step."""

    class Strict(Diagnostics):
        def on_train_batch_end(self, trainer, *args):
            torch.cuda.set_sync_debug_mode("default" if trainer.global_step == 4 else "error")
            try:
                super().on_train_batch_end(trainer, *args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        def on_before_optimizer_step(self, *args):
            torch.cuda.set_sync_debug_mode("error")
            try:
                super().on_before_optimizer_step(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=10)
    diagnostics = Strict(20)
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, max_steps=5, log_every_n_steps=4, callbacks=[EMA(), diagnostics],
        logger=pl.loggers.TensorBoardLogger(tmp_path), num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Diffusion(net, Cosine(), V(), shape=(1, 8, 8)), Digits(batch_size=64, limit=320))
    assert float(diagnostics._norm) > 0 and len(diagnostics._window) == 1 and diagnostics._probed == 5


def test_sampling_never_waits_for_the_device_between_its_ends(model):
    model = model.cuda()
    list(model.pipeline.frames(4))  # warm-up
    walk = model.pipeline.frames(4)
    next(walk)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(walk)) == 9
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_callback_of_fit_waits_between_two_logs(tmp_path):
    """`diffusion fit` with all callbacks: those of 12 steps that neither log nor save nor end an epoch."""
    from diffusion.training.build import DiffusionCLI

    argv = [
        "-c", "configs/digits.yaml", "--out", str(tmp_path), "--trainer.max_steps", "12", "--trainer.max_epochs", "-1",
        "--trainer.log_every_n_steps", "100", "--checkpoint.every_n_steps", "100", "--model.sampler.steps", "2",
        "--watch.every", "0.001",
    ]  # fmt: skip
    cli, seen = DiffusionCLI(argv), []
    cli.trainer.logger = pl.loggers.TensorBoardLogger(tmp_path)

    class Strict(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            if 4 <= trainer.global_step < 11:
                seen.append(trainer.global_step)
                torch.cuda.set_sync_debug_mode("error")

    class Loose(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            torch.cuda.set_sync_debug_mode("default")

    cli.trainer.callbacks = [Strict(), *cli.trainer.callbacks, Loose()]
    try:
        cli.trainer.fit(cli.model, cli.datamodule)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == list(range(4, 11))


def test_images_that_do_not_fit_are_sent_without_waiting(monkeypatch):
    images, y = Digits(limit=320).arrays("train")
    there = Batches(images, y, 64, shuffle=True, flip=True, device="cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    sent = Batches(images, y, 64, shuffle=True, flip=True, device="cuda")
    assert sent.images.device.type == "cpu" and there.images.is_cuda
    wanted, found = list(there), iter(sent)
    next(found)  # the epoch's order is sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(wanted[1:], rest, strict=True))
