"""Comparison of sampling settings: the Pareto-optimal ones, and the recommended one."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from diffusion import pictures
from diffusion.generation.choices import Choices
from diffusion.support.console import interval, number, rows_of, shown, tool
from diffusion.support.files import atomic

WIDTH = "sigma_rel"  # of an average of the weights: a setting of the model, not of the sampler
COLUMNS = ("sampler", "steps", "scale", "w")
NUMBERS = {
    "steps": int,
    "scale": float,
    "w": float,
    "rescale": float,
    "augment": float,
    "sigma_rel": float,
}  # other values remain text
EXAMPLE = 'e.g. "sampler=DDIM,UniPC steps=5,10"'


def parse(text: str) -> list[dict[str, Any]]:
    """The settings of a string such as "sampler=DDIM,UniPC steps=5,10; sampler=DDPM steps=50".

    All combinations of values are taken; parts after a `;` are further settings.

    Raises:
        ValueError: a word without `=`, or text where a number is required.
    """
    if ";" in text:
        return [setting for part in text.split(";") for setting in parse(part)]
    axes: dict[str, list] = {}
    for word in text.split():
        key, equals, values = word.partition("=")
        if not equals or not key or not values.strip(","):
            raise ValueError(f"sweep: wanted words like steps=5,10, got {word!r}; {EXAMPLE}")
        kind = NUMBERS.get(key, str)
        try:
            axes[key] = [kind(v) for v in values.split(",") if v]
        except ValueError as error:
            raise ValueError(f"sweep: {key} wants numbers, got {values!r}") from error
    if not axes:
        raise ValueError(f"sweep: nothing to compare; {EXAMPLE}")
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def changed(choices: Choices, setting: Mapping[str, Any]) -> Choices:
    """Choices updated by a setting; its other keys except the width are arguments of the sampler or the guidance."""
    names = {f.name for f in fields(Choices)} - {"arguments"}
    own = {key: value for key, value in setting.items() if key in names}
    more = {key: value for key, value in setting.items() if key not in names and key != WIDTH}
    return replace(choices, **own, arguments={**choices.arguments, **more})


def pareto(points: list[tuple[float, float]]) -> list[bool]:
    """Which of the points (cost, badness) are Pareto-optimal: no other is at least as good in both and differs."""
    return [
        not any(c <= cost and b <= bad and (c, b) != (cost, bad) for c, b in points) for cost, bad in points
    ]  # fmt: skip


def recommend(records: list[dict]) -> tuple[int, int]:
    """The indices of the cheapest setting whose figure lies within the best one's interval, and of the best."""
    figures = [r["figures"][0] for r in records]
    sign = 1 if figures[0]["better"] == "low" else -1
    best = min(range(len(records)), key=lambda k: sign * figures[k]["value"])
    limit = figures[best]["high" if sign > 0 else "low"]
    good = [k for k in range(len(records)) if sign * figures[k]["value"] <= sign * limit]
    return min(good, key=lambda k: (records[k]["evaluations"], sign * figures[k]["value"])), best


def in_order(records: list[dict]) -> list[dict]:
    """The records sorted by sampler, steps and scale if scales differ, else by cost, each marked if Pareto-optimal."""
    if several_scales(records):
        records = sorted(records, key=lambda r: (label(r)[0], r["setting"]["steps"] or 0, r["setting"]["scale"]))
    else:
        records = sorted(records, key=lambda r: (r["evaluations"], r["figures"][0]["value"]))
    sign = 1 if records[0]["figures"][0]["better"] == "low" else -1
    best = pareto([(r["evaluations"], sign * r["figures"][0]["value"]) for r in records])
    return [record | {"pareto": front} for record, front in zip(records, best, strict=True)]


def several_scales(records: list[dict]) -> bool:
    """Whether the records differ in guidance scale."""
    return len({r["setting"]["scale"] for r in records}) > 1


def report(run: Path, records: list[dict]) -> tuple[str, str]:
    """The table of sorted records with the recommendation, and the recommendation alone.

    Args:
        run: the checkpoint of the records.
    """
    chosen, best = recommend(records)
    said = words(records[chosen], records[best])
    n, machine = records[0]["setting"]["n"], records[0]["machine"]
    return f"\n{shown(run)}, {n:,} samples per row on {machine}\n{table(records)}\n\n{said}", said


def write(folder: Path, records: list[dict], recommended: str) -> tuple[list[Path], str]:
    """Write sorted records and their plots into a folder; return the files, and the reason for missing plots if any."""
    name = hashlib.sha256(json.dumps([r["file"] for r in records]).encode()).hexdigest()[:8]
    place = folder / f"sweep-{name}.json"
    with atomic(place) as temporary:
        temporary.write_text(json.dumps({"recommended": recommended, "records": records}, indent=1) + "\n")
    files = [place]
    plots = {"": pictures.scale_plot} if several_scales(records) else {"": pictures.quality_plot}
    if several_scales(records) and len({label(r)[1] for r in records}) > 1:
        plots["-cost"] = pictures.quality_plot
    for suffix, plot in plots.items():
        try:
            figure = plot(records)
        except ModuleNotFoundError as error:
            return files, f"no plot: {error}"
        files.append(place.with_name(f"{place.stem}{suffix}.png"))
        with atomic(files[-1]) as temporary:
            figure.savefig(temporary, dpi=130)
    return files, ""


def label(record: dict) -> tuple[str, str, str]:
    """Sampler (with further arguments), steps and scale of a record, as text."""
    setting, asked = record["setting"], record["asked"]
    more = "".join(f" {k}={v}" for k, v in asked.items() if k not in COLUMNS)
    return setting["sampler"] + more, str(setting["steps"]), f"{setting['scale']:g}"


def table(records: list[dict]) -> str:
    """A table with one row per setting; an asterisk marks the Pareto-optimal ones."""
    names = [f["metric"] for f in records[0]["figures"]]
    rows = [("sampler", "steps", "scale", "evals", "s", *names, "")]
    for r in records:
        cells = [f"{number(f['value'])} ({interval(f)})" for f in r["figures"]]
        rows.append((*label(r), f"{r['evaluations']:g}", f"{r['seconds']:.0f}", *cells, "*" if r["pareto"] else ""))
    floors = [number(f["floor"]) for f in records[0]["figures"]]
    m = records[0]["figures"][0]["m"]
    note = "" if m == records[0]["setting"]["n"] else "(fewer!)"
    rows.append((f"{m:,} test images", "", "", "", "", *(f"{f} {note}".strip() for f in floors), ""))
    return f"{rows_of(rows)}\n  * no other is better in {names[0]} at the same cost or cheaper"


def words(chosen: dict, best: dict) -> str:
    """The recommendation, and its cost relative to the best setting measured."""

    sampler, steps, scale = label(chosen)
    also = chosen.get("given", {}) | chosen["asked"]
    more = "".join(f" --{k} {shlex.quote(str(v))}" for k, v in also.items() if k not in (*COLUMNS, WIDTH))
    options = f"--sampler {sampler.split()[0]} --steps {steps} --scale {scale}{more}"
    text = f"recommended for this checkpoint: {in_words(chosen)}: {options}"
    if WIDTH in chosen["asked"]:
        text += f", with the weights of: {tool('diffusion')} average RUN --{WIDTH} {chosen['asked'][WIDTH]:g}"
    if chosen is best:
        return f"{text}; it is the best measured, and no cheaper setting lies within its interval"
    return (
        f"{text}; the cheapest within the interval of the best measured, {in_words(best)}, at "
        f"{best['evaluations'] / chosen['evaluations']:.1f} times the cost"
    )


def in_words(record: dict) -> str:
    """Sampler, steps, scale, cost and figure of a record, as text."""
    sampler, steps, scale = label(record)
    figure = record["figures"][0]
    return (
        f"{sampler} with {steps} steps and scale {scale} ({record['evaluations']:g} network evaluations, "
        f"{figure['metric']} {figure['value']:.4g}, {figure['low']:.4g} .. {figure['high']:.4g})"
    )
