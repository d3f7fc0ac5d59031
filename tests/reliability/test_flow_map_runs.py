"""A killed and resumed run of a flow map, or of walks of a teacher, is the uninterrupted one, to the bit."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch

from diffusion import Diffusion
from diffusion.data import Digits
from diffusion.denoiser.targets import V
from diffusion.guidance import ClassifierFree
from diffusion.loss.flow_map import FlowMap
from diffusion.loss.intervals import ECT, Anywhere, Even
from diffusion.loss.walks import Walks
from diffusion.loss.weights import Unit
from diffusion.nets import UNet
from diffusion.noise import Cosine, Stratified
from diffusion.samplers import DDIM, Consistency
from diffusion.training.callbacks import EMA, Checkpoint, DurableIO

STEPS = 12


class Seen(ECT):
    """Records the progress."""

    seen: list = []

    def __call__(self, t, r, schedule, progress):
        Seen.seen.append(progress)
        return super().__call__(t, r, schedule, progress)


def fit(folder, objective, until=None, path=None):
    """Train for STEPS steps; `until` kills the run after a step."""
    torch.manual_seed(0)
    clock = isinstance(objective, FlowMap) and objective.end.second_clock
    net = UNet(1, 8, (1, 2), 1, head_width=8, num_classes=10, dropout=0.2, second_clock=clock)
    model = Diffusion(net, Cosine(), V(), objective, Consistency(2), lr=1e-3, shape=(1, 8, 8), decay="cosine")

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == until:
                raise KeyError

    trainer = pl.Trainer(
        accelerator="cpu", logger=pl.loggers.TensorBoardLogger(folder, name="x", version=0), max_steps=STEPS,
        callbacks=[EMA(0.9), Checkpoint(1, keep=99), Kill()], num_sanity_val_steps=0, plugins=[DurableIO()],
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    )  # fmt: skip
    try:
        trainer.fit(model, Digits(batch_size=8, limit=40), ckpt_path=path, weights_only=True)
    except KeyError:
        return
    assert trainer.global_step == STEPS


def walks(folder):
    """Walks of a teacher of two steps of training."""
    fit(folder / "teacher", FlowMap(Stratified(), weight=Unit()), until=2)
    return Walks(
        str(folder / "teacher" / "x" / "version_0" / "checkpoints" / "last.ckpt"), DDIM(3), ClassifierFree(1.5)
    )


@pytest.mark.parametrize("objective", [
    lambda folder: FlowMap(Stratified(), gap=Seen(2.0, 4), weight=Unit()),
    lambda folder: FlowMap(Stratified(), Anywhere(), Even(4, 32), weight=Unit()),
    pytest.param(walks, marks=pytest.mark.slow),
], ids=["ect", "mean flow", "walks"])  # fmt: skip
def test_killed_and_resumed_flow_map_is_the_uninterrupted_run_to_the_bit(objective, tmp_path):
    """Killed within the first, second and third of its stages; weights, averages and optimizer are equal."""
    Seen.seen = []
    objective = partial(objective, tmp_path)
    fit(tmp_path / "whole", objective())
    folder = tmp_path / "x" / "version_0" / "checkpoints"
    if Seen.seen:
        assert Seen.seen == pytest.approx([k / STEPS for k in range(STEPS)])
    for until, last in ((2, None), (5, 1), (8, 4), (None, 7)):
        fit(tmp_path, objective(), until, last and folder / f"step{last:08d}.ckpt")
    a, b = (torch.load(f / "x" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
            for f in (tmp_path / "whole", tmp_path))  # fmt: skip
    assert all(torch.equal(b["state_dict"][k], v) for k, v in a["state_dict"].items())
    assert all(torch.equal(b["callbacks"]["EMA"]["shadow"][k], v) for k, v in a["callbacks"]["EMA"]["shadow"].items())
    for k, slots in a["optimizer_states"][0]["state"].items():
        assert all(torch.equal(b["optimizer_states"][0]["state"][k][n], v) for n, v in slots.items())
