"""What a machine does while it trains: figures of a GPU, of torch's memory on it, of this process and of its host.

A figure that cannot be read is absent. No function here waits for the GPU: NVML asks the driver, and torch's figures
are those of its allocator on the host.
"""

import os
import time
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

MIB = 2**20
FIGURES = {  # name of a figure, which is a column of watch.csv: what it is, and its unit
    "images_per_s": ("images per second", ""),
    "joules_per_image": ("energy of the GPU per image", "J"),
    "gpu_watts": ("GPU power", "W"),
    "gpu_busy_percent": ("GPU busy", "%"),
    "gpu_memory_busy_percent": ("GPU memory busy", "%"),
    "gpu_used_mib": ("GPU memory in use", "MiB"),
    "gpu_reserved_mib": ("GPU memory reserved by torch", "MiB"),
    "gpu_allocated_mib": ("GPU memory of tensors", "MiB"),
    "gpu_peak_mib": ("largest GPU memory of tensors", "MiB"),
    "gpu_celsius": ("GPU temperature", "C"),
    "gpu_sm_mhz": ("GPU clock", "MHz"),
    "gpu_memory_mhz": ("GPU memory clock", "MHz"),
    "gpu_slowed": ("GPU slowed by", ""),
    "cpu_cores": ("cores used by this process", ""),
    "resident_mib": ("memory of this process", "MiB"),
    "available_mib": ("memory available", "MiB"),
    "cpu_mhz": ("processor clock", "MHz"),
}
NOT_SLOWED = "none"
REASONS = {  # bits of NVML's clock event reasons that slow a GPU which has work
    0x4: "power cap",
    0x8: "hardware",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
Figures = dict[str, float | str]


class Board:
    """One GPU as NVML sees it.

    Args:
        nvml: the initialised module pynvml.
        handle: of the GPU.
    """

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle
        self._last: tuple[float, float] | None = None  # (time, watts) of the last reading without a counter
        self._joules = 0.0

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer of a function of NVML; None if this GPU, driver or package has none."""
        try:
            return getattr(self.nvml, function)(self.handle, *arguments)
        except (self.nvml.NVMLError, AttributeError):
            return None

    @property
    def name(self) -> str:
        """The product's name."""
        return str(self.ask("nvmlDeviceGetName") or "GPU")

    @property
    def watts(self) -> float | None:
        """The present power."""
        milliwatts = self.ask("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1e3

    def limits(self) -> dict[str, float]:
        """What the figures are compared with: gpu_watts and gpu_used_mib at most."""
        found = {"gpu_watts": self.ask("nvmlDeviceGetEnforcedPowerLimit")}
        found["gpu_used_mib"] = getattr(self.ask("nvmlDeviceGetMemoryInfo"), "total", None)
        return {k: v / (1e3 if k == "gpu_watts" else MIB) for k, v in found.items() if v is not None}

    def joules(self, now: float) -> float | None:
        """Energy since an unknown time: NVML's counter, or else the trapezoids between the calls of this method.

        Args:
            now: time in seconds.
        """
        counted = self.ask("nvmlDeviceGetTotalEnergyConsumption")
        if counted is not None:
            return counted / 1e3
        if (watts := self.watts) is None:
            return None
        then, before = self._last or (now, watts)
        self._joules += (now - then) * (before + watts) / 2
        self._last = now, watts
        return self._joules

    def read(self) -> Figures:
        """The figures of this moment."""
        busy, memory = self.ask("nvmlDeviceGetUtilizationRates"), self.ask("nvmlDeviceGetMemoryInfo")
        found: dict[str, Any] = {"gpu_watts": self.watts}
        found["gpu_busy_percent"], found["gpu_memory_busy_percent"] = (
            getattr(busy, part, None) for part in ("gpu", "memory")
        )
        found["gpu_used_mib"] = None if memory is None else memory.used / MIB
        celsius = self.ask("nvmlDeviceGetTemperature", 0)  # of the chip
        found["gpu_celsius"] = self.ask("nvmlDeviceGetTemperatureV", 0) if celsius is None else celsius
        found["gpu_sm_mhz"], found["gpu_memory_mhz"] = (self.ask("nvmlDeviceGetClockInfo", kind) for kind in (1, 2))
        bits = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # the name before driver 535
            bits = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if bits is not None:
            found["gpu_slowed"] = "+".join(text for bit, text in REASONS.items() if bits & bit) or NOT_SLOWED
        return {k: v if isinstance(v, str) else float(v) for k, v in found.items() if v is not None}


def library() -> ModuleType | None:
    """pynvml (the extra `gpu`), initialised; None without the package or a driver."""
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return None
    except Exception as error:  # its own NVMLError
        if not isinstance(error, nvml.NVMLError):
            raise
        return None
    return nvml


def boards() -> list[Board]:
    """All GPUs of this machine that NVML knows, in its order."""
    nvml, found = library(), []
    if nvml is not None:
        with suppress(nvml.NVMLError):
            for k in range(nvml.nvmlDeviceGetCount()):
                found.append(Board(nvml, nvml.nvmlDeviceGetHandleByIndex(k)))
    return found


def board_of(device: torch.device) -> Board | None:
    """The GPU that torch calls `device`; None if it is unknown to NVML.

    It is found by its UUID, since CUDA_VISIBLE_DEVICES renumbers torch's GPUs and not NVML's.
    """
    nvml = library() if device.type == "cuda" else None
    if nvml is None:
        return None
    try:
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return Board(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
    except (nvml.NVMLError, AttributeError, AssertionError, RuntimeError):  # of an instance, of torch without a driver
        return None


def allocated(device: torch.device) -> Figures:
    """What torch's allocator holds on a GPU; nothing for other devices."""
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return {}
    held = torch.cuda.memory_stats(device)
    kinds = {"gpu_allocated_mib": "allocated_bytes.all.current", "gpu_peak_mib": "allocated_bytes.all.peak",
             "gpu_reserved_mib": "reserved_bytes.all.current"}  # fmt: skip
    return {name: held[key] / MIB for name, key in kinds.items() if key in held}


class Host:
    """This process, and the machine it runs on. Without psutil only the cores that this process uses are known."""

    def __init__(self) -> None:
        try:
            self.psutil: ModuleType | None = import_module("psutil")
        except ImportError:  # a source tree on a machine where nothing was installed
            self.psutil = None
        self._last = (time.perf_counter(), time.process_time())

    def read(self) -> Figures:
        """The figures of this moment; the cores are the mean since the last call."""
        now, found = (time.perf_counter(), time.process_time()), {}
        if now[0] > self._last[0]:
            found["cpu_cores"] = (now[1] - self._last[1]) / (now[0] - self._last[0])
        self._last = now
        if self.psutil is not None:
            with suppress(self.psutil.Error, OSError):
                found["resident_mib"] = self.psutil.Process(os.getpid()).memory_info().rss / MIB
            found |= memory(self.psutil)
        return found


def memory(psutil: ModuleType) -> Figures:
    """Available memory and the clock of this machine's processors."""
    found: Figures = {}
    with suppress(psutil.Error, OSError):
        found["available_mib"] = psutil.virtual_memory().available / MIB
    with suppress(psutil.Error, OSError, AttributeError, NotImplementedError):  # many virtual machines have no clock
        clock = psutil.cpu_freq()
        if clock is not None and clock.current:
            found["cpu_mhz"] = clock.current
    return found
