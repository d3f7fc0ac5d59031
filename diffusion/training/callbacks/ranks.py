"""Multi-process training: agreement between processes, and resuming with a different number of them."""

import time

import pytorch_lightning as pl
import torch
from torch import distributed

EVERY = 0.5  # seconds between two reductions
MOST = 10  # largest number of calls between them, since the pace may change


class Agreement:
    """Whether any process votes yes, reduced about twice a second on the host, without waiting for a device.

    All processes have to call at the same points. Only every n-th call communicates; n, the smallest value that any
    process proposes, is agreed on in the same reduction: MAX over processes of (yes, -n).
    """

    def __init__(self) -> None:
        self._group, self._every, self._asked, self._last = None, 1, 0, time.monotonic()

    def begin(self) -> None:
        """Create a host-side process group if the default one is not; every process has to call this."""
        self._every, self._asked, self._last = 1, 0, time.monotonic()
        if several() and self._group is None and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")

    def any(self, mine: bool) -> bool:
        """Whether any process votes yes; known at calls that communicate, False at the others."""
        if not several():
            return mine
        self._asked += 1
        if self._asked < self._every:
            return False
        now = time.monotonic()
        pace = (now - self._last) / self._asked  # seconds between two calls
        self._asked, self._last = 0, now
        answer = torch.tensor([int(mine), -max(1, min(MOST, int(EVERY / max(pace, 1e-6))))])
        distributed.all_reduce(answer, distributed.ReduceOp.MAX, self._group)
        self._every = -int(answer[1])
        return bool(answer[0])

    def least(self, value: int) -> int:
        """The smallest of all processes' values, reduced immediately."""
        if not several():
            return value
        answer = torch.tensor([value])
        distributed.all_reduce(answer, distributed.ReduceOp.MIN, self._group)
        return int(answer)


def several() -> bool:
    """Whether there is more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class Ranks(pl.Callback):
    """Resume a run with a different number of processes or batch size, and disable Lightning's signal check.

    The loader knows how many images of the epoch have been seen (`Order`); Lightning counts batches and would end the
    epoch early or late. `Signals` handles signals: Lightning's own check synchronises the device at every step and only
    considers the first process.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if "loops" not in checkpoint:  # weights alone, of an imported model
            return
        loops = checkpoint["loops"]["fit_loop"]
        states = loops["state_dict"].get("combined_loader")
        if trainer.state.fn != "fit" or not states or "images" not in states[0] or trainer.datamodule is None:
            return
        place = (trainer.world_size, getattr(trainer.datamodule, "batch_size", 0))  # 0: only the loader knows it
        progress = loops["epoch_loop.batch_progress"]
        now = progress["current"]
        if not now["ready"] or place[1] and (checkpoint.get("place") or place) == place:
            return
        loader = trainer.datamodule.train_dataloader()
        loader.load_state_dict(states[0])
        over = states[0]["batches"] == 0  # the epoch is complete
        ready = len(loader) if over else loader.state_dict()["batches"]
        if ready == now["ready"]:
            return
        now.update({k: now[k] + ready - now["ready"] for k in now})
        progress["is_last_batch"] = over or ready >= len(loader)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint["place"] = (trainer.world_size, getattr(trainer.datamodule, "batch_size", 0))
