"""Multi-process launches: the number of processes, and one run directory and checkpoint for all of them.

Lightning detects the launcher: torchrun (which SageMaker's torch_distributed uses), srun, or itself. This module
handles what Lightning leaves open or gets wrong.
"""

import json
import os
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from diffusion.training.resume import Start, place

DECIDED = "DIFFUSION_RUN"  # passes the decision to the processes that the first one starts


def count(trainer: dict) -> None:
    """Fill in `devices: auto` and `num_nodes` from the launcher's environment: on a CPU Lightning would take 1."""
    if trainer["devices"] not in ("auto", "-1", -1):
        return
    if TorchElasticEnvironment.detect():
        local, world = (int(os.environ[k]) for k in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    elif SLURMEnvironment.detect() and "SLURM_NTASKS" in os.environ:
        world = int(os.environ["SLURM_NTASKS"])
        local = int(os.environ.get("SLURM_NTASKS_PER_NODE", world // int(os.environ.get("SLURM_NNODES", 1))))
    else:
        return
    trainer["devices"], trainer["num_nodes"] = local, max(1, world // local)


def plugins() -> list:
    """SLURM's environment without Lightning's requeueing, which writes and loads its own checkpoints."""
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if slurm else []


def launched() -> bool:
    """Whether Lightning started this process from the first one."""
    return DECIDED in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0


def first() -> bool:
    """Whether this process writes files, from the launcher's environment (before a trainer exists)."""
    return next((os.environ[k] for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), "0") == "0"


def alone(trainer: dict) -> bool:
    """Whether the run has a single process, by the trainer's configuration and the launcher's environment."""
    return trainer["devices"] in ("auto", 1, "1") and "LOCAL_RANK" not in os.environ


def agreed(trainer: pl.Trainer, model: pl.LightningModule, start: Start) -> Start:
    """The start with the first process's run directory and checkpoint, the same on every process.

    Left alone, each process would choose its own, and the first has already taken the next free number. Processes that
    Lightning has yet to start receive the decision in their environment; processes that already exist synchronise here.

    Raises:
        ValueError: several machines without a launcher that starts a process on each.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1 or not hasattr(strategy, "cluster_environment"):
        return start
    mine = [str(start.folder), str(start.resume.path) if start.resume else None]
    if isinstance(strategy.cluster_environment, LightningEnvironment):
        if trainer.num_nodes > 1:
            raise ValueError("several machines: start one process per device with torchrun or srun")
        if not launched():
            os.environ[DECIDED] = json.dumps(mine)
        decided = json.loads(os.environ[DECIDED])
    else:
        strategy.connect(model)
        strategy.setup_environment()  # idempotent: Lightning calls it again
        decided = strategy.broadcast(mine)
    if decided[1] != mine[1]:
        resume = place(Path(decided[0]).parent, decided[1], False).resume if decided[1] else None
        start = start._replace(resume=resume)
    return start._replace(folder=Path(decided[0]))
