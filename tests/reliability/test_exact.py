"""A run that is killed anywhere and resumed is the uninterrupted run: every number, to the bit (on the CPU)."""

import shutil
import signal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion import Diffusion
from diffusion.data import Arrays, Digits, ImageData, Prepared
from diffusion.data.loader import Loader
from diffusion.denoiser.hints import LowResolution
from diffusion.loss.objective import Objective
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.noise.times import LossAware
from diffusion.samplers import DDIM
from diffusion.support import runs
from diffusion.support.signals import Stopped
from diffusion.training.callbacks import EMA, Checkpoint, Diagnostics, DurableIO, Rate, Signals, Watch
from tests import prepared

EPOCHS, BATCHES = 3, 6


class Killed(BaseException):
    """As sudden as SIGKILL: no handler of the project reacts to it."""


class Killer(pl.Callback):
    """Raise at the given hook for the n-th time."""

    def __init__(self, hook: str, at: int) -> None:
        self.left = at

        def kill(*args):
            self.left -= 1
            if self.left == 0:
                raise Killed

        setattr(self, hook, kill)


def parts(data=None, hint=None, **more):
    torch.manual_seed(0)
    facts = {} if data is None else {"scaling": data.scaling, "paired": data.paired}
    shown = facts["paired"]["size"][0] if facts.get("paired") else hint.shape((1, 8, 8))[0] if hint else 0
    net = AttentionUNet(1, (8, 8), heads=2, attention=1, num_classes=10, dropout=0.1, image_channels=shown)
    objective = Objective(times=LossAware(bins=2, history=4))
    options = {"shape": (1, 8, 8), "class_names": list("0123456789"), "warmup": 3, "decay": "cosine"} | facts | more
    return Diffusion(net, Cosine(20), objective=objective, sampler=DDIM(2), lr=1e-2, hint=hint, **options)


def train(folder, killer=None, every=1, signals=False, data=None, hint=None, also=(), make=parts, **options):
    """Resume from the newest valid checkpoint, or start; returns the module, EMA and trainer."""
    path, read, _ = runs.resumable(folder / "x" / "version_0")
    if read:
        runs.rewind(folder / "x" / "version_0", read["logs"])
    else:
        shutil.rmtree(folder / "x", ignore_errors=True)  # the command would use a new folder
    ema = EMA(0.9)
    callbacks = [
        *([Signals()] if signals else []),
        *([killer] if killer else []),
        ema,
        *also,
        Rate(),
        Diagnostics(0),
        Watch(0.01),
    ]
    trainer = pl.Trainer(
        accelerator="cpu", logger=pl.loggers.TensorBoardLogger(folder, name="x", version=0, default_hp_metric=False),
        callbacks=[*callbacks, Checkpoint(every, keep=2)], num_sanity_val_steps=0, plugins=[DurableIO()],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=2, use_distributed_sampler=False,
        **({"max_epochs": EPOCHS, "limit_val_batches": 2} | options),
    )  # fmt: skip
    model = make(data if isinstance(data, ImageData) else None, hint)
    try:
        trainer.fit(model, data or Digits(batch_size=8, limit=8 * BATCHES), ckpt_path=path, weights_only=True)
    except Killed:
        return None
    return model, ema, trainer


def state(run):
    """The state of the training in the last checkpoint, by name."""
    read = runs.read_checkpoint(run / "checkpoints" / "last.ckpt")
    found = {f"raw {k}": v for k, v in read["state_dict"].items()}
    found |= {f"ema {k}": v for k, v in read["callbacks"]["EMA"]["shadow"].items()}
    found["ema updates"] = read["callbacks"]["EMA"]["updates"]
    for k, slots in read["optimizer_states"][0]["state"].items():
        found |= {f"adam {k} {name}": v for name, v in slots.items()}
    found["schedule"] = {k: v for k, v in read["lr_schedulers"][0].items() if not callable(v)}
    found |= {f"times {k}": v for k, v in read["times"].items()}
    loops = read["loops"]["fit_loop"]
    found |= {"step": read["global_step"], "loader": loops["state_dict"]["combined_loader"]}
    found["batches"] = loops["epoch_loop.batch_progress"]["total"]
    return found


def curves(run):
    """Every scalar except the speed and the machine's: name -> [(step, value)], by step (files of a second mix)."""
    events = EventAccumulator(str(run)).Reload()
    tags = [t for t in events.Tags()["scalars"] if "images_per_s" not in t and not t.startswith("watch/")]
    return {t: sorted((e.step, e.value) for e in events.Scalars(t)) for t in tags}


def same(a, b):
    for k in a.keys() | b.keys():
        equal = torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k]
        assert equal, (k, a[k], b[k])


OPTIONS = {
    "epochs": {},
    "steps": {"max_epochs": -1, "max_steps": 16},
    "accumulation": {"accumulate_grad_batches": 4},  # 2 steps per epoch, the second of 2 batches
    "validation within epochs": {"val_check_interval": 2},
    "every second epoch": {"check_val_every_n_epoch": 2},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted runs, made on first use."""
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("whole")
            train(folder, **OPTIONS[name])
            made[name] = state(folder / "x" / "version_0"), curves(folder / "x" / "version_0")
        return made[name]

    return run


HOOKS = {
    "on_train_batch_start": (2, 7, 8, 13),  # before the first step, within the epoch, in the next ones
    "on_before_optimizer_step": (2, 4),
    "on_train_batch_end": (1, 6, 12),  # a step is done, but not logged or saved; the last of an epoch
    "on_validation_batch_start": (1, 2),
    "on_validation_end": (1, 2),  # after its loss is logged
    "on_train_epoch_end": (1,),
}
QUICK = [("on_train_batch_end", "epochs", 4), ("on_validation_batch_start", "accumulation", 1)]
CASES = [
    pytest.param(hook, kind, every, marks=() if (hook, kind, every) in QUICK else pytest.mark.slow)
    for hook in HOOKS
    for kind in OPTIONS
    for every in (1, 4)
]


@pytest.mark.parametrize("hook, kind, every", CASES)
def test_run_killed_in_any_hook_resumes_exactly(hook, kind, every, whole, tmp_path):
    """A run is killed several times in the same hook and then resumed to the end."""
    wanted, lines = whole(kind)
    kills = sum(train(tmp_path, Killer(hook, at), every, **OPTIONS[kind]) is None for at in HOOKS[hook])
    assert kills >= 1
    assert train(tmp_path, every=every, **OPTIONS[kind])
    run = tmp_path / "x" / "version_0"
    same(state(run), wanted)
    assert curves(run) == lines


class Items(torch.utils.data.Dataset):
    """Images one by one, with noise that is a function of the index."""

    def __init__(self) -> None:
        self.images, self.y = (v[: 8 * BATCHES] for v in Digits().arrays("train"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k):
        noise = torch.randn(self.images[k].shape, generator=torch.Generator().manual_seed(k))
        return self.images[k] / 127.5 - 1 + 0.01 * noise, self.y[k]


class Own(pl.LightningDataModule):
    """User data that are read by worker processes."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        return Loader(Items(), 8, num_workers=self.workers)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loader_with_workers_resumes_with_the_next_batch(workers, tmp_path):
    """Killed in mid-epoch after workers have fetched ahead; two workers train as none does."""
    options = {"limit_val_batches": 0, "every": 4}
    (tmp_path / "whole").mkdir()
    train(tmp_path / "whole", data=Own(0), **options)
    for at in (5, 7):
        assert train(tmp_path, Killer("on_train_batch_end", at), data=Own(workers), **options) is None
    assert train(tmp_path, data=Own(workers), **options)
    same(state(tmp_path / "x" / "version_0"), state(tmp_path / "whole" / "x" / "version_0"))


def prepared_digits(folder):
    """48 training and 16 test digits in shards, mirrored."""
    images, y = (v[:64].numpy() for v in Digits().arrays("train"))
    prepared.write(folder / "images", images, classes=list("0123456789"), labels=y)
    return lambda: Prepared(str(folder / "images"), flip=True, batch_size=8)


def paired_digits(folder):
    """48 training and 16 test digits as floats in thousands, mirrored, each with an image of 4x4 pixels and 16 bits."""
    images, y = (v[:64].numpy() for v in Digits().arrays("train"))
    np.save(folder / "i.npy", (images * 30.0 + 1000).astype(np.float32))
    np.save(folder / "low.npy", images.reshape(64, 4, 2, 4, 2).sum((2, 4), dtype=np.uint16))
    np.save(folder / "y.npy", y)
    files = {"images": "i.npy", "y": "y.npy", "condition": "low.npy", "root": str(folder)}
    return lambda: Arrays(**files, flip=True, test=0.25, batch_size=8)


def digits(folder):
    """48 digits of the package."""
    return lambda: Digits(batch_size=8, limit=48)


@pytest.mark.parametrize("make, hint", [
    pytest.param(prepared_digits, None, marks=pytest.mark.slow), (paired_digits, None),
    (digits, LowResolution(2, 0.5, blur=True)),  # a later stage of a cascade
])  # fmt: skip
def test_images_of_files_and_pairs_go_on_with_the_next_batch(make, hint, tmp_path):
    """Killed within the first and the second epoch; what the images are read from and scaled by is found again.

    The noise and the blur of small images are functions of the step.
    """
    options, made = {"every": 4, "max_epochs": 2, "hint": hint}, make(tmp_path)
    (tmp_path / "whole").mkdir()
    train(tmp_path / "whole", data=made(), **options)
    for at in (3, 6):
        assert train(tmp_path, Killer("on_train_batch_end", at), data=made(), **options) is None
    assert train(tmp_path, data=made(), **options)
    same(state(tmp_path / "x" / "version_0"), state(tmp_path / "whole" / "x" / "version_0"))
    assert curves(tmp_path / "x" / "version_0") == curves(tmp_path / "whole" / "x" / "version_0")


@pytest.mark.parametrize("kind", ["epochs", "steps"])
def test_validation_is_repeated_in_full_after_a_signal(kind, whole, tmp_path):
    """The pass is not finished first; the checkpoint is of the step before it, and the curve loses no point."""

    class Terminate(pl.Callback):
        def on_validation_batch_end(self, *args):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped) as stop:
        train(tmp_path, Terminate(), every=4, signals=True, **OPTIONS[kind])
    assert stop.value.code == 143 and stop.value.validating
    run = tmp_path / "x" / "version_0"
    assert runs.newest_step(run) == BATCHES and "val/loss" not in curves(run)
    assert train(tmp_path, every=4, signals=True, **OPTIONS[kind])
    same(state(run), whole(kind)[0])
    assert curves(run) == whole(kind)[1]


def test_a_signal_whose_checkpoint_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    """The failure is reported, the exit code is the signal's, and the last valid file is kept."""

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    class Terminate(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 7:
                monkeypatch.setattr(DurableIO, "save_checkpoint", full)
                signal.raise_signal(signal.SIGTERM)

    with (
        pytest.raises(Stopped) as stop,
        pytest.warns(UserWarning, match="no new checkpoint.*No space"),
    ):
        train(tmp_path, Terminate(), every=4, signals=True, limit_val_batches=0)
    run = tmp_path / "x" / "version_0"
    assert stop.value.code == 143 and runs.newest_step(run) == 4 and runs.resumable(run)[1]["global_step"] == 4


def test_a_signal_within_accumulation_waits_for_the_step(whole, tmp_path):
    class Terminate(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.fit_loop.total_batch_idx == 7:  # the second of four batches of the third step
                signal.raise_signal(signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Stopped) as stop:
        train(tmp_path, Terminate(), every=9, signals=True, **OPTIONS["accumulation"])
    run = tmp_path / "x" / "version_0"
    assert stop.value.code == 143 and runs.newest_step(run) == 3
    assert signal.getsignal(signal.SIGUSR1) == before
    assert train(tmp_path, every=9, signals=True, **OPTIONS["accumulation"])
    same(state(run), whole("accumulation")[0])
    assert curves(run) == whole("accumulation")[1]


def test_the_second_ctrl_c_quits_at_once(tmp_path):
    """In mid-step: a KeyboardInterrupt, which Lightning turns into its exit; nothing is saved."""

    class Impatient(pl.Callback):
        def on_before_optimizer_step(self, *args):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("still here")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path, Impatient(), signals=True)
    assert not isinstance(stop.value, Stopped) and not runs.checkpoints(tmp_path / "x" / "version_0")
    assert signal.getsignal(signal.SIGINT) == before
