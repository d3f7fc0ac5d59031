"""The work of the processes in the tests; a new process imports each function."""

import os
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy

from diffusion import Diffusion
from diffusion.data import Arrays, Digits, Prepared
from diffusion.data.loader import Loader
from diffusion.denoiser.codecs import PCA
from diffusion.loss.augment import NonLeaking
from diffusion.metrics.features import FeatureNet
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.training.callbacks import EMA, Checkpoint, DurableIO, Guard, PostHoc, Ranks, Signals
from diffusion.training.systems import Classifier
from diffusion.training.systems.optimizers import Muon


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def model(**options) -> Diffusion:
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=10, dropout=options.pop("dropout", 0.1))
    return Diffusion(net, Cosine(50), **({"lr": 1e-3, "shape": (1, 8, 8), "warmup": 3} | options))


class Odd(Digits):
    """Digits with 353 test images, which no two processes can share equally."""

    def load(self, split):
        images, y = super().load(split)
        return (images[:353], y[:353]) if split == "test" else (images, y)


class Items(torch.utils.data.Dataset):
    """330 digits read one by one, with noise that is a function of the index."""

    def __init__(self) -> None:
        self.images, self.y = Digits(limit=330).arrays("train")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int):
        noise = torch.randn(self.images[k].shape, generator=torch.Generator().manual_seed(k))
        return self.images[k] / 127.5 - 1 + 0.01 * noise, self.y[k]


class Own(pl.LightningDataModule):
    """A user's own data through `Loader`; the module itself does not know the batch size."""

    def __init__(self, workers: int, size: int) -> None:
        super().__init__()
        self.workers, self.size = workers, size

    def train_dataloader(self):
        return self.loader()

    def val_dataloader(self):
        return self.loader(shuffle=False, drop_last=False)

    def loader(self, **options) -> Loader:
        fork = "fork" if self.workers else None  # these processes' own method imports torch anew for each worker
        return Loader(
            Items(), self.size, rank=rank(), world=world(), num_workers=self.workers, multiprocessing_context=fork,
            **options,
        )  # fmt: skip


class Record(pl.Callback):
    """Records the images of each batch, their times, the validations, and the state at the start."""

    def __init__(self):
        self.batches, self.times, self.validated, self.start, self.epochs = [], [], [], None, []

    def on_train_start(self, trainer, m):
        ema = next(c for c in trainer.callbacks if isinstance(c, EMA))
        self.start = {
            "weights": {k: v.clone() for k, v in m.state_dict().items()},
            "shadow": {k: v.clone() for k, v in ema.shadow.items()},
            "optimizer": [{k: v.clone() for k, v in s.items()} for s in trainer.optimizers[0].state.values()],
            "step": trainer.global_step,
        }

    def on_train_batch_end(self, trainer, m, outputs, batch, batch_idx):
        self.batches.append((trainer.current_epoch, trainer.train_dataloader.indices(trainer.current_epoch, batch_idx)))
        self.times.append(outputs["level"].t.flatten().clone())

    def on_validation_end(self, trainer, m):
        self.validated.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


def trainer(folder: Path, callbacks=(), **options) -> pl.Trainer:
    options = {"strategy": "ddp"} | options if world() > 1 else options
    return pl.Trainer(
        accelerator="cpu", devices=world(), callbacks=list(callbacks), num_sanity_val_steps=0, plugins=[DurableIO()],
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, use_distributed_sampler=False,
        **{"logger": pl.loggers.TensorBoardLogger(folder, name="x", version=0), "log_every_n_steps": 1} | options,
    )  # fmt: skip


def train(
    folder: str, checkpoint: str | None = None, workers: int | None = None, epochs: int = 2, files: str = ""
) -> int:
    """Epochs on 330 digits, with a checkpoint after each step; the record is written to seenR.pt.

    Args:
        workers: of a `Loader`; None for `Batches`.
        files: a prepared folder or its address (in windows of 2 shards), or a .npy file of images, to be used instead.
    """
    folder, record = Path(folder), Record()
    t = trainer(folder, [Ranks(), Signals(), EMA(), Guard(), record, Checkpoint(1, keep=99)], max_epochs=epochs)
    m = model()
    options = {"batch_size": 24, "limit": 330}
    if files:
        data = Arrays(files, **options) if files.endswith(".npy") else Prepared(files, window=2, **options)
    else:
        data = Odd(**options) if workers is None else Own(workers, 24)
    t.fit(m, data, ckpt_path=checkpoint, weights_only=True)
    seen = {k: getattr(record, k) for k in ("batches", "times", "validated", "start")}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(seen | {"end": m.state_dict(), "step": t.global_step}, folder / f"seen{rank()}.pt")
    return 0


def train_parts(folder: str, checkpoint: str | None = None) -> int:
    """Two epochs of six steps with Muon, snapshots of averages and non-leaking augmentation; writes endR.pt."""
    augment = NonLeaking(["scale", "shift"], p=0.5)
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=10, image_channels=augment.numbers)
    m = Diffusion(net, Cosine(50), lr=1e-3, shape=(1, 8, 8), optimizer=Muon(), augment=augment)
    t = trainer(Path(folder), [Ranks(), Signals(), EMA(), PostHoc(3), Checkpoint(1, keep=99)], max_epochs=2)
    t.fit(m, Odd(batch_size=24, limit=330), ckpt_path=checkpoint, weights_only=True)
    torch.save(m.state_dict(), Path(folder) / f"end{rank()}.pt")
    return 0


def train_latents(folder: str) -> int:
    """Three steps on latents of a codec that is fitted at the start; the weights are written to endR.pt."""
    torch.manual_seed(rank())  # weights that differ until they are exchanged
    net = AttentionUNet(2, (8, 16), heads=2, attention=1, num_classes=10)
    m = Diffusion(net, Cosine(50), codec=PCA(1, 2, 2), shape=(1, 8, 8), lr=1e-3)
    t = trainer(Path(folder), [Ranks(), Signals()], max_steps=3, logger=False, enable_checkpointing=False)
    t.fit(m, Odd(batch_size=24, limit=330, latents=os.environ["LATENTS"]))
    torch.save(m.state_dict(), Path(folder) / f"end{rank()}.pt")
    return 0


def validate(folder: str) -> int:
    """Write val/loss and val/accuracy of untrained models to valR.pt."""
    torch.manual_seed(0)
    classifier = Classifier(FeatureNet(widths=(8, 8, 8), width=8), shape=(1, 8, 8))
    said = {}
    for m in (model(), classifier):
        t = trainer(Path(folder), logger=False, enable_checkpointing=False)
        (found,) = t.validate(m, Odd(batch_size=50), verbose=False)
        said |= {f"{type(m).__name__} {k}": v for k, v in found.items()}
    torch.save(said, Path(folder) / f"val{rank()}.pt")
    return 0


def train_and_validate(folder: str) -> int:
    return validate(folder) or train(folder)


def fails(*argv: str) -> int:
    """`diffusion fit`, in which the second process fails at its third step."""
    step = Diffusion.training_step

    def breaks(self, batch, batch_idx):
        if rank() == 1 and self.trainer.global_step == 3:
            raise RuntimeError("the second process is broken")
        return step(self, batch, batch_idx)

    Diffusion.training_step = breaks
    from diffusion.cli import main

    return main(list(argv))


def poisoned(folder: str) -> int:
    """Only the second process has a NaN in its third batch; both roll back."""
    step = Diffusion.training_step

    def breaks(self, batch, batch_idx):
        x, y = batch
        if rank() == 1 and self.trainer.global_step == 3:
            x = x.clone()
            x[5] = float("nan")
        return step(self, (x, y), batch_idx)

    Diffusion.training_step = breaks
    folder, guard = Path(folder), Guard()
    t = trainer(folder, [Ranks(), EMA(), guard, Checkpoint(2, keep=9)], max_epochs=1, log_every_n_steps=5)
    m = model()
    t.fit(m, Odd(batch_size=24, limit=330))
    torch.save({"used": guard.used, "end": m.state_dict()}, folder / f"seen{rank()}.pt")
    return 0


def shard(folder: str, sharded: bool) -> int:
    """One epoch of 3 steps, with FSDP2 or with DDP; both checkpoints have complete tensors."""
    strategy = {"strategy": ModelParallelStrategy(data_parallel_size=world(), tensor_parallel_size=1,
                                                  save_distributed_checkpoint=False)} if sharded else {}  # fmt: skip
    callbacks = [Ranks(), EMA(), Guard(), Checkpoint(1)]
    t = trainer(Path(folder), callbacks, max_epochs=1, limit_train_batches=3, limit_val_batches=2, **strategy)
    m = model(dropout=0.0)  # a mask is drawn in the order of memory, and FSDP2 takes no channels_last
    total = sum(p.numel() for p in m.parameters())
    t.fit(m, Odd(batch_size=24, limit=330))
    mine = sum((p.to_local() if sharded else p).numel() for p in m.parameters())
    torch.save({"total": total, "mine": mine, "val": float(t.callback_metrics["val/loss"])},
               Path(folder) / f"seen{rank()}.pt")  # fmt: skip
    return 0
