"""`diffusion check`: does every sampler have its order, and is every schedule what it says? Yours too."""

import inspect
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffusion.bench import Facts, Result, check_sampler, check_schedule, settings
from diffusion.bench.tables import document, every_row, schedule_table, section
from diffusion.noise import Schedule
from diffusion.options.parser import Parser
from diffusion.samplers import Sampler
from diffusion.support.files import atomic, check_writable
from diffusion.support.specs import concrete, gather, named


def main(argv: list[str]) -> int:
    parser = Parser("check", "Measure samplers and schedules against answers in closed form; exit code 1 if one fails.")
    parser.epilog = "An import path names a class of your own: --sampler my_module.MySampler, made without arguments."
    add = parser.add_argument
    add("--sampler", nargs="+", metavar="NAME", help="short names or import paths (default: all)")
    add("--schedule", nargs="+", metavar="NAME", help="short names or import paths (default: all)")
    add("--out", type=Path, help="write the tables to this .md file")
    args = parser.read(argv)
    samplers = chosen(args.sampler, Sampler, "diffusion.samplers")
    kinds = chosen(args.schedule, Schedule, "diffusion.noise")
    if args.out and args.out.suffix != ".md":
        raise ValueError(f"--out {args.out}: wanted a .md")
    if args.out:
        check_writable(args.out)
    started = time.perf_counter()
    facts, results = measure(samplers, [kind() for kind in kinds])
    print(section("Schedules", schedule_table(facts)), section("Samplers", every_row(results)), sep="\n")
    if args.out:
        machine = f"{os.cpu_count()} CPU cores, Python {platform.python_version().rpartition('.')[0]}"
        machine += f", torch {'.'.join(torch.__version__.split('.')[:2])}, {time.perf_counter() - started:.0f} s"
        with atomic(args.out) as temporary:
            temporary.write_text(document(facts, results, f"diffusion check {shlex.join(argv)}", machine))
    bad = [row for row in (*facts, *results) if row.problem]
    if any(fact.problem for fact in facts):
        print("samplers are not walked on a schedule that fails")
    print(f"{len(facts)} schedules, {len(results)} walks: " + (f"{len(bad)} FAIL" if bad else "all as they should be"))
    return 1 if bad else 0


def chosen(names: list[str] | None, base: type, package: str) -> list[type]:
    """The classes asked for, or all of a package.

    Raises:
        ValueError: one is not there, or cannot be made without arguments.
    """
    gather(package)
    ours = sorted(concrete(base, package), key=lambda k: k.__name__)
    kinds = ours if names is None else [named(name, base, package) for name in names]
    for kind in kinds:
        parameters = inspect.signature(kind).parameters.values()
        required = [
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if required:
            raise ValueError(
                f"{kind.__module__}.{kind.__qualname__} requires {', '.join(required)}, and check makes it without "
                "arguments; give them defaults, or check a subclass that sets them"
            )
    return kinds


def measure(samplers: list[type], schedules: list[Schedule]) -> tuple[list[Facts], list[Result]]:
    """All schedules, and all samplers with their settings on those that are sound."""
    torch.manual_seed(0)  # for a class that draws noise of its own, which its row then says
    facts = [check_schedule(schedule) for schedule in schedules]
    sound = [schedule for schedule, fact in zip(schedules, facts, strict=True) if not fact.problem]
    todo = [(kind, options, s) for kind in samplers for options in settings(kind) for s in sound]
    every = 0.2 if sys.stderr.isatty() else 15  # seconds: a log is no place for a moving bar
    return facts, [check_sampler(*one) for one in tqdm(todo, desc="walks", unit="walk", mininterval=every)]
