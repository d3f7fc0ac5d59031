"""The number of processes and their launcher, as read from the environment that each launcher sets."""

import os

import pytest
import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from diffusion.training import launch
from diffusion.training.resume import Start

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
SAGEMAKER = TORCHRUN | {
    "SM_MODEL_DIR": "/opt/ml/model",
    "SM_HOSTS": '["algo-1", "algo-2"]',
    "SM_CURRENT_HOST": "algo-2",
}
SLURM = {
    "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train",
    "SLURM_JOB_ID": "4711", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_NODELIST": "127.0.0.[1-2]", "SLURM_STEP_ID": "0", "SRUN_DEBUG": "3",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for key in list(os.environ):
        if key.startswith(("SLURM_", "SM_", "TORCHELASTIC")) or key in TORCHRUN or key == launch.DECIDED:
            monkeypatch.delenv(key)

    def choose(values):
        for k, v in values.items():
            monkeypatch.setenv(k, v)

    return choose


@pytest.mark.parametrize("values, kind, rank", [
    ({}, LightningEnvironment, 0), (TORCHRUN, TorchElasticEnvironment, 5), (SAGEMAKER, TorchElasticEnvironment, 5),
    (SLURM, SLURMEnvironment, 5), (SLURM | TORCHRUN, TorchElasticEnvironment, 5),
])  # fmt: skip
def test_launcher_is_detected_from_its_environment(environment, values, kind, rank):
    environment(values)
    options = {"devices": "auto", "num_nodes": 1}
    launch.count(options)
    assert options == ({"devices": 4, "num_nodes": 2} if values else {"devices": "auto", "num_nodes": 1})
    trainer = pl.Trainer(
        accelerator="cpu", strategy="ddp", logger=False, enable_progress_bar=False, plugins=launch.plugins(),
        enable_checkpointing=False, enable_model_summary=False, **options | ({} if values else {"devices": 2}),
    )  # fmt: skip
    found = trainer.strategy.cluster_environment
    assert type(found) is kind and trainer.global_rank == rank and trainer.world_size == (8 if values else 2)
    assert found.creates_processes_externally is bool(values)
    if kind is SLURMEnvironment:
        assert not found.auto_requeue  # SLURM's automatic requeueing is off: the project resumes runs itself


def test_devices_follow_slurm_unless_they_are_given(environment):
    environment({k: v for k, v in SLURM.items() if k != "SLURM_NTASKS_PER_NODE"})
    options = {"devices": "auto", "num_nodes": 1}
    launch.count(options)
    assert options == {"devices": 4, "num_nodes": 2}
    options = {"devices": 3, "num_nodes": 1}
    launch.count(options)
    assert options == {"devices": 3, "num_nodes": 1}


def test_processes_that_lightning_starts_use_the_folder_of_the_first(environment, monkeypatch, tmp_path):
    """The first process chooses the folder; the others inherit the choice from its environment."""
    environment({})
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(**options, enable_progress_bar=False, enable_model_summary=False)
    assert launch.agreed(trainer, None, Start(tmp_path / "version_3")) == Start(tmp_path / "version_3")
    assert not launch.launched()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch.launched()
    assert launch.agreed(trainer, None, Start(tmp_path / "version_4")) == Start(tmp_path / "version_3")
    os.environ.pop(launch.DECIDED)


def test_several_machines_require_a_launcher(environment, tmp_path):
    environment({})
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, num_nodes=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="torchrun or srun"):
        launch.agreed(trainer, None, Start(tmp_path))
