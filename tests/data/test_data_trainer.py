"""The loaders in a real Trainer: a resumed run sees the same batches as an uninterrupted one."""

import pytest
import pytorch_lightning as pl
import torch

from diffusion.data import Digits


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.validated = [], []

    def training_step(self, batch, index):
        x0, y = batch
        self.seen.append((self.current_epoch, self.global_step, x0.sum().item(), tuple(y.tolist())))
        return self.layer(x0.mean().reshape(1, 1)).sum()

    def validation_step(self, batch, index):
        self.validated.append(len(batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def trainer(tmp_path, **options):
    options = {"max_epochs": 4, **options}
    return pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def fit(tmp_path, ckpt=None, save=None, **options):
    module, data = Recorder(), Digits(batch_size=64, limit=330)  # 5 batches per epoch, 10 images left over
    options.setdefault("enable_checkpointing", save is not None)
    if save is not None:
        options["callbacks"] = pl.callbacks.ModelCheckpoint(
            tmp_path / f"save{save}", filename="{step}", every_n_train_steps=save, save_top_k=-1
        )
    trainer(tmp_path, **options).fit(module, data, ckpt_path=ckpt)
    return module


@pytest.mark.parametrize("limit", [5, 3])
@pytest.mark.parametrize("validate", [0, 1.0])
@pytest.mark.parametrize("by", ["epochs", "steps"])
def test_data_order_resumes_at_every_step(tmp_path, limit, validate, by):
    steps = 4 * limit
    length = {"max_epochs": 4} if by == "epochs" else {"max_epochs": -1, "max_steps": steps}
    options = {**length, "limit_train_batches": limit, "limit_val_batches": validate}
    whole = fit(tmp_path, save=1, **options)
    assert len(whole.seen) == steps and len({y for *_, y in whole.seen}) == steps  # a new order each epoch
    stops = (1, 2, limit, limit + 1, 2 * limit, 2 * limit + 2)  # within epochs and at their last batches
    for stop in stops:
        rest = fit(tmp_path, ckpt=tmp_path / "save1" / f"step={stop}.ckpt", **options)
        assert rest.seen == whole.seen[stop:], stop


def test_run_measured_in_steps_resumes_within_an_epoch(tmp_path):
    whole = fit(tmp_path)
    first = fit(tmp_path, save=12, max_epochs=-1, max_steps=12)
    rest = fit(tmp_path, ckpt=tmp_path / "save12" / "step=12.ckpt")
    assert first.seen + rest.seen == whole.seen


def test_validation_sees_every_image_once_per_epoch(tmp_path):
    module = fit(tmp_path, max_epochs=2, num_sanity_val_steps=0)
    assert sum(module.validated) == 2 * 360


def test_overfit_batches_repeats_the_same_batch(tmp_path):
    module = fit(tmp_path, max_epochs=3, overfit_batches=1)
    assert len(module.seen) == 3 and len({y for *_, y in module.seen}) == 1
