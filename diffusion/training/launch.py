"""Several processes: how many there are, and one decision for all of them.

Lightning finds out who started the processes: torchrun, and so SageMaker's torch_distributed; srun; else itself. What
it leaves open, or gets wrong, is here.
"""

import json
import os
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from diffusion.training.resume import Start, place

DECIDED = "DIFFUSION_RUN"  # what the first process tells those that it starts


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
    """SLURM's environment without the requeueing of Lightning, which writes and picks up checkpoints of its own."""
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if slurm else []


def launched() -> bool:
    """Whether this process was started by the first one, through Lightning."""
    return DECIDED in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0


def first() -> bool:
    """Whether this process is the one that writes: known from the launcher's environment before there is a trainer."""
    return next((os.environ[k] for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), "0") == "0"


def alone(trainer: dict) -> bool:
    """Whether the run has this process only, by the trainer's configuration and the launcher's environment."""
    return trainer["devices"] in ("auto", 1, "1") and "LOCAL_RANK" not in os.environ


def agreed(trainer: pl.Trainer, model: pl.LightningModule, start: Start) -> Start:
    """The first process's folder and checkpoint, for all.

    Each would find its own, and the first has made its folder by the time the others look for the next free number.
    Processes that Lightning starts are told in their environment, since they do not exist yet; all others meet now.

    Raises:
        ValueError: several machines, and nothing that has started a process on each.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1 or not hasattr(strategy, "cluster_environment"):
        return start
    mine = [str(start.folder), str(start.resume.path) if start.resume else None]
    if isinstance(strategy.cluster_environment, LightningEnvironment):
        if trainer.num_nodes > 1:
            raise ValueError("several machines: start a process for each device with torchrun or srun")
        if not launched():
            os.environ[DECIDED] = json.dumps(mine)
        decided = json.loads(os.environ[DECIDED])
    else:
        strategy.connect(model)
        strategy.setup_environment()  # Lightning does so again, and finds it done
        decided = strategy.broadcast(mine)
    if decided[1] != mine[1]:
        resume = place(Path(decided[0]).parent, decided[1], False).resume if decided[1] else None
        start = start._replace(resume=resume)
    return start._replace(folder=Path(decided[0]))
