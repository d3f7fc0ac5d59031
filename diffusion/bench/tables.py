"""The bench's results as Markdown tables that are aligned in plain text too."""

import statistics
from collections.abc import Callable, Sequence
from itertools import groupby

from diffusion.bench import flow_maps
from diffusion.bench.samplers import STEPS, Result
from diffusion.bench.schedules import Facts

AT = " / ".join(map(str, STEPS))
MIDDLE = len(STEPS) // 2


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def section(title: str, text: str) -> str:
    """A section of the report."""
    return f"## {title}\n\n{text}\n"


def flow(text: str) -> str:
    """Text on one line."""
    return " ".join(text.split())


def verdict(problem: str) -> str:
    """The last column of a row: ok, or what is wrong."""
    return f"FAIL: {problem}" if problem else "ok"


def percent(values: Sequence[float]) -> str:
    """Fractions as percentages, separated by slashes."""
    return " / ".join(map(one, values))


def one(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{round(100 * value, 1) + 0.0:.1f}"  # + 0.0: no -0.0


def schedule_table(facts: list[Facts]) -> str:
    """A row per schedule: its ends, and the errors of its inverse, its SDE and its targets."""
    head = ["schedule", "log-SNR at t = 1", "at t_min", "time(log_snr)", "f", "g^2", "targets", "prior_std", "verdict"]
    return table(head, [
        [f.schedule, f"{f.noisy:.1f}", f"{f.clean:.1f}", *(f"{v:.0e}" for v in (f.time, f.f, f.g2, f.targets)),
         f"{f.prior:+.2%}", verdict(f.problem)]
        for f in facts
    ])  # fmt: skip


def map_table(facts: Sequence[flow_maps.Facts]) -> str:
    """A row per schedule: the errors of its flow map, exact, as a target and in chains."""
    levels = " / ".join(map(str, flow_maps.CHAIN))
    head = ["schedule", "exact map", "target", f"chain of {levels} levels", "from the cosines", "r = s", "verdict"]
    return table(head, [
        [f.schedule, f"{f.oracle:.0e}", f"{f.target:.0e}", " / ".join(f"{c:.4f}" for c in f.chains), f"{f.bias:.0e}",
         "Objective" if f.same else "differs", verdict(f.problem)]
        for f in facts
    ])  # fmt: skip


def every_row(results: list[Result]) -> str:
    """A row per sampler and schedule: the order and the errors."""
    head = ["sampler", "schedule", "expected", "measured", f"% of the data's std at {AT} steps", "verdict"]
    rows = []
    for r in results:
        errors = f"mean {percent(r.means)}, std {percent(r.stds)}" if r.random else f"error {percent(r.errors)}"
        measured = "" if r.order is None else f"{'weak ' if r.random else ''}{r.order:.2f}"
        rows.append([r.sampler, r.schedule, str(r.expected or ""), measured, errors, verdict(r.problem)])
    return table(head, rows)


def by_sampler(results: list[Result]) -> str:
    """One row per sampler: the range of its orders, the median error over the schedules, and the largest excess."""
    rows = []
    for name, group in groupby(results, lambda r: r.sampler):
        rs = [r for r in group if r.errors]
        if not rs:
            continue
        orders = [r.order for r in rs if r.order is not None]
        span = f"{min(orders):.2f} .. {max(orders):.2f}" if orders else ""
        parts = [[r.means for r in rs], [r.stds for r in rs]] if rs[0].random else [[r.errors for r in rs]]
        worst = max(rs, key=lambda r: r.excess[-1])
        good = sum(not r.problem for r in rs)
        rows.append([
            name, *([] if rs[0].random else [str(rs[0].expected or "")]), span,
            *(percent([statistics.median(column) for column in zip(*part, strict=True)]) for part in parts),
            f"{one(worst.excess[-1])} ({worst.schedule})", f"{good} of {len(rs)} ok",
        ])  # fmt: skip
    random = any(r.random for r in results)
    figures = [f"bias of mean, % at {AT}", f"bias of std, % at {AT}"] if random else [f"error, % at {AT}"]
    orders = ["weak order"] if random else ["expected", "order"]
    return table(["sampler", *orders, *figures, f"beyond, at {STEPS[-1]}", "verdict"], rows)


def matrix(results: list[Result], figure: Callable[[Result], float], last: float) -> str:
    """One row per sampler, one column per schedule; the first row is the share of the last step alone, times `last`."""
    schedules = list(dict.fromkeys(r.schedule for r in results))
    rows = []
    for name, group in groupby(results, lambda r: r.sampler):
        at = {r.schedule: one(figure(r)) for r in group if r.errors}
        rows.append([name, *(at.get(s, "") for s in schedules)])
    first = {r.schedule: one(last * r.last[MIDDLE]) for r in reversed(results) if r.errors}
    return table(["sampler", *schedules], [["(the last step alone)", *(first.get(s, "") for s in schedules)], *rows])


def document(
    facts: Sequence[Facts], maps: Sequence[flow_maps.Facts], results: Sequence[Result], command: str, machine: str
) -> str:
    """The Markdown page of all tables."""
    fixed, drawn = ([r for r in results if r.random == kind] for kind in (False, True))
    tables = [("Schedules", SCHEDULES, schedule_table(facts))]
    if fixed:
        detail = matrix(fixed, lambda r: r.errors[MIDDLE], 1)
        tables += [
            ("Deterministic samplers", FIXED, by_sampler(fixed)),
            (f"Error at {STEPS[MIDDLE]} steps, %", "", detail),
        ]
    if drawn:
        detail = matrix(drawn, lambda r: r.stds[MIDDLE], -1)
        tables += [("Random walks", DRAWN, by_sampler(drawn)), (f"Bias of std at {STEPS[MIDDLE]} steps, %", "", detail)]
    tables.append(("Flow maps", MAPS, map_table(maps)))
    failures = [f"- {r.sampler} on {r.schedule}: {r.problem}" for r in results if r.problem]
    if failures:
        tables.append(("Failures", "", "\n".join(failures)))
    page = [f"# Closed-form answers\n\n{flow(INTRO)}\n\n`{command}` ({machine})\n"]
    return "\n".join([*page, *(section(title, f"{flow(text)}\n\n{body}".strip()) for title, text, body in tables)])


INTRO = """
Errors of samplers and schedules on data whose ideal denoiser is known (`diffusion/bench/analytic.py`), without a
network or Monte Carlo estimates: every figure is exact up to rounding. The same command measures your own classes:
`diffusion check --sampler my_module.MySampler`.
"""
SCHEDULES = """
Largest errors of `time` as the inverse of log-SNR, of f and g^2 against central differences of alpha and sigma, of
x_0 recovered from each target (all relative), and of `prior_std` against the standard deviation of x at t = 1.
"""
FIXED = """
Order: the rate at which the error against the exact probability flow decreases from 48 to 144 levels, on a mixture of
two Gaussians over a section of the schedule (log-SNR -4 to 4, uneven steps, exact past predictions); smallest and
largest over the schedules. Error: mean distance of the complete walk, on Gaussian data with the sampler's own grid,
from the exact map, in per cent of the data's mean absolute deviation; median over the schedules. Most samplers end with
E[x_0 | x_t] at the grid's last level, which has a smaller spread than x_0; the last column is the error beyond that of
this last step, on the worst schedule.
"""
DRAWN = """
On Gaussian data a walk is affine in its start and in each noise draw, so its response to each determines its exact
distribution. Weak order: the rate at which the larger of the biases of mean and std decreases from 24 to 72 levels over
the same section. Biases: those of the complete walk, started from the exact distribution at t = 1, in per cent of the
data's standard deviation; median over the schedules. The last column is the error beyond that of the last step, on the
worst schedule.
"""
MAPS = """
Exact map: the error of 1, 2 and 7 steps of the mixture's flow map against the probability flow, relative to |x|.
Target: the error of `FlowMap`'s x_0* against the image whose step ends where both legs end. Chain: what a linear
network learns over 4 to 32 even levels by normal equations, on Gaussian data, as a share of the exact map; its relative
difference from the product of cos(theta_i - theta_(i+1)), theta = atan2(sigma, alpha std). r = s: without a second leg
the loss is that of `Objective`, to the bit. See [few_steps.md](few_steps.md).
"""
