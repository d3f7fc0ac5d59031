"""Several processes that train one model: what they have to agree on, and a run that changes their number."""

import time

import pytorch_lightning as pl
import torch
from torch import distributed

EVERY = 0.5  # seconds between two questions
MOST = 10  # calls between them, whatever the pace: it may change


class Agreement:
    """Whether any process says yes, asked about twice a second and on the host, so that no device is waited for.

    All processes have to ask at the same points. Only every n-th question is put to the others, and n, the least that
    any of them proposes, is agreed on in the same breath: MAX over processes of (yes, -n).
    """

    def __init__(self) -> None:
        self._group, self._every, self._asked, self._last = None, 1, 0, time.monotonic()

    def begin(self) -> None:
        """All processes: make the group that answers, where the usual one is not on the host."""
        self._every, self._asked, self._last = 1, 0, time.monotonic()
        if several() and self._group is None and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")

    def any(self, mine: bool) -> bool:
        """Whether any process said yes, now or since the last question that was put to all."""
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
        """The smallest of all processes' values, asked now."""
        if not several():
            return value
        answer = torch.tensor([value])
        distributed.all_reduce(answer, distributed.ReduceOp.MIN, self._group)
        return int(answer)


def several() -> bool:
    """Are there other processes?"""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class Ranks(pl.Callback):
    """Let a run go on with another number of processes or another batch size, and keep Lightning's hands off signals.

    The loader knows how many images of the epoch have been seen (`Batches`); Lightning counts batches, and would end
    the epoch early or late. A signal is `Signals`' business: Lightning's own question to all processes waits for the
    device at every step, and only hears the first of them.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        loops = checkpoint["loops"]["fit_loop"]
        states = loops["state_dict"].get("combined_loader")
        if trainer.state.fn != "fit" or not states or "images" not in states[0] or trainer.datamodule is None:
            return
        place = (trainer.world_size, trainer.datamodule.batch_size)
        progress = loops["epoch_loop.batch_progress"]
        now = progress["current"]
        if not now["ready"] or (checkpoint.get("place") or place) == place:
            return
        loader = trainer.datamodule.train_dataloader()
        loader.load_state_dict(states[0])
        over = states[0]["batches"] == 0  # of this epoch nothing is left
        ready = len(loader) if over else loader.state_dict()["batches"]
        now.update({k: now[k] + ready - now["ready"] for k in now})
        progress["is_last_batch"] = over or ready >= len(loader)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint["place"] = (trainer.world_size, getattr(trainer.datamodule, "batch_size", 0))
