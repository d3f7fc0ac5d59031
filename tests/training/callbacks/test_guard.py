"""The guard: non-finite steps are skipped, the run rolls back once, and no checkpoint contains a NaN."""

import json
import warnings

import pytest
import pytorch_lightning as pl
import torch

from diffusion import Diffusion
from diffusion.data import Digits
from diffusion.denoiser import averages
from diffusion.loss.objective import Objective
from diffusion.metrics.features import FeatureNet
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.noise.draws import StepDraws
from diffusion.noise.times import LossAware
from diffusion.training.callbacks import EMA, Checkpoint, DurableIO, Guard, PostHoc
from diffusion.training.callbacks.advice import Advice
from diffusion.training.callbacks.guard import NonFinite
from diffusion.training.systems import Classifier


def model(**options):
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=10)
    return Diffusion(net, Cosine(50), **({"lr": 1e-2, "shape": (1, 8, 8)} | options))


def fit(path, m, data=None, callbacks=(), **options):
    logger = pl.loggers.TensorBoardLogger(path, name="x", version=0, default_hp_metric=False)
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=[*callbacks], num_sanity_val_steps=0, plugins=[DurableIO()],
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        **({"max_epochs": 2, "log_every_n_steps": 1} | options),
    )  # fmt: skip
    trainer.fit(m, data or Digits(batch_size=64, limit=320))
    return trainer


class Broken(Digits):
    """Digits whose training image 17 is NaN in the given epochs."""

    epochs = (1,)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        t = self.trainer
        if t.training and t.current_epoch in self.epochs:
            rows = t.train_dataloader.indices(t.current_epoch, t.fit_loop.epoch_loop.batch_progress.current.ready) == 17
            x = torch.where(rows[:, None, None, None], float("nan"), x)
        return x, y


class Weights(pl.Callback):
    """All weights and the optimizer's averages after each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, m, *args):
        state = trainer.optimizers[0].state
        averages = [v.clone() for s in state.values() for v in s.values()]
        self.seen.append(([p.detach().clone() for p in m.parameters()], averages))


def finite(tensors):
    return all(bool(v.isfinite().all()) for v in tensors)


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


def check_files(path):
    """Assert that all numbers in the checkpoints of the run are finite."""
    files = sorted((path / "x" / "version_0" / "checkpoints").glob("*.ckpt"))
    for file in files:
        read = torch.load(file, weights_only=True)
        assert finite(read["state_dict"].values()), file
        assert finite(v for s in read["optimizer_states"][0]["state"].values() for v in s.values()), file
        assert finite(read["callbacks"]["EMA"]["shadow"].values()), file
    return files


def where(data, epoch):
    """The index of the batch of an epoch that contains image 17."""
    loader = data.trainer.train_dataloader
    return next(b for b in range(len(loader)) if 17 in loader.indices(epoch, b))


def test_a_nan_in_the_data_is_named_and_not_learned(tmp_path):
    data, ema, guard, spy = Broken(batch_size=64, limit=320), EMA(0.5), Guard(), Weights()
    with pytest.warns(Advice, match="training image 17 at t = .* rolled back to step 4"):
        fit(tmp_path, m := model(), data, [ema, guard, spy, Checkpoint(every_n_steps=4, keep=9)])
    batch = where(data, 1)
    step = 5 + batch
    assert guard.used == [step]
    (file,) = (tmp_path / "x" / "version_0").glob("nonfinite-*.json")
    found = json.loads(file.read_text())
    assert file.name == f"nonfinite-step{step}.json" and found["step"] == step
    (said,) = found["batches"]
    loader = data.trainer.train_dataloader
    assert (said["epoch"], said["batch"], said["bad"], said["loss"]) == (1, batch, [17], "nan")
    assert said["images"] == loader.indices(1, batch).tolist() and len(said["t"]) == len(said["log_snr"]) == 64
    # The levels are those drawn for the step.
    t = Objective().times(StepDraws(m.seed, step, 0).uniform(64), m.denoiser.schedule)
    assert said["t"] == pytest.approx(t.tolist(), abs=1e-6)
    assert len(spy.seen) == 10 and all(finite(w) and finite(a) for w, a in spy.seen)
    assert finite(ema.shadow.values()) and len(check_files(tmp_path)) >= 3


def test_averages_of_a_run_that_rolled_back_belong_to_the_steps_that_count(tmp_path):
    """The averages are the checkpoint's again, and the snapshots of the steps after it are gone."""
    kept, run = PostHoc(10), tmp_path / "x" / "version_0"

    class Spy(Guard):
        def go_back(self, trainer, m, *args):
            super().go_back(trainer, m, *args)
            read = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
            self.images = kept.images, read["callbacks"]["PostHoc"]["images"]
            tracks = read["callbacks"]["PostHoc"]["tracks"]
            self.equal = all(torch.equal(v, kept.tracks[w][k]) for w, t in tracks.items() for k, v in t.items())
            self.steps = {s.step for s in averages.snapshots(run)}, read["global_step"]

    guard = Spy()
    with pytest.warns(Advice):
        fit(tmp_path, model(), Broken(batch_size=64, limit=320), [EMA(0.5), kept, guard, Checkpoint(every_n_steps=4)])
    assert guard.equal and guard.images == (256, 256) and guard.steps == ({1, 2, 3, 4}, 4)
    assert kept.images == 256 + 64 * (10 - guard.used[0] - 1)
    assert {s.step for s in averages.snapshots(run)} == {1, 2, 3, 4, *range(guard.used[0] + 2, 11)}


def test_the_run_rolls_back_to_the_checkpoint_and_the_data_continue(tmp_path):
    data, spy = Broken(batch_size=64, limit=320), Weights()
    ema = EMA(0.5)

    class Spy(Guard):
        def go_back(self, trainer, m, *args):
            super().go_back(trainer, m, *args)
            read = torch.load(tmp_path / "x" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
            self.equal = all(torch.equal(v, m.state_dict()[k]) for k, v in read["state_dict"].items())
            self.equal &= all(torch.equal(v, ema.shadow[k]) for k, v in read["callbacks"]["EMA"]["shadow"].items())
            states = zip(
                read["optimizer_states"][0]["state"].values(), trainer.optimizers[0].state.values(), strict=True
            )
            self.equal &= all(torch.equal(v, now[k]) for old, now in states for k, v in old.items())
            self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    guard = Spy()
    with pytest.warns(Advice):
        trainer = fit(tmp_path, model(decay="linear"), data, [ema, guard, spy, Checkpoint(every_n_steps=3)])
    step = guard.used[0]
    assert guard.equal and trainer.global_step == 10
    assert guard.lr == pytest.approx(1e-2 * (1 - (step + 1) / 10))  # the step's own, not the checkpoint's


def test_the_second_failure_stops_the_run(tmp_path):
    class Always(Broken):
        epochs = (0, 1, 2)

    data, guard = Always(batch_size=64, limit=320), Guard()
    with pytest.warns(Advice), pytest.raises(NonFinite, match="training image 17 .*had rolled back at step .*model.lr"):
        fit(tmp_path, model(), data, [EMA(), guard, Checkpoint(every_n_steps=1)], max_epochs=3)
    assert len(list((tmp_path / "x" / "version_0").glob("nonfinite-*.json"))) == 2
    assert check_files(tmp_path)


def test_retries_0_stops_at_the_first_failure(tmp_path):
    with pytest.raises(NonFinite, match="image 17"):
        fit(tmp_path, model(), Broken(batch_size=64, limit=320), [EMA(), Guard(retries=0)])


class Plant(pl.Callback):
    """Put a NaN into a weight before a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, m, *args):
        if trainer.global_step == self.step:
            self.step = -1
            with torch.no_grad():
                m.denoiser.net.outc.weight[0, 0] = float("nan")


def test_a_nan_in_the_weights_is_replaced_from_the_checkpoint(tmp_path):
    guard = Guard()
    with pytest.warns(Advice, match=r"all 64 images.*not finite before it: weights.denoiser.net.outc.weight.*step 5"):
        fit(tmp_path, m := model(), None, [EMA(), Plant(7), guard, Checkpoint(every_n_steps=5, keep=9)])
    assert guard.used == [7] and finite(m.parameters())
    assert len(check_files(tmp_path)) == 3  # 5, 10, last


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(tmp_path):
    class Late(pl.Callback):
        def on_train_batch_end(self, trainer, m, *args):
            if trainer.global_step == 8:
                m.denoiser.net.outc.weight.data[0, 0] = float("inf")

    with pytest.warns(Advice, match=r"the state is not finite|not finite before it"):
        fit(tmp_path, model(), None, [EMA(), Guard(), Late(), Checkpoint(every_n_steps=4, keep=9)])
    assert len(check_files(tmp_path)) == 4  # 4, 8, 10, last


def test_a_nan_in_the_weights_without_a_checkpoint_ends_the_run(tmp_path):
    with pytest.raises(NonFinite, match="no checkpoint to roll back to"):
        fit(tmp_path, model(), None, [EMA(), Plant(3), Guard()])


def test_an_exploding_learning_rate_stops_with_suggestions(tmp_path):
    """Weights of 1e30 give infinite activations: the run rolls back once, then stops with suggestions."""
    guard, spy = Guard(), Weights()
    with pytest.warns(Advice), pytest.raises(NonFinite, match="Lower model.lr"):
        fit(tmp_path, model(lr=1e30), None, [EMA(), guard, spy, Checkpoint(every_n_steps=1)])
    assert all(finite(w) and finite(a) for w, a in spy.seen)
    check_files(tmp_path)


def test_a_skipped_step_leaves_weights_and_averages_unchanged(tmp_path):
    """Without a checkpoint only the step is skipped."""
    data, guard, spy = Broken(batch_size=64, limit=320), Guard(), Weights()
    with pytest.warns(Advice, match="the step was skipped; there is no checkpoint yet"):
        fit(tmp_path, model(), data, [guard, spy])
    step = guard.used[0]
    (before, averages), (after, averages_after) = spy.seen[step - 1], spy.seen[step]
    assert same(before, after) and same(averages, averages_after)
    assert not same(spy.seen[step][0], spy.seen[step + 1 if step < 9 else step - 2][0])


def test_the_reported_batch_is_correct_with_accumulation(tmp_path):
    data, guard = Broken(batch_size=32, limit=320), Guard()
    with pytest.warns(Advice, match="training image 17"):
        trainer = fit(tmp_path, model(), data, [guard], accumulate_grad_batches=2)
    batch = where(data, 1)
    (file,) = (tmp_path / "x" / "version_0").glob("nonfinite-*.json")
    found = json.loads(file.read_text())
    assert found["step"] == guard.used[0] == 5 + batch // 2 and trainer.global_step == 10
    assert [b["batch"] for b in found["batches"]] == [batch // 2 * 2, batch // 2 * 2 + 1]
    assert [i for b in found["batches"] for i in b["bad"]] == [17]


def test_the_guard_covers_classifiers(tmp_path):
    """Its optimizer is not fused, and a broken batch reaches the averages of its batch norms before any gradient."""
    guard, spy = Guard(), Weights()
    net = FeatureNet(widths=(8, 8, 8), width=8)
    data = Broken(batch_size=64, limit=320)
    with pytest.warns(Advice, match="weights.net.*running_mean.* rolled back to step"):
        fit(tmp_path, m := Classifier(net, shape=(1, 8, 8)), data, [guard, spy, Checkpoint(every_n_steps=1)])
    assert len(guard.used) == 1 and all(finite(w) and finite(a) for w, a in spy.seen) and finite(m.buffers())


def test_training_is_the_same_with_and_without_the_guard(tmp_path):
    runs = []
    for name, callbacks in (("a", []), ("b", [Guard()])):
        spy = Weights()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Advice)
            fit(tmp_path / name, model(), None, [*callbacks, spy])
        runs.append(spy.seen[-1])
    assert same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1])


def test_loss_aware_times_ignore_losses_that_are_not_finite():
    times = LossAware(bins=2, history=1)
    times.observe(torch.tensor([0.2, 0.7]), torch.tensor([float("nan"), 1.0]), Cosine(50))
    assert times.state_dict()["count"].tolist() == [0, 1] and finite([times.state_dict()["losses"]])


def test_guard_refuses_impossible_settings():
    with pytest.raises(ValueError, match="at least 0"):
        Guard(-1)
