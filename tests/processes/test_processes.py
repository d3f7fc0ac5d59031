"""Two processes train as one: shares, noise, losses, resumption with another number, signals, errors, sharding."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.processes import TINY, Group, attempt, command, resume
from diffusion.data import Arrays, Batches, Digits, Prepared
from diffusion.denoiser import averages
from diffusion.denoiser.codecs import PCA
from tests import prepared
from tests.processes import work

pytestmark = pytest.mark.slow
REPO = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds after which a group of processes counts as hung


def run(size, function, folder, *args, codes=None, environment=None):
    """Run a function in several processes, all of which must end within the limit."""
    with Group(size, function, folder, *args, environment=environment) as group:
        assert group.codes(LIMIT) == (codes or [0] * size), group.said()
        return group.said()


def seen(folder, size):
    return [torch.load(folder / f"seen{rank}.pt") for rank in range(size)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two epochs in two processes: the folder, and the records of each process."""
    folder = tmp_path_factory.mktemp("two")
    run(2, work.train_and_validate, folder, str(folder))
    return folder, seen(folder, 2)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run(1, work.train_and_validate, folder, str(folder))
    return folder, seen(folder, 1)[0]


def order(epoch):
    images, y = Digits(limit=330).arrays("train")
    return Batches(images, y, shuffle=True, drop_last=True).plan(epoch)[0].tolist()


def test_each_process_sees_its_own_share_with_its_own_noise(two):
    a, b = two[1]
    assert len(a["batches"]) == len(b["batches"]) == 12 and a["step"] == b["step"] == 12
    for epoch in (0, 1):
        both = [torch.stack([x, y], 1).flatten() for (e, x), (_, y) in zip(a["batches"], b["batches"], strict=True)
                if e == epoch]  # fmt: skip
        together = torch.cat(both).tolist()
        assert together == order(epoch)[:288] and len(set(together)) == 288
    assert not any(torch.equal(s, t) for s, t in zip(a["times"], b["times"], strict=True))
    assert all(torch.equal(v, b["end"][k]) for k, v in a["end"].items())  # both still have the same model


def test_losses_and_accuracy_are_those_of_one_process(two, one):
    """On 353 test images, so that the shares are unequal and the last batch is smaller."""
    alone = torch.load(one[0] / "val0.pt")
    assert len(alone) == 3 and alone["Classifier val/accuracy"] > 0
    for rank in range(2):
        said = torch.load(two[0] / f"val{rank}.pt")
        assert said == pytest.approx(alone, rel=1e-5), rank
    assert two[1][0]["validated"] == two[1][1]["validated"]


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_run_resumes_with_another_number_of_processes(before, after, two, one, tmp_path):
    """Weights, averages and optimizer to the bit; the rest of the epoch, each image once; then complete epochs."""
    folder = (one, two)[before - 1][0]
    step = 3 if before == 2 else 5
    file = folder / "x" / "version_0" / "checkpoints" / f"step{step:08d}.ckpt"
    run(after, work.train, tmp_path, str(tmp_path), str(file))
    read = torch.load(file, weights_only=True)
    parts = seen(tmp_path, after)
    for part in parts:
        start = part["start"]
        assert start["step"] == step
        assert all(torch.equal(v, read["state_dict"][k]) for k, v in start["weights"].items())
        assert all(torch.equal(v, read["callbacks"]["EMA"]["shadow"][k]) for k, v in start["shadow"].items())
        states = zip(start["optimizer"], read["optimizer_states"][0]["state"].values(), strict=True)
        assert all(torch.equal(v, old[k]) for now, old in states for k, v in now.items())
    rows = zip(*(part["batches"] for part in parts), strict=True)
    epochs = {0: [], 1: []}
    for batches in rows:
        epochs[batches[0][0]] += torch.stack([i for _, i in batches], 1).flatten().tolist()
    done = step * 24 * before
    whole = 330 // after // 24 * 24 * after
    left = (330 - done) // after // 24 * 24 * after
    assert epochs == {0: order(0)[done : done + left], 1: order(1)[:whole]}
    steps = step + left // (24 * after)
    assert [s for s, _ in parts[0]["validated"]] == [steps, steps + whole // (24 * after)]  # at the end of each epoch


def test_muon_and_snapshots_are_the_same_in_all_processes_and_resume_to_the_bit(tmp_path):
    """With augmentation drawn in each process; snapshots are written once."""
    run(2, work.train_parts, tmp_path, str(tmp_path))
    ends = [torch.load(tmp_path / f"end{rank}.pt") for rank in range(2)]
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())
    version = tmp_path / "x" / "version_0"
    kept = {s.path.name: s.path.read_bytes() for s in averages.snapshots(version)}
    assert len(kept) == 6
    again = tmp_path / "again"
    again.mkdir()
    run(2, work.train_parts, again, str(again), str(version / "checkpoints" / "step00000007.ckpt"))
    resumed = torch.load(again / "end0.pt")
    assert all(torch.equal(v, resumed[k]) for k, v in ends[0].items())
    assert {s.path.name: s.path.read_bytes() for s in averages.snapshots(again / "x" / "version_0")} == kept


@pytest.mark.parametrize("kind", ["prepared", "arrays"])
def test_own_images_go_from_two_processes_to_one_and_back(kind, tmp_path):
    """What all have seen of the epoch is a prefix of its order: 3 steps of two, 2 of one, and the rest of two again."""
    images, y = (v.numpy() for v in Digits().arrays("train"))
    if kind == "prepared":
        files, data = tmp_path / "files", Prepared
        prepared.write(files, images[:440], classes=list("0123456789"), labels=y[:440])
    else:
        files, data = tmp_path / "files.npy", Arrays
        np.save(files, images[:440, 0])
    data = data(str(files), limit=330)
    assert len(data.store("train")[0]) == 330
    legs, checkpoint = [], None
    for size, steps in ((2, 3), (1, 5), (2, None)):
        folder = tmp_path / str(len(legs))
        run(size, work.train, folder, str(folder), checkpoint, None, 1, str(files))
        batches = zip(*(part["batches"] for part in seen(folder, size)), strict=True)
        taken = [torch.stack([i for _, i in row], 1).flatten().tolist() for row in batches]
        before = 0 if checkpoint is None else int(checkpoint[-13:-5])
        legs += taken[: None if steps is None else steps - before]
        checkpoint = str(folder / "x" / "version_0" / "checkpoints" / f"step{steps or 0:08d}.ckpt")
    wanted = Batches(*data.store("train"), shuffle=True, drop_last=True).plan(0)[0].tolist()
    assert [len(leg) for leg in legs] == [48, 48, 48, 24, 24, 48, 48]
    assert sum(legs, []) == wanted[:288]


def test_a_nan_on_one_rank_makes_all_ranks_skip_the_step(tmp_path):
    said = run(2, work.poisoned, tmp_path, str(tmp_path))
    a, b = (torch.load(tmp_path / f"seen{rank}.pt") for rank in range(2))
    assert a["used"] == b["used"] == [3] and said.count("rolled back to step 2") == 1, said
    assert all(torch.equal(v, b["end"][k]) and v.isfinite().all() for k, v in a["end"].items())
    found = json.loads((tmp_path / "x" / "version_0" / "nonfinite-step3.json").read_text())
    assert [(x["rank"], len(x["bad"])) for x in found["batches"]] == [(0, 0), (1, 1)]
    assert found["batches"][1]["bad"] == [found["batches"][1]["images"][5]]


def test_an_error_of_one_process_ends_the_other(tmp_path):
    argv = [*TINY, "--out", str(tmp_path), "--trainer.max_epochs", "3"]
    said = run(2, work.fails, tmp_path, *argv, codes=[1, 1])
    assert "[process 1] diffusion fit: error: RuntimeError: the second process is broken" in said, said
    assert "another process of this run has ended" in said and "Traceback" not in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all(rank, tmp_path):
    found = attempt(2, rank, tmp_path, random.Random(rank), LIMIT)
    assert found["codes"] == [143, 143] and found["step"] > 0, found
    if rank == 1:
        codes, begun, last = resume(2, tmp_path, LIMIT)
        assert codes == [0, 0] and begun == found["step"] < last


def test_fsdp2_from_the_command_line(tmp_path):
    """A run with all callbacks, from which a single process then samples."""
    strategy = ["ModelParallelStrategy", "--trainer.strategy.data_parallel_size", "2",
                "--trainer.strategy.tensor_parallel_size", "1",
                "--trainer.strategy.save_distributed_checkpoint", "false"]  # fmt: skip
    argv = [*TINY, "--out", str(tmp_path), "--trainer.max_epochs", "2", "--trainer.strategy", *strategy]
    said = run(2, command, tmp_path, *argv)
    assert said.count("next:") == 1 and "Traceback" not in said, said
    assert resume(1, tmp_path, LIMIT)[0] == [0]  # and it resumes in one process, unsharded
    run(1, command, tmp_path, "sample", str(tmp_path / "digits"), "--n", "4", "--out", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 100


def test_fsdp2_takes_the_steps_of_ddp(tmp_path):
    """Each process holds half of the network; checkpoint and averages are complete and equal DDP's."""
    for name, sharded in (("fsdp", True), ("ddp", False)):
        run(2, work.shard, tmp_path / name, str(tmp_path / name), sharded)
    a, b = (seen(tmp_path / name, 2) for name in ("fsdp", "ddp"))
    total = a[0]["total"]
    assert a[0]["mine"] + a[1]["mine"] == total and max(p["mine"] for p in a) < 0.75 * total
    assert b[0]["mine"] == b[1]["mine"] == total
    assert a[0]["val"] == pytest.approx(b[0]["val"], rel=1e-5)
    files = (tmp_path / n / "x" / "version_0" / "checkpoints" / "last.ckpt" for n in ("fsdp", "ddp"))
    x, y = (torch.load(file, weights_only=True) for file in files)
    for mine, its in ((f["state_dict"], f["callbacks"]["EMA"]["shadow"]) for f in (x, y)):
        assert all(type(v) is torch.Tensor for v in (*mine.values(), *its.values()))
    apart = torch.cat([(v - y["state_dict"][k]).abs().flatten() for k, v in x["state_dict"].items()])
    # Adam's first steps have the sign of the gradient, which is arbitrary where the gradient is 0 up to rounding.
    assert apart.quantile(0.95) < 1e-5 and apart.max() < 2 * 3e-3


def begun(argv):
    """Run a launcher with our command line in the repository; its output and exit code."""
    done = subprocess.run(
        [sys.executable, *argv], cwd=REPO, capture_output=True, text=True, timeout=2 * LIMIT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"]


@pytest.mark.parametrize("launcher, options", [(TORCHRUN, []), (["-m"], ["--trainer.devices", "2"])],
                         ids=["torchrun", "lightning"])  # fmt: skip
def test_processes_share_one_folder_one_log_and_one_set_of_messages(launcher, options, tmp_path):
    code, said, errors = begun([*launcher, "diffusion", *TINY, "--trainer.max_epochs", "2", "--out", str(tmp_path),
                                *options])  # fmt: skip
    assert code == 0, errors
    assert said.count("parameters) on Digits") == said.count("next:") == 1, said
    (folder,) = (tmp_path / "digits").iterdir()
    assert folder.name == "version_0" and len(list(folder.glob("events*"))) == 1
    losses = EventAccumulator(str(folder)).Reload().Scalars("val/loss")
    assert [e.step for e in losses] == [1, 3]  # 320 digits are 2 batches of 64 for each
    assert re.search(r"^4 steps, ", said, re.M), said
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["place"] == (2, 64)


@pytest.mark.parametrize("launcher, options, code", [(TORCHRUN, [], None), (["-m"], ["--trainer.devices", "2"], 143)],
                         ids=["torchrun", "lightning"])  # fmt: skip
def test_a_signal_to_the_launcher_stops_all(launcher, options, code, tmp_path):
    """SIGTERM to torchrun, as from SageMaker, which forwards it; or to the first process, which started the other."""
    argv = [sys.executable, *launcher, "diffusion", *TINY, "--trainer.max_epochs", "1000", "--out", str(tmp_path)]
    argv += options
    with open(tmp_path / "said.txt", "w") as out:
        limit = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(LIMIT)}  # until torchrun kills its processes; 30 by default
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | limit
        process = subprocess.Popen(argv, cwd=REPO, stdout=out, stderr=out, env=environment)
    try:
        folder = tmp_path / "digits" / "version_0" / "checkpoints"
        for _ in range(LIMIT * 10):
            if list(folder.glob("step*")) or process.poll() is not None:
                break
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
        process.send_signal(signal.SIGTERM)
        ended = process.wait(LIMIT)
        assert ended == code if code else ended != 0  # torchrun has its own exit codes
    finally:
        process.kill()
    said = (tmp_path / "said.txt").read_text()
    assert said.count("stopped at step") == 1 and "Traceback" not in said.partition("stopped at step")[0], said
    assert resume(2, tmp_path, LIMIT)[0] == [0, 0]


@pytest.mark.parametrize("latents", ["fly", "cache"])
def test_all_processes_have_the_codec_of_the_first(latents, tmp_path):
    """It is fitted on all training images, and is that of one process; so are latents that are encoded once."""
    run(2, work.train_latents, tmp_path, str(tmp_path), environment={"LATENTS": latents})
    ends = [torch.load(tmp_path / f"end{rank}.pt") for rank in range(2)]
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())
    codec = PCA(1, 2, 2)
    codec.fit(lambda: iter([Digits(limit=330).arrays("train")[0] / 127.5 - 1]))
    for name, value in codec.state_dict().items():
        torch.testing.assert_close(ends[0][f"codec.{name}"], value, rtol=1e-4, atol=1e-5)
