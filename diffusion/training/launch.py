"""Multi-process launches: the number of processes, and one run directory and checkpoint for all of them.

Lightning detects the launcher: torchrun (which SageMaker's torch_distributed uses), srun, or itself. This module
handles what Lightning leaves open or gets wrong.
"""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch import distributed

from diffusion.training.resume import Start, place

DECIDED = "DIFFUSION_RUN"  # passes the decision to the processes that the first one starts


def processes() -> tuple[int, int] | None:
    """How many processes the launcher has started, on this machine and on all; None without a launcher."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if SLURMEnvironment.detect() and "SLURM_NTASKS" in os.environ:
        world = int(os.environ["SLURM_NTASKS"])
        return int(os.environ.get("SLURM_NTASKS_PER_NODE", world // int(os.environ.get("SLURM_NNODES", 1)))), world
    return None


def count(trainer: dict) -> dict[str, Any]:
    """`devices` and `num_nodes` of a training: as configured, or for `devices: auto` as many as the launcher started.

    On a CPU Lightning would take 1. The configuration keeps its "auto": the next start may have another launcher.

    Raises:
        ValueError: torchrun has started another number of processes than configured.
    """
    devices, nodes, started = trainer["devices"], trainer["num_nodes"] or 1, processes()
    if started and devices in ("auto", "-1", -1):
        local, world = started
        return {"devices": local, "num_nodes": max(1, world // local)}
    if started and TorchElasticEnvironment.detect() and str(devices).isdecimal():
        wanted, world = int(devices) * nodes, started[1]
        if wanted not in (1, world):
            raise ValueError(
                f"trainer.devices {devices} on trainer.num_nodes {nodes} are {wanted} processes, but torchrun has "
                f"started {world}; use --trainer.devices auto"
            )
    return {"devices": devices, "num_nodes": nodes}


def everywhere(trainer: dict) -> dict[str, Any]:
    """Options of a trainer that trains with all processes of the launcher.

    SLURM's environment is used without Lightning's requeueing, which writes and loads its own checkpoints.
    """
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return count(trainer) | {"plugins": [SLURMEnvironment(auto_requeue=False)] if slurm else []}


def here(devices: int | str | None) -> dict[str, Any]:
    """Options of a trainer that opens a run on this machine alone, however many the training had.

    Args:
        devices: the number requested; None is 1, or as many as torchrun has started.
    Raises:
        ValueError: torchrun has started processes on several machines.
    """
    if TorchElasticEnvironment.detect():
        local, world = processes()
        if local < world:
            raise ValueError(f"wanted one machine, got {world} processes of torchrun on several; use --nnodes 1")
        return {"devices": devices or local, "num_nodes": 1, "plugins": []}
    return {"devices": devices or 1, "num_nodes": 1, "plugins": [LightningEnvironment()]}


def launched() -> bool:
    """Whether Lightning started this process from the first one."""
    return DECIDED in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0


def first() -> bool:
    """Whether this process writes files, from the launcher's environment (before a trainer exists)."""
    return next((os.environ[k] for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), "0") == "0"


def alone(trainer: dict) -> bool:
    """Whether the run has a single process, by the trainer's configuration and the launcher's environment."""
    found = count(trainer)
    return found["devices"] in ("auto", 1, "1") and found["num_nodes"] == 1 and "LOCAL_RANK" not in os.environ


# --- one run for all processes -------------------------------------------------------------------------------


def looked(look: Callable[[], Start]) -> Start:
    """The start that `look` returns; with several processes an error is kept for `compared`, which raises it on all."""
    try:
        start = look()
    except (ValueError, OSError) as error:
        start = Start(seen=str(error), failed=error)
    if start.failed and (processes() or (1, 1))[1] == 1:
        raise start.failed
    return start


def compared(trainer: pl.Trainer, model: pl.LightningModule, start: Start) -> Start:
    """The start, once all processes have found the same one. Every process has to call this.

    Machines without a shared folder have different files, and the first process may be on any of them: its view alone
    would start a new run although another machine has the checkpoints.

    Raises:
        ValueError: the processes see different checkpoints; on all of them.
        OSError, ValueError: what they see cannot be resumed; on all of them.
    """
    failed = start.failed
    if joined(trainer, model):
        everyone: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(everyone, (socket.gethostname(), start.seen, str(failed or "")))
        if len({seen for _, seen, _ in everyone}) > 1:
            raise ValueError(
                f"--resume: wanted the same checkpoint on every machine, but {views(everyone)}; copy the newest run's "
                "folder to the same place on every machine, or use an --out that all share"
            )
        failed = failed or next((ValueError(said) for _, _, said in everyone if said), None)
    if failed:
        raise failed
    return start


def views(everyone: list[tuple[str, str, str]]) -> str:
    """What the processes see, each view once: "process 0 (host a) sees ..., processes 1, 2 (host b) see ..."."""
    found: dict[str, list[int]] = {}
    for rank, (_, seen, _) in enumerate(everyone):
        found.setdefault(seen, []).append(rank)
    parts = []
    for seen, ranks in list(found.items())[:4]:
        hosts = sorted({everyone[rank][0] for rank in ranks})
        who = f"process{'es' * bool(ranks[1:])} {', '.join(map(str, ranks[:8]))}{' ...' * bool(ranks[8:])}"
        where = f"host{'s' * bool(hosts[1:])} {', '.join(hosts[:4])}{' ...' * bool(hosts[4:])}"
        parts.append(f"{who} ({where}) see{'' if ranks[1:] else 's'} {seen.rstrip('.')}")
    return ", ".join(parts) + (f", and {len(found) - 4} other views" if len(found) > 4 else "")


def joined(trainer: pl.Trainer, model: pl.LightningModule) -> bool:
    """Whether a launcher has started all processes of a run; they are then in one process group.

    Raises:
        ValueError: several machines without a launcher that starts a process on each.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1 or not hasattr(strategy, "cluster_environment"):
        return False
    if isinstance(strategy.cluster_environment, LightningEnvironment):
        if trainer.num_nodes > 1:
            raise ValueError(
                f"{trainer.num_nodes} machines: start a process for each device with torchrun or srun, or train on "
                "this one with --trainer.num_nodes 1 --trainer.devices auto"
            )
        return False
    strategy.connect(model)
    strategy.setup_environment()  # idempotent: Lightning calls it again
    return True


def agreed(trainer: pl.Trainer, model: pl.LightningModule, start: Start) -> Start:
    """The start with the first process's run directory and checkpoint, the same on every process.

    Left alone, each process would choose its own, and the first has already taken the next free number. Processes that
    Lightning has yet to start receive the decision in their environment; processes that already exist synchronise here.

    Raises:
        OSError: the first process cannot write its folder, on all of them.
        ValueError: several machines without a launcher that starts a process on each.
    """
    together = joined(trainer, model)
    mine = [str(start.folder), str(start.resume.path) if start.resume else None, str(start.failed or "")]
    decided = trainer.strategy.broadcast(mine) if together else mine
    if decided[2]:
        raise start.failed or OSError(f"the first process has failed: {decided[2]}")
    if trainer.world_size == 1 or not hasattr(trainer.strategy, "cluster_environment"):
        return start
    if not together:
        if not launched():
            os.environ[DECIDED] = json.dumps(mine)
        decided = json.loads(os.environ[DECIDED])
    if decided[1] != mine[1]:
        resume = place(Path(decided[0]).parent, decided[1], False).resume if decided[1] else None
        start = start._replace(resume=resume)
    return start._replace(folder=Path(decided[0]))
