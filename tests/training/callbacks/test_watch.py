"""The machine during training, under a simulated clock and a simulated NVML."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion.data import Digits
from diffusion.nets import ResidualMLP
from diffusion.pictures import plots
from diffusion.support import gauges, watched
from diffusion.training.callbacks import Watch, watch
from diffusion.training.systems import Diffusion

STEP, BATCH = 2.0, 64  # seconds of the simulated clock, and images
UUID = "1b2c3d4e-0000-1111-2222-333344445555"


class NVML(ModuleType):
    """pynvml with one GPU whose power is `watts(now)` at the time of `clock`.

    Args:
        missing: functions that the GPU does not support.
        absent: functions that this version of the package lacks.
    """

    class NVMLError(Exception):
        pass

    def __init__(self, clock, watts=lambda now: 100.0, missing=(), absent=(), driver=True) -> None:
        super().__init__("pynvml")
        self.clock, self.missing, self.driver = clock, missing, driver
        answers = {
            "Name": lambda: "Simulated",
            "UtilizationRates": lambda: SimpleNamespace(gpu=97, memory=41),
            "MemoryInfo": lambda: SimpleNamespace(used=3 * 2**30, total=8 * 2**30),
            "Temperature": lambda sensor: 60 + sensor,
            "TemperatureV": lambda sensor: 61 + sensor,
            "ClockInfo": lambda kind: {1: 1410, 2: 2619}[kind],
            "CurrentClocksEventReasons": lambda: 0x4 | 0x1 | 0x20,
            "CurrentClocksThrottleReasons": lambda: 0x1,
            "PowerUsage": lambda: int(1e3 * watts(clock.now)),
            "EnforcedPowerLimit": lambda: 700_000,
            "TotalEnergyConsumption": lambda: int(1e3 * clock.joules),
        }
        for name in answers.keys() - set(absent):
            setattr(self, f"nvmlDeviceGet{name}", self.answering(name, answers[name]))

    def answering(self, name, answer):
        def function(handle, *arguments):
            assert handle == "handle"
            if name in self.missing:
                raise self.NVMLError("Not Supported")
            return answer(*arguments)

        return function

    def nvmlInit(self):
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self):
        return 1

    def nvmlDeviceGetHandleByIndex(self, k):
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != f"GPU-{UUID}".encode():
            raise self.NVMLError("Not Found")
        return "handle"


class Clock(pl.Callback):
    """A clock on which a training step takes `STEP` seconds and draws 100 W, and a validation an hour at 500 W."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.joules = 50.0, 1000.0
        self.patched = monkeypatch
        for module in (watch, gauges):
            monkeypatch.setattr(module, "time", SimpleNamespace(
                perf_counter=lambda: self.now, time=lambda: 1e9 + self.now, process_time=lambda: 1.5 * self.now,
            ))  # fmt: skip

    def spend(self, seconds, watts):
        self.now, self.joules = self.now + seconds, self.joules + seconds * watts

    def on_before_optimizer_step(self, *args):
        self.spend(STEP, 100.0)

    def on_validation_batch_start(self, *args):
        self.spend(3600.0, 500.0)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def simulated(monkeypatch, clock, **options):
    """A simulated NVML, of whose GPU the training's device is taken to be."""
    nvml = NVML(clock, **options)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gauges, "board_of", lambda device: next(iter(gauges.boards()), None))
    return nvml


def fit(tmp_path, callbacks, epochs=2, **options):
    torch.manual_seed(0)
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="x", version=0, default_hp_metric=False)
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=callbacks, max_epochs=epochs, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip
    module = Diffusion(ResidualMLP(1, (8, 8), 8, 1), shape=(1, 8, 8))
    trainer.fit(module, Digits(batch_size=BATCH, limit=5 * BATCH))
    return module


RUN = Path("x") / "version_0"


def test_rows_have_the_speed_power_and_energy_of_training_alone(tmp_path, monkeypatch, clock):
    """Five steps of 2 s and 64 images in each of two epochs: 32 images/s, and 100 W / (32 images/s) = 3.125 J."""
    simulated(monkeypatch, clock)
    fit(tmp_path, [Watch(3 * STEP), clock])
    rows = watched.read(tmp_path / RUN / "watch.csv")
    assert [row["step"] for row in rows] == [3, 6, 9, 10]  # whole hours are multiples of 6 s
    assert all(row["images_per_s"] == BATCH / STEP and row["gpu_watts"] == 100.0 for row in rows)
    assert all(row["joules_per_image"] == pytest.approx(100.0 * STEP / BATCH) for row in rows)
    assert rows[0]["time"] == 1e9 + 50 + 3 * STEP and rows[-1]["step"] == 10
    wanted = {
        "gpu_busy_percent": 97, "gpu_memory_busy_percent": 41, "gpu_used_mib": 3072, "gpu_celsius": 60,
        "gpu_sm_mhz": 1410, "gpu_memory_mhz": 2619, "gpu_slowed": "power cap+temperature", "cpu_cores": 1.5,
    }  # fmt: skip
    assert {k: rows[0][k] for k in wanted} == wanted
    events = EventAccumulator(str(tmp_path / RUN)).Reload()
    assert [e.step for e in events.Scalars("watch/joules_per_image")] == [row["step"] for row in rows]
    assert {e.value for e in events.Scalars("watch/gpu_slowed")} == {1.0}


def test_rows_are_written_at_fixed_intervals(tmp_path, clock):
    fit(tmp_path, [Watch(2.5 * STEP), clock], epochs=3, limit_val_batches=0)  # steps end at 2, 4, ..., 30 s
    times = [row["time"] - 1e9 - 50 for row in watched.read(tmp_path / RUN / "watch.csv")]
    assert times == [6, 10, 16, 20, 26, 30]  # the first end of a step at or after 5, 10, 15, ...


def test_energy_without_a_counter_is_the_trapezoid_of_the_power(tmp_path, monkeypatch, clock):
    """Power 10 t from 0 s: a row of 6 s after t seconds has the mean of its ends, 10 (t + 3)."""
    simulated(monkeypatch, clock, watts=lambda now: 10 * (now - 50), missing=("TotalEnergyConsumption",))
    fit(tmp_path, [Watch(3 * STEP), clock], epochs=3, limit_val_batches=0)
    rows = watched.read(tmp_path / RUN / "watch.csv")
    mean = [30.0, 90.0, 150.0, 210.0, 270.0]
    assert [row["gpu_watts"] for row in rows] == pytest.approx(mean)
    assert [row["joules_per_image"] for row in rows] == pytest.approx([w * STEP / BATCH for w in mean], rel=1e-5)


def test_queries_that_fail_leave_out_their_figure_alone(tmp_path, monkeypatch, clock):
    missing = ("PowerUsage", "TotalEnergyConsumption", "ClockInfo", "UtilizationRates")
    simulated(monkeypatch, clock, missing=missing, absent=("CurrentClocksEventReasons", "Temperature"))
    fit(tmp_path, [Watch(3 * STEP), clock], epochs=1)
    row = watched.read(tmp_path / RUN / "watch.csv")[0]
    assert {k for k in row if k.startswith("gpu")} == {"gpu_used_mib", "gpu_celsius", "gpu_slowed"}
    assert row["gpu_slowed"] == "none" and row["gpu_celsius"] == 61 and "joules_per_image" not in row
    header = (tmp_path / RUN / "watch.csv").read_text().splitlines()[0]
    assert "watts" not in header and "joules" not in header


@pytest.mark.parametrize("nvml", ["no package", "no driver"])
def test_without_nvml_there_are_the_figures_of_the_host(nvml, tmp_path, monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "pynvml", None if nvml == "no package" else NVML(clock, driver=False))
    assert gauges.boards() == [] and gauges.board_of(torch.device("cuda", 0)) is None
    fit(tmp_path, [Watch(3 * STEP), clock], epochs=1)
    rows = watched.read(tmp_path / RUN / "watch.csv")
    assert {"time", "step", "images_per_s", "cpu_cores"} <= rows[0].keys() <= {
        "time", "step", "images_per_s", "cpu_cores", "resident_mib", "available_mib", "cpu_mhz"}  # fmt: skip
    assert 100 < rows[0]["resident_mib"] < 100_000


def test_a_gpu_is_found_by_its_uuid(monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "pynvml", NVML(clock))
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: SimpleNamespace(uuid=UUID))
    assert gauges.board_of(device).read()["gpu_sm_mhz"] == 1410
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: SimpleNamespace(uuid="another"))
    assert gauges.board_of(device) is None
    assert gauges.board_of(torch.device("cpu")) is None


def test_a_resumed_run_appends_with_new_columns(tmp_path, monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    fit(tmp_path, [Watch(3 * STEP), clock], epochs=1)
    path = tmp_path / RUN / "watch.csv"
    before = watched.read(path)
    with open(path, "a") as file:
        file.write("1000000061.0,7")  # a line that a kill cut short
    fit(tmp_path, [Watch(3 * STEP), clock], epochs=1)
    between = watched.read(path)
    assert between[: len(before)] == before and len(between) == 2 * len(before)
    simulated(monkeypatch, clock)
    fit(tmp_path, [Watch(3 * STEP), clock], epochs=1)
    rows = watched.read(path)
    assert rows[: len(between)] == between and len(rows) == 3 * len(before)
    assert "gpu_watts" not in rows[0] and rows[-1]["gpu_watts"] == 100
    header = path.read_text().splitlines()[0].split(",")
    assert header == [k for k in (*watched.KEYS, *gauges.FIGURES) if any(k in row for row in rows)]


def test_training_is_the_same_with_and_without_it(tmp_path, monkeypatch, clock):
    simulated(monkeypatch, clock)
    watching, plain = Watch(STEP), Watch(0)
    with_it, without = (fit(tmp_path / name, [w]) for name, w in (("a", watching), ("b", plain)))
    assert all(torch.equal(a, b) for a, b in zip(with_it.parameters(), without.parameters(), strict=True))
    assert not (tmp_path / "b" / RUN / "watch.csv").exists() and plain.said == ""
    assert not watching.state_dict()


def test_the_end_is_drawn_and_said(tmp_path, monkeypatch, clock):
    pytest.importorskip("matplotlib")
    simulated(monkeypatch, clock)
    it = Watch(STEP)
    fit(tmp_path, [it, clock], epochs=1, limit_val_batches=0)
    assert it.said.startswith("machine, on average: 100 W, 3.125 J per image, 97 % busy, 1.5 cores, ")
    assert it.said.endswith("(watch.csv, watch.png)\n") and (tmp_path / RUN / "watch.png").stat().st_size > 10_000
    figure = plots.watched(watched.read(tmp_path / RUN / "watch.csv"))
    (power,) = [axes for axes in figure.axes if axes.get_title() == "GPU power, W"]
    assert power.lines[0].get_ydata().tolist() == 5 * [100.0]
    assert power.lines[0].get_xdata().tolist() == pytest.approx([k * STEP / 60 for k in range(5)])


def test_without_matplotlib_the_end_says_so(tmp_path, monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    it = Watch(STEP)
    fit(tmp_path, [it, clock], epochs=1)
    assert "no plot: matplotlib is missing; run: pip install 'litdiffusion[notebook]'" in it.said


def test_a_file_that_cannot_be_written_ends_the_record_alone(tmp_path, clock):
    (tmp_path / RUN / "watch.csv").mkdir(parents=True)
    it = Watch(STEP)
    with pytest.warns(UserWarning, match="the machine is no longer recorded"):
        fit(tmp_path, [it, clock], epochs=1)
    assert it.said == ""


def test_a_negative_interval_is_refused():
    with pytest.raises(ValueError, match="at least 0 seconds, got -1"):
        Watch(-1)
