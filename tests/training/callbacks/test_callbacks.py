import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion import Diffusion
from diffusion.data import Digits
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.support.console import in_notebook
from diffusion.training.callbacks import EMA, Checkpoint, DurableIO, Gif, Lines, Rate, Samples
from diffusion.training.callbacks.progress import Live


def model():
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=10)
    return Diffusion(net, Cosine(50), sampler=DDIM(4), lr=1e-2, shape=(1, 8, 8), class_names=list("0123456789"))


def fit(path, callbacks, m=None, **kwargs):
    logger = pl.loggers.TensorBoardLogger(path, name="x", version=0, default_hp_metric=False)
    options = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=callbacks, num_sanity_val_steps=0, plugins=[DurableIO()],
        **(options | kwargs),
    )  # fmt: skip
    m = m or model()
    trainer.fit(m, Digits(batch_size=64, limit=320))
    return trainer, m


class Spy(pl.Callback):
    """Records the raw weights after each optimizer step, and what validation and checkpoints see."""

    def __init__(self):
        self.raw, self.validated, self.saved = [], None, None

    def on_train_start(self, trainer, m):
        self.raw.append(m.denoiser.net.outc.weight.detach().clone())

    def on_train_batch_end(self, trainer, m, *args):
        self.raw.append(m.denoiser.net.outc.weight.detach().clone())

    def on_validation_batch_end(self, trainer, m, *args):
        self.validated = m.denoiser.net.outc.weight.detach().clone()
        if self.saved is None:
            self.saved = trainer._checkpoint_connector.dump_checkpoint()["state_dict"][
                "denoiser.net.outc.weight"
            ].clone()


def test_ema_follows_its_formula_and_is_used_in_validation(tmp_path):
    ema, spy = EMA(0.3), Spy()
    _, m = fit(tmp_path, [ema, spy])
    shadow = spy.raw[0]
    for n, raw in enumerate(spy.raw[1:]):
        d = min(0.3, (1 + n) / (10 + n))
        shadow = d * shadow + (1 - d) * raw
    assert len(spy.raw) == 6 and ema.updates == 5
    torch.testing.assert_close(ema.shadow["denoiser.net.outc.weight"], shadow)
    assert torch.equal(spy.validated, ema.shadow["denoiser.net.outc.weight"])
    assert torch.equal(spy.saved, spy.raw[-1])  # a file written inside validation holds the raw weights
    assert torch.equal(m.denoiser.net.outc.weight, spy.raw[-1])  # and training continues with them


def test_ema_counts_optimizer_steps_not_batches(tmp_path):
    ema = EMA()
    trainer, _ = fit(tmp_path, [ema], accumulate_grad_batches=5)
    assert trainer.global_step == 1 and ema.updates == 1


def test_ema_stays_float32_and_is_swapped_back_after_an_error():
    ema, m = EMA(), model()
    ema.shadow = {k: torch.zeros_like(v) for k, v in m.named_parameters()}
    before = m.denoiser.net.outc.weight.detach().clone()
    with pytest.raises(RuntimeError), ema.applied(m):
        assert not m.denoiser.net.outc.weight.any()
        raise RuntimeError
    assert torch.equal(m.denoiser.net.outc.weight, before)


@pytest.mark.parametrize("decay", [1.0, -0.1, 2])
def test_ema_refuses_a_decay_outside_the_unit_interval(decay):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        EMA(decay)


def test_checkpoints_every_n_steps_and_at_the_end(tmp_path):
    fit(tmp_path, [Checkpoint(every_n_steps=2, keep=2)])
    folder = tmp_path / "x" / "version_0" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "step00000004.ckpt", "step00000005.ckpt"]
    last, newest = (torch.load(folder / n, weights_only=True) for n in ("last.ckpt", "step00000005.ckpt"))
    assert last["global_step"] == newest["global_step"] == 5


def test_checkpoint_when_time_is_up(tmp_path):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 3

    fit(tmp_path, [Stop(), Checkpoint(every_n_steps=100)])
    assert (tmp_path / "x" / "version_0" / "checkpoints" / "step00000003.ckpt").exists()


def test_a_failed_write_keeps_the_last_good_file(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    DurableIO().save_checkpoint({"a": 1}, path)

    def full(*args):
        args[1].write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        DurableIO().save_checkpoint({"a": 2}, path)
    assert torch.load(path, weights_only=True) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_samples_and_gif_write_files_and_tensorboard_images(tmp_path):
    trainer, m = fit(tmp_path, [EMA(), Samples(every_n_epochs=1, n=20), Gif(n=4, frames=4), Rate()], max_epochs=2)
    run = tmp_path / "x" / "version_0"
    names = sorted(p.name for p in (run / "samples").iterdir())
    assert names == ["denoising.gif", "step00000005.png", "step00000010.png"]
    assert Image.open(run / "samples" / "denoising.gif").n_frames == 4
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert [e.step for e in events.Images("samples")] == [5, 10]
    assert [e.step for e in events.Scalars("train/loss")] == list(range(10))
    assert len(events.Scalars("val/loss")) == 2 and events.Scalars("train/images_per_s")[-1].value > 0
    # Seeds and labels are fixed, so a preview can be reproduced from the averaged weights.
    (run / "samples" / "step00000010.png").rename(tmp_path / "old.png")
    Samples(n=20).draw(trainer, m)
    again, old = (np.asarray(Image.open(p)) for p in (run / "samples" / "step00000010.png", tmp_path / "old.png"))
    assert np.array_equal(again, old)


def test_lines_report_the_progress_of_a_run(tmp_path, capsys):
    fit(tmp_path, [Rate(), Lines(every=0.0)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 5 and "step 3/5" in lines[2] and "images/s" in lines[2] and lines[2].endswith("left")


@pytest.mark.parametrize("bad", [lambda: Samples(-1), lambda: Samples(n=0), lambda: Gif(frames=1), lambda: Gif(n=0),
                                 lambda: Checkpoint(0), lambda: Checkpoint(keep=0)])  # fmt: skip
def test_callbacks_refuse_impossible_settings(bad):
    with pytest.raises(ValueError):
        bad()


def test_ema_of_a_resumed_run_counts_no_step_twice(tmp_path):
    """With gradient accumulation the first batch after a resumption does not complete an optimizer step."""
    whole, rest = EMA(0.5), EMA(0.5)
    fit(tmp_path / "a", [whole, Checkpoint(1, keep=9)], accumulate_grad_batches=2, max_epochs=2)
    logger = pl.loggers.TensorBoardLogger(tmp_path / "b", name="x", version=0)
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=[rest], num_sanity_val_steps=0, accumulate_grad_batches=2,
        max_epochs=2, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    path = tmp_path / "a" / "x" / "version_0" / "checkpoints" / "step00000003.ckpt"
    trainer.fit(model(), Digits(batch_size=64, limit=320), ckpt_path=path, weights_only=True)
    assert whole.updates == rest.updates == 6
    assert all(torch.equal(v, rest.shadow[k]) for k, v in whole.shadow.items())


def test_live_shows_the_bar_and_the_newest_grid_in_one_place_each(tmp_path, monkeypatch):
    shown = []

    class Place:
        def __init__(self, bundle):
            self.seen = [bundle]
            shown.append(self)

        def update(self, bundle, raw):
            self.seen.append(bundle)

    monkeypatch.setattr(Live, "show", staticmethod(Place))
    fit(tmp_path, [Rate(), Samples(n=4), Live(every=0)], max_epochs=2)
    bar, grid = (place.seen for place in shown)
    assert 'value="0" max="10"' in bar[0]["text/html"] and 'value="10" max="10"' in bar[-1]["text/html"]
    assert "epoch 2/2  step 10/10  train/loss" in bar[-1]["text/plain"] and len(bar) >= 13
    files = sorted((tmp_path / "x" / "version_0" / "samples").glob("*.png"))
    assert [b["image/png"] for b in grid] == [f.read_bytes() for f in files] and len(files) == 2


def test_live_is_harmless_where_there_is_no_notebook(tmp_path):
    assert not in_notebook()
    trainer, _ = fit(tmp_path, [Live(every=0)])
    assert trainer.global_step == 5
