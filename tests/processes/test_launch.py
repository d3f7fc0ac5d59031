"""The number of processes and their launcher, as read from the environment that each launcher sets."""

import os
import socket
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import SingleDeviceStrategy

from diffusion.support import seal
from diffusion.training import launch
from diffusion.training.build import DiffusionCLI
from diffusion.training.build import recorded as recorded_parts
from diffusion.training.resume import Start, place

OPTIONS = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
    "enable_model_summary": False,
}  # fmt: skip

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
    config = {"devices": "auto", "num_nodes": 1}
    options = launch.everywhere(config)
    assert config == {"devices": "auto", "num_nodes": 1}  # of this start, so not recorded
    wanted = {"devices": 4, "num_nodes": 2} if values else config
    assert {k: v for k, v in options.items() if k != "plugins"} == wanted
    assert launch.alone(config) is not bool(values)
    trainer = pl.Trainer(**OPTIONS, strategy="ddp", **options | ({} if values else {"devices": 2}))
    found = trainer.strategy.cluster_environment
    assert type(found) is kind and trainer.global_rank == rank and trainer.world_size == (8 if values else 2)
    assert found.creates_processes_externally is bool(values)
    if kind is SLURMEnvironment:
        assert not found.auto_requeue  # SLURM's automatic requeueing is off: the project resumes runs itself


def test_devices_follow_slurm_unless_they_are_given(environment):
    environment({k: v for k, v in SLURM.items() if k != "SLURM_NTASKS_PER_NODE"})
    assert launch.count({"devices": "auto", "num_nodes": 1}) == {"devices": 4, "num_nodes": 2}
    assert launch.count({"devices": 3, "num_nodes": 1}) == {"devices": 3, "num_nodes": 1}


def test_one_task_on_each_machine_is_not_alone(environment):
    environment(SLURM | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"})
    assert launch.count({"devices": "auto", "num_nodes": 1}) == {"devices": 1, "num_nodes": 2}
    assert not launch.alone({"devices": "auto", "num_nodes": 1})


def test_a_configuration_that_torchrun_does_not_fit_is_refused(environment):
    """Such as the numbers of an older start, which older versions recorded."""
    environment(TORCHRUN)
    with pytest.raises(ValueError, match="devices 1 on trainer.num_nodes 2 are 2 processes, but torchrun.*started 8"):
        launch.count({"devices": 1, "num_nodes": 2})
    assert launch.count({"devices": 4, "num_nodes": 2}) == {"devices": 4, "num_nodes": 2}
    assert launch.count({"devices": 1, "num_nodes": 1}) == {"devices": 1, "num_nodes": 1}  # alone, in each


# --- a run that is opened on one machine -------------------------------------------------------------------

ONE_NODE = TORCHRUN | {"WORLD_SIZE": "4", "RANK": "1", "GROUP_RANK": "0"}


@pytest.mark.parametrize("values, asked, devices, world", [
    ({}, None, 1, 1), ({}, 2, 2, 2), (SLURM, None, 1, 1), (SLURM, "3", "3", 3), (ONE_NODE, None, 4, 4),
])  # fmt: skip
def test_a_run_is_opened_on_this_machine_alone(values, asked, devices, world, environment):
    """However it was trained; in a SLURM job without srun, nobody else would come."""
    environment(values)
    options = launch.here(asked)
    assert (options["devices"], options["num_nodes"]) == (devices, 1)
    trainer = pl.Trainer(**OPTIONS, **options)
    assert trainer.world_size == world and trainer.num_nodes == 1


def test_a_run_is_not_opened_by_torchrun_on_several_machines(environment):
    environment(TORCHRUN)
    with pytest.raises(ValueError, match="wanted one machine, got 8 processes of torchrun on several; use --nnodes 1"):
        launch.here(None)


@pytest.mark.filterwarnings("ignore:LightningCLI's args")
@pytest.mark.parametrize("recorded", [
    ["--trainer.devices=1", "--trainer.num_nodes=2"],
    ["--trainer.devices=8", "--trainer.num_nodes=1"],
    ["--trainer.devices=2", "--trainer.strategy=ModelParallelStrategy", "--trainer.strategy.data_parallel_size=2",
     "--trainer.strategy.tensor_parallel_size=1"],
])  # fmt: skip
def test_what_a_configuration_records_of_a_training_does_not_bind_validation(recorded, environment, tmp_path):
    environment({})
    words = ["-c", "configs/digits.yaml", "--trainer.accelerator=cpu"]
    DiffusionCLI([*words, *recorded]).save(tmp_path / "config.yaml")
    (tmp_path / "checkpoints").mkdir()
    trainer = recorded_parts(tmp_path / "checkpoints" / "last.ckpt", []).trainer
    assert trainer.world_size == trainer.num_nodes == 1 and type(trainer.strategy) is SingleDeviceStrategy
    trainer = recorded_parts(tmp_path / "checkpoints" / "last.ckpt", ["--trainer.devices=2"]).trainer
    assert trainer.world_size == 2 and trainer.num_nodes == 1


# --- one run for all processes -----------------------------------------------------------------------------


def test_processes_that_lightning_starts_use_the_folder_of_the_first(environment, monkeypatch, tmp_path):
    """The first process chooses the folder; the others inherit the choice from its environment."""
    environment({})
    trainer = pl.Trainer(**OPTIONS, devices=2, strategy="ddp")
    assert not launch.joined(trainer, None)
    assert launch.agreed(trainer, None, Start(tmp_path / "version_3")) == Start(tmp_path / "version_3")
    assert not launch.launched()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch.launched()
    assert launch.agreed(trainer, None, Start(tmp_path / "version_4")) == Start(tmp_path / "version_3")
    os.environ.pop(launch.DECIDED)


def test_several_machines_require_a_launcher(environment, tmp_path):
    environment({})
    trainer = pl.Trainer(**OPTIONS, devices=1, num_nodes=2)
    for function in (launch.compared, launch.agreed):
        with pytest.raises(ValueError, match="torchrun or srun, or train on this one with --trainer.num_nodes 1"):
            function(trainer, None, Start(tmp_path))


@pytest.fixture
def gathered(monkeypatch):
    """Makes `compared` see what other processes would send it."""

    def other(*views):
        def gather(everyone, mine):
            everyone[:] = [mine if view is None else view for view in views]

        monkeypatch.setattr(launch, "joined", lambda trainer, model: True)
        monkeypatch.setattr(launch.distributed, "all_gather_object", gather)
        return SimpleNamespace(world_size=len(views))

    return other


def test_processes_that_see_the_same_go_on(gathered):
    start = Start(seen="last.ckpt (step 4, sha256 ab)")
    assert launch.compared(gathered(None, ("b", start.seen, "")), None, start) is start


@pytest.mark.parametrize("first, second", [
    ("no checkpoint in logs/x", "logs/x/version_0/checkpoints/last.ckpt (step 4, sha256 ab)"),
    ("logs/x/version_0/checkpoints/last.ckpt (step 4, sha256 ab)", "no checkpoint in logs/x"),
    ("last.ckpt (step 4, sha256 ab)", "last.ckpt (step 6, sha256 cd)"),
    ("last.ckpt (step 4, sha256 ab)", "last.ckpt (step 4, sha256 cd)"),
    ("no checkpoint in logs/x", "logs/x/version_0, not yet trained"),
])  # fmt: skip
def test_processes_that_see_different_files_are_all_refused(first, second, gathered):
    a, b = ("a", first, ""), ("b", second, "")
    for views, mine in (((None, b, b), first), ((a, None, b), second)):
        with pytest.raises(ValueError) as refused:
            launch.compared(gathered(*views), None, Start(seen=mine))
        said = str(refused.value)
        me = socket.gethostname()
        hosts = (me, "b") if mine is first else ("a", ", ".join(sorted({"b", me})))
        assert said.startswith("--resume: wanted the same checkpoint on every machine, but") and "\n" not in said
        assert f"process 0 (host {hosts[0]}) sees {first}, processes 1, 2 (host" in said, said
        assert f"{hosts[1]}) see {second}; copy the newest run's folder" in said, said


def test_an_error_of_one_process_is_one_of_all(gathered, environment):
    """The first one alone asks for the lock; the others must not wait for it."""
    error = ValueError("run: another process is training it")
    mine, other = Start(seen="last.ckpt", failed=error), ("b", "last.ckpt", str(error))
    for views, start in (((None, ("b", "last.ckpt", "")), mine), ((other, None), Start(seen="last.ckpt"))):
        with pytest.raises(ValueError, match="^run: another process is training it$"):
            launch.compared(gathered(*views), None, start)
    environment(TORCHRUN)
    assert launch.looked(lambda: place(Path("nowhere"), "nowhere/run")).failed


def test_an_error_is_raised_at_once_without_other_processes(environment):
    environment({})
    with pytest.raises(FileNotFoundError, match="nowhere/run"):
        launch.looked(lambda: place(Path("nowhere"), "nowhere/run"))


def test_an_unwritable_folder_of_the_first_process_ends_all(gathered, tmp_path):
    error = OSError("runs: the folder cannot be written")
    for start in (Start(failed=error), Start(tmp_path)):
        trainer = gathered(None, None)
        trainer.strategy = SimpleNamespace(broadcast=lambda mine: ["None", None, str(error)])
        with pytest.raises(OSError, match="runs: the folder cannot be written"):
            launch.agreed(trainer, None, start)


def test_many_views_are_summed_up():
    said = launch.views([(f"n{k // 8}", f"file {max(0, k - 15)}", "") for k in range(24)])
    assert said.startswith("processes 0, 1, 2, 3, 4, 5, 6, 7 ... (hosts n0, n1) see file 0, process 16 (host n2) sees")
    assert said.endswith(", and 5 other views")


def test_what_is_seen_tells_files_apart(tmp_path):
    """Two files of one name and size; and a file whose checksum is missing, as older ones."""
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(zipfile.ZipInfo("x"), content)
    assert seal.identity(tmp_path / "a") == f"{(tmp_path / 'a').stat().st_size} bytes"
    for name in "abc":
        seal.seal(tmp_path / name)
    a, b, c = (seal.identity(tmp_path / name) for name in "abc")
    assert a == c != b and a.startswith("sha256 ") and len(a) == 7 + 16
