"""The request for an evaluation as a frozen value: runs, sampling settings, samples and metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from diffusion.generation.choices import Choices
from diffusion.generation.engine import Engine
from diffusion.judging import sweep
from diffusion.metrics.base import Metric, metric

METRICS = "frechet,kid,pr,dc,is,consistency,diversity,memory"
SWEEP_METRICS = "frechet,consistency"
UNLABELLED = "frechet,kid,pr,dc,swd,spectrum,diversity,memory"  # of data without classes
SWEEP_UNLABELLED = "frechet,swd"


@dataclass(frozen=True)
class Request:
    """Samples of one or several runs, to be measured.

    Attributes:
        runs: run directories, experiment folders (their newest run), or checkpoint files.
        n: samples per run and setting, >= 2.
        metrics: names, comma-separated or as a sequence; None is METRICS, in a sweep SWEEP_METRICS, and their
            counterparts for data without classes.
        sweep: settings to compare, see `sweep.parse`; None for a single setting.
        choices: how the samples are generated; overridden by each setting of the sweep.
        seed: sample k is a function of (seed, k) and its condition alone.
        weights: averaged or raw.
        features: "auto" (the data set's own extractor), a run or checkpoint of one, or "Inception:FILE".
        keep: keep the samples beside the figures, as .npz.
        again: repeat measurements that are already recorded.
        batch_size: samples per batch, >= 1; it does not change them.
        device, precision, compile, engine, threads: see `Pipeline.load`.
        data: overrides of the data set's arguments.
        then: super-resolution models that enlarge the samples one after the other, see `generation.cascade`; the
            samples are compared with the data of the last one.
        bound: steps of the variational bound that the metric nll is measured by; None is T, or 1000.
    Raises:
        ValueError: no runs, a number out of range, an unknown metric, or settings that cannot be parsed.
    """

    runs: tuple[str | Path, ...]
    n: int = 5000
    metrics: str | Sequence[str] | None = None
    sweep: str | Sequence[Mapping[str, Any]] | None = None
    choices: Choices = Choices()
    seed: int = 1
    weights: Literal["ema", "raw"] = "ema"
    features: str = "auto"
    keep: bool = False
    again: bool = False
    batch_size: int = 500
    device: str = "auto"
    precision: Literal["32", "bf16"] = "32"
    compile: str = ""
    engine: Engine = "torch"
    threads: int | str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    bound: int | None = None
    then: tuple[str | Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("a run is missing: give a run directory, an experiment folder, or a checkpoint file")
        if self.n < 2 or self.batch_size < 1:
            raise ValueError(f"n must be at least 2 and batch_size 1, got {self.n} and {self.batch_size}")
        self.chosen_metrics()  # these two validate the arguments
        self.settings()

    @classmethod
    def of(
        cls, runs: str | Path | Sequence[str | Path], arguments: Mapping[str, Any] | None = None, **words: Any
    ) -> "Request":
        """A request from flat keywords: its own fields and those of `Choices`.

        Args:
            arguments: further arguments of the sampler and the guidance.
        """
        runs = (runs,) if isinstance(runs, (str, Path)) else tuple(runs)
        chosen = {f.name: words.pop(f.name) for f in fields(Choices) if f.name in words}
        return cls(runs, choices=Choices(**chosen, arguments=dict(arguments or {})), **words)

    def chosen_metrics(self, labelled: bool = True) -> list[Metric]:
        """The requested metrics, or the default ones for data with or without classes."""
        default = (METRICS, SWEEP_METRICS) if labelled else (UNLABELLED, SWEEP_UNLABELLED)
        names = self.metrics or default[bool(self.sweep)]
        return [metric(name.strip()) for name in (names.split(",") if isinstance(names, str) else names)]

    def settings(self) -> list[dict[str, Any]]:
        """The settings of the sweep as given; one empty setting without a sweep."""
        if self.sweep is None:
            return [{}]
        return sweep.parse(self.sweep) if isinstance(self.sweep, str) else [dict(setting) for setting in self.sweep]

    def choices_of(self, setting: Mapping[str, Any]) -> Choices:
        """The sampling choices of a setting."""
        return sweep.changed(self.choices, setting)
