"""`diffusion.check`: samplers and schedules against closed-form answers, as tables with verdicts."""

import inspect
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffusion.bench import flow_maps
from diffusion.bench.samplers import Result, check_sampler, settings
from diffusion.bench.schedules import Facts, check_schedule
from diffusion.bench.tables import document, every_row, map_table, schedule_table, section
from diffusion.noise.schedule import Schedule
from diffusion.samplers.base import Sampler
from diffusion.support.files import atomic
from diffusion.support.specs import concrete, gather, named


@dataclass(frozen=True, repr=False)
class Report:
    """The measurements; `print(report)` shows the tables and the verdict of `diffusion check`.

    Attributes:
        facts: of every schedule.
        maps: of flow maps on every schedule without a problem.
        results: of every sampler in every setting, on every schedule without a problem.
        seconds: duration of the measurement.
    """

    facts: tuple[Facts, ...]
    maps: tuple[flow_maps.Facts, ...]
    results: tuple[Result, ...]
    seconds: float

    @property
    def failures(self) -> list[Facts | flow_maps.Facts | Result]:
        """The rows with a problem."""
        return [row for row in (*self.facts, *self.maps, *self.results) if row.problem]

    def __str__(self) -> str:
        bad = len(self.failures)
        verdict = f"{bad} FAIL" if bad else "all as they should be"
        parts = {"Schedules": schedule_table(self.facts), "Samplers": every_row(self.results)}
        parts["Flow maps"] = map_table(self.maps)
        lines = [section(title, text) for title, text in parts.items()]
        if any(fact.problem for fact in self.facts):
            lines.append("samplers are not walked on a schedule that fails")
        return "\n".join([*lines, f"{len(self.facts)} schedules, {len(self.results)} walks: {verdict}"])

    __repr__ = __str__

    def save(self, file: Path, command: str) -> None:
        """Write all tables as a Markdown page, with the command that generates it."""
        machine = f"{os.cpu_count()} CPU cores, Python {platform.python_version().rpartition('.')[0]}"
        machine += f", torch {'.'.join(torch.__version__.split('.')[:2])}, {self.seconds:.0f} s"
        with atomic(file) as temporary:
            temporary.write_text(document(self.facts, self.maps, self.results, command, machine))


def check(
    sampler: str | type[Sampler] | Sequence[str | type[Sampler]] | None = None,
    schedule: str | type[Schedule] | Sequence[str | type[Schedule]] | None = None,
) -> Report:
    """Measure samplers and schedules against closed-form answers, as printed by `diffusion check`.

    Args:
        sampler: short names, import paths or classes, one or several, each constructed without arguments; by default
            all of this package.
        schedule: the same for schedules.
    Raises:
        ValueError: a class does not exist, or requires arguments.
    """
    samplers = classes(sampler, Sampler, "diffusion.samplers")
    kinds = classes(schedule, Schedule, "diffusion.noise")
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schedules with remaining signal warn; the tables show the figure
        schedules = [kind() for kind in kinds]
    facts, maps, results = (tuple(rows) for rows in measure(samplers, schedules))
    return Report(facts, maps, results, time.perf_counter() - started)


def classes(names: str | type | Sequence[str | type] | None, base: type, package: str) -> list[type]:
    """The named classes, or all of a package.

    Raises:
        ValueError: a class does not exist, or cannot be constructed without arguments.
    """
    if names is None:
        gather(package)
        kinds = sorted(concrete(base, package), key=lambda k: k.__name__)
    else:
        names = [names] if isinstance(names, (str, type)) else names
        kinds = [named(name, base, package) if isinstance(name, str) else name for name in names]
    for kind in kinds:
        if required := required_arguments(kind):
            raise ValueError(
                f"{kind.__module__}.{kind.__qualname__} requires {', '.join(required)}, but check constructs it "
                "without arguments; give them defaults, or check a subclass that sets them"
            )
    return kinds


def required_arguments(kind: type) -> list[str]:
    """The arguments of a class's constructor that have no default."""
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(kind).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in various]


def measure(
    samplers: list[type[Sampler]], schedules: list[Schedule]
) -> tuple[list[Facts], list[flow_maps.Facts], list[Result]]:
    """The facts of all schedules, and on sound ones those of flow maps and the results of all samplers and settings.

    torch's global random state is seeded, for classes that draw their own noise (a fault that their row reports), and
    restored.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        facts = [check_schedule(schedule) for schedule in schedules]
        sound = [schedule for schedule, fact in zip(schedules, facts, strict=True) if not fact.problem]
        todo = [(kind, options, s) for kind in samplers for options in settings(kind) for s in sound]
        every = 0.2 if sys.stderr.isatty() else 15  # seconds between two updates
        maps = [flow_maps.check_flow_maps(schedule) for schedule in sound]
        return facts, maps, [check_sampler(*one) for one in tqdm(todo, desc="walks", unit="walk", mininterval=every)]
