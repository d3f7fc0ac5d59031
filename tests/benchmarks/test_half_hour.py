"""The plan of a rented half hour, under a simulated clock, and what is brought home from it."""

import io
import json
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import diffusion
from benchmarks import gpu_half_hour
from benchmarks.half_hour import configs, pack, plan
from benchmarks.half_hour.plan import Ended, Processes, Step, carry_out
from benchmarks.half_hour.steps import FULL, SMOKE, steps
from diffusion.pictures.grid import save_png
from diffusion.support import runs
from diffusion.support.paths import PACKAGE


def step(name, limit=100.0, **more):
    return Step(name, "why", ("-c", "pass"), limit, **more)


class Clock:
    """A clock, and steps that take a given time of it."""

    def __init__(self, **seconds):
        self.now, self.seconds, self.ran = 0.0, seconds, []

    def __call__(self):
        return self.now

    def call(self, one, limit):
        self.ran.append((one.name, limit))
        spent = self.seconds.get(one.name, limit)
        self.now += min(spent, limit)
        return Ended(None if spent > limit else int("bad" in one.name), f"{'x' * 5000} the end of {one.name}")


def states(records):
    return {r["name"]: r["state"] for r in records}


def test_a_step_starts_if_its_limit_fits_and_the_rest_is_kept():
    clock = Clock(a=30, b=100, c=20)
    chosen = [step("a"), step("b"), step("c", 50), step("rest", 0, least=60)]
    found = list(carry_out(chosen, 210, clock.call, clock=clock))
    # a: 100 of 210 - 60. b: 100 of 180 - 60. c: 50 of 80 - 60. rest: 80.
    assert clock.ran == [("a", 100), ("b", 100), ("rest", 80)]
    assert states(found) == {"a": "done", "b": "done", "c": "skipped", "rest": "done"}
    assert found[2]["reason"] == "needs 50 s, and 20 s are left besides 60 s for later steps"
    assert [r["seconds"] for r in found if "seconds" in r] == [30, 100, 80]


def test_a_step_that_fails_or_hangs_is_recorded_and_the_next_goes_on():
    clock = Clock(bad=10, hangs=500, good=10)
    found = list(carry_out([step("bad"), step("hangs"), step("good")], 1000, clock.call, clock=clock))
    assert states(found) == {"bad": "failed", "hangs": "timed out", "good": "done"}
    assert found[0]["code"] == 1 and found[0]["tail"].endswith("the end of bad") and len(found[0]["tail"]) == plan.TAIL
    assert found[1]["seconds"] == 100 and found[1]["code"] is None and "tail" not in found[2]


def test_an_error_of_the_planner_itself_is_a_failed_step():
    def call(one, limit):
        raise OSError("no more processes")

    (found,) = carry_out([step("a")], 1000, call, clock=Clock())
    assert found["state"] == "failed" and found["tail"] == "OSError: no more processes"


def test_what_lacks_a_package_or_data_is_skipped_and_keeps_no_time(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path))
    clock = Clock()
    chosen = [step("a"), step("b", needs=("torch", "no_such_package")), step("c", 0, least=500, data=("x/*.bin",))]
    found = list(carry_out(chosen, 120, clock.call, gpu_half_hour.lacking, clock))
    assert states(found) == {"a": "done", "b": "skipped", "c": "skipped"}
    assert found[1]["reason"] == "not installed: no_such_package"
    assert found[2]["reason"] == f"no x/*.bin in {tmp_path}"
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.bin").touch()
    assert gpu_half_hour.lacking(chosen[2]) == ""


def test_the_limits_fit_into_28_minutes():
    least = sum(s.limit or s.least for s in FULL)
    assert least + gpu_half_hour.RESERVE <= 28 * 60
    assert SMOKE.keys() == {s.name for s in FULL}
    with pytest.raises(ValueError, match="no step 'mnits'; there are: configs, tests"):
        steps(only=("mnits",))
    assert steps(only=("cifar",), init=True)[0].argv[-2:] == ("--init", "{init}")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_step_is_killed_with_its_children(tmp_path):
    child = "import time; time.sleep(600)"
    start = f"subprocess.Popen([sys.executable, '-c', '{child}'])"
    code = f"import subprocess, sys, time; print({start}.pid, flush=True); time.sleep(600)"
    one = Step("a", "", ("-c", code), 3)
    ended = Processes(sys.executable, tmp_path, {})(one, 3)
    assert ended.code is None
    pid = int(ended.tail)
    for _ in range(200):
        if not alive(pid):
            break
        time.sleep(0.05)
    assert not alive(pid)


def test_a_process_gets_its_words_and_a_folder_for_its_results(tmp_path):
    code = "import os, sys; print(os.environ['BENCHMARK_RESULTS'], *sys.argv[1:])"
    processes = Processes(sys.executable, tmp_path, {"width": "96"})
    ended = processes(Step("a", "", ("-c", code, "{work}", "{seconds}", "{width}"), 60), 60)
    assert ended == Ended(0, f"{tmp_path / 'a'} {tmp_path / 'a'} 60 96\n")
    processes.kill(over=True)
    assert processes(Step("b", "", ("-c", "print(1)"), 60), 60).code is None and not (tmp_path / "b.log").read_text()


# --- what is brought home -----------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path):
    """Logs, results, a run and the weights of three steps."""
    work = tmp_path / "work"
    run = work / "cifar" / "runs" / "cifar10_best" / "version_0"
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "watch.csv").write_text("time,step\n1,2\n")
    save_png(torch.zeros(1, 8, 8, 1, dtype=torch.uint8).numpy()[0], run / "samples" / "step00000002.png")
    (run / "samples" / "denoising.gif").write_bytes(bytes(range(256)) * 200)
    (work / "overhead").mkdir()
    (work / "overhead" / "overhead-gpu.json").write_text('{"speed": 0.97}')
    (work / "overhead.log").write_text("well done\n")
    (work / "cifar" / "weights").mkdir()
    (work / "cifar" / "weights" / "cifar10.safetensors").write_bytes(bytes(range(250)) * 400)
    (work / "cifar" / "weights" / "cifar10.json").write_text("{}")
    return work


def names(path):
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_everything_fits_into_8_files(work, tmp_path):
    out = tmp_path / "out"
    found = pack.pack(out, work, {"steps": []}, size=2**17)
    sizes = {p.name: p.stat().st_size for p in out.iterdir()}
    assert sizes.keys() == {"results.json", "logs.tar.gz", "trainings.tar", "weights.tar.0"} and found["left_out"] == []
    assert max(sizes.values()) <= 2**17
    assert json.loads((out / "results.json").read_text())["written"] == {"overhead/overhead-gpu.json": {"speed": 0.97}}
    kept = {Path(name).name for name in names(out / "trainings.tar")}
    assert kept == {"config.yaml", "watch.csv", "step00000002.png", "denoising.gif"}
    assert names(out / "logs.tar.gz") == ["overhead.log"]


def test_weights_are_split_and_joined(work, tmp_path):
    out = tmp_path / "out"
    pack.pack(out, work, {"steps": []}, size=24_000)  # of 112,640 bytes
    assert sorted(p.name for p in out.glob("weights*")) == [f"weights.tar.{k}" for k in range(5)]
    assert len(list(out.iterdir())) == pack.FILES and max(p.stat().st_size for p in out.iterdir()) <= 24_000
    made = pack.joined(out, tmp_path / "joined")
    assert made.read_bytes() == bytes(range(250)) * 400 and made.with_suffix(".json").read_text() == "{}"
    assert pack.joined(made, tmp_path / "other") == made
    (out / "weights.tar.2").unlink()
    with pytest.raises(ValueError, match="is damaged, or a part of it is missing"):
        pack.joined(out, tmp_path / "again")
    with pytest.raises(FileNotFoundError, match="nor a folder with weights.tar.0"):
        pack.joined(tmp_path, tmp_path / "again")


def test_what_does_not_fit_is_left_out_and_named(work, tmp_path):
    out = tmp_path / "out"
    for k in range(9):
        (work / f"step{k}.log").write_bytes(bytes(torch.randint(0, 256, (4000,)).tolist()))
    found = pack.pack(out, work, {"steps": []}, size=20_000)
    assert max(p.stat().st_size for p in out.iterdir()) <= 20_000 and len(list(out.iterdir())) == 3
    left = "\n".join(found["left_out"])
    assert "denoising.gif: 51,200 bytes do not fit into trainings.tar" in left
    assert "weights: 112,640 bytes, but 5 files of 20,000 are left; train a narrower network" in left
    assert "step0.log: all but its last 2,048 bytes" in left
    assert "step00000002.png" in {Path(name).name for name in names(out / "trainings.tar")}


def test_results_are_written_after_every_step(tmp_path):
    clock, seen = Clock(a=10, b=10), []

    def call(one, limit):
        seen.append([r["name"] for r in json.loads((tmp_path / "out" / "results.json").read_text())["steps"]])
        return clock.call(one, limit)

    chosen = [step("a"), step("b"), step("late", 100)]
    found = gpu_half_hour.half_hour(chosen, 235, tmp_path / "out", tmp_path / "work", call, 0.0, clock)
    assert seen == [[], ["a"], ["a", "b"]] and states(found["steps"]) == {"a": "done", "b": "done", "late": "done"}
    found = gpu_half_hour.half_hour(chosen, 119, tmp_path / "out", tmp_path / "work", clock.call, clock.now, clock)
    assert states(found["steps"]) == dict.fromkeys(["a", "b", "late"], "skipped")  # 20 s of 119 are for packing


def test_16_bit_weights_come_home_and_begin_the_next_training(tmp_path):
    """What is exported, packed, joined and given to --init are the averaged weights, rounded once."""
    work = tmp_path / "work"
    (work / "cifar" / "weights").mkdir(parents=True)
    diffusion.export("zoo:digits", work / "cifar" / "weights" / "cifar10.safetensors", precision="fp16")
    pack.pack(tmp_path / "out", work, {"steps": []})
    read = runs.read_checkpoint(pack.joined(tmp_path / "out", tmp_path / "joined"))["state_dict"]
    whole = runs.read_checkpoint(runs.find_checkpoint("zoo:digits"))["state_dict"]
    assert read.keys() == whole.keys()
    assert all(torch.equal(read[k], v.half()) for k, v in whole.items() if v.is_floating_point())


def test_only_the_last_step_of_a_configuration_is_strict(monkeypatch):
    modes = []
    cuda = SimpleNamespace(
        is_available=lambda: True, synchronize=lambda: modes.append("wait"), set_sync_debug_mode=modes.append
    )
    monkeypatch.setattr(configs, "torch", SimpleNamespace(cuda=cuda))
    for k in range(configs.STEPS):
        configs.Strict().on_train_batch_start(SimpleNamespace(global_step=k))
        configs.Loose().on_train_batch_end()
    assert modes == ["default", "default", "wait", "error", "default"]


@pytest.mark.slow
def test_a_step_that_waits_is_told_from_one_that_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(PACKAGE.parent)
    config = PACKAGE.parent / "configs" / "digits.yaml"
    assert configs.one(config, str(tmp_path)) == {"state": "done"}

    def waits(self, trainer, *args):
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(configs.Strict, "on_train_batch_start", waits)
    assert configs.one(config, str(tmp_path))["state"] == "waits"
    monkeypatch.setattr(configs.Strict, "on_train_batch_start", lambda self: None)
    assert configs.one(config, str(tmp_path))["state"] == "failed"


@pytest.mark.slow
def test_the_smoke_run_of_some_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(PACKAGE.parent)
    monkeypatch.setattr("sys.argv", ["x", "--smoke", "--out", str(tmp_path), "--only", "overhead", "flops", "cifar"])
    gpu_half_hour.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert states(results["steps"]) == {"overhead": "done", "flops": "done", "cifar": "done"}
    assert results["written"]["cifar/cifar-cpu.json"]["steps"] > 0
    made = pack.joined(tmp_path, tmp_path / "joined")
    assert diffusion.Pipeline.load(made).sample(2).shape == (2, 1, 8, 8)
    kept = {Path(name).name for name in names(tmp_path / "trainings.tar")}
    assert {"denoising.gif", "watch.csv", "config.yaml"} <= kept
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "logs.tar.gz").read_bytes())) as archive:
        assert "of the bare loop's images/s" in archive.extractfile("overhead.log").read().decode()
