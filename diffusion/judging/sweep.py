"""Settings of sampling compared: which are worth their network evaluations, and which one to take."""

import hashlib
import json
from argparse import Namespace
from itertools import product

from diffusion import pictures
from diffusion.judging.measure import Opened
from diffusion.support.console import interval, number, rows_of, shown
from diffusion.support.files import atomic

AXES = ("sampler", "steps", "scale", "w", "guidance")  # other words are arguments of the sampler or of the guidance
COLUMNS = ("sampler", "steps", "scale", "w")
DEFAULT = "frechet,consistency"
EXAMPLE = 'e.g. "sampler=DDIM,UniPC steps=5,10"'


def parse(text: str) -> list[dict]:
    """ "sampler=DDIM,UniPC steps=5,10" as settings, every value with every other; after a `;` further such words.

    Raises:
        ValueError: a word without `=`, or a number that is none.
    """
    if ";" in text:
        return [setting for part in text.split(";") for setting in parse(part)]
    axes: dict[str, list] = {}
    for word in text.split():
        key, equals, values = word.partition("=")
        if not equals or not key or not values.strip(","):
            raise ValueError(f"--sweep: wanted words like steps=5,10, got {word!r}; {EXAMPLE}")
        kind = {"steps": int, "scale": float, "w": float}.get(key, str)
        try:
            axes[key] = [kind(v) for v in values.split(",") if v]
        except ValueError as error:
            raise ValueError(f"--sweep: {key} wants numbers, got {values!r}") from error
    if not axes:
        raise ValueError(f"--sweep: nothing to compare; {EXAMPLE}")
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def pareto(points: list[tuple[float, float]]) -> list[bool]:
    """Which of (cost, badness) no other beats: none is as cheap and better, or cheaper and as good."""
    return [
        not any(c <= cost and b <= bad and (c, b) != (cost, bad) for c, b in points) for cost, bad in points
    ]  # fmt: skip


def recommend(records: list[dict]) -> tuple[int, int]:
    """The cheapest setting whose figure lies within the best one's interval, and the best: two places in the list."""
    figures = [r["figures"][0] for r in records]
    sign = 1 if figures[0]["better"] == "low" else -1
    best = min(range(len(records)), key=lambda k: sign * figures[k]["value"])
    limit = figures[best]["high" if sign > 0 else "low"]
    good = [k for k in range(len(records)) if sign * figures[k]["value"] <= sign * limit]
    return min(good, key=lambda k: (records[k]["evaluations"], sign * figures[k]["value"])), best


def report(run: Opened, records: list[dict], args: Namespace) -> None:
    """The table, the plots, and the recommendation in words."""
    scales, others = ({f(r) for r in records} for f in (lambda r: r["setting"]["scale"], lambda r: label(r)[:2]))
    if len(scales) > 1:
        records = sorted(records, key=lambda r: (label(r)[0], r["setting"]["steps"] or 0, r["setting"]["scale"]))
    else:
        records = sorted(records, key=lambda r: (r["evaluations"], r["figures"][0]["value"]))
    sign = 1 if records[0]["figures"][0]["better"] == "low" else -1
    best = pareto([(r["evaluations"], sign * r["figures"][0]["value"]) for r in records])
    for record, front in zip(records, best, strict=True):
        record["pareto"] = front
    lines = table(records)
    chosen, top = recommend(records)
    print(f"\n{shown(run.path)}, {args.n:,} samples a row on {records[0]['machine']}\n{lines}")
    said = words(records[chosen], records[top])
    print(f"\n{said}")
    name = hashlib.sha256(json.dumps([r["file"] for r in records]).encode()).hexdigest()[:8]
    place = run.folder / f"sweep-{name}.json"
    with atomic(place) as temporary:
        temporary.write_text(json.dumps({"recommended": said, "records": records}, indent=1) + "\n")
    print(f"written: {shown(place)}")
    plots = {"": pictures.scale_plot} if len(scales) > 1 else {"": pictures.quality_plot}
    if len(scales) > 1 and len({steps for _, steps in others}) > 1:
        plots["-cost"] = pictures.quality_plot
    for suffix, plot in plots.items():
        try:
            figure = plot(records)
        except ModuleNotFoundError as error:
            print(f"no plot: {error}")
            break
        file = place.with_name(f"{place.stem}{suffix}.png")
        with atomic(file) as temporary:
            figure.savefig(temporary, dpi=130)
        print(f"written: {shown(file)}")


def label(record: dict) -> tuple[str, str, str]:
    """Sampler (with what else was asked for), steps and scale of a record, as words."""
    setting, asked = record["setting"], record["asked"]
    more = "".join(f" {k}={v}" for k, v in asked.items() if k not in COLUMNS)
    return setting["sampler"] + more, str(setting["steps"]), f"{setting['scale']:g}"


def table(records: list[dict]) -> str:
    """A row a setting; an asterisk at those that no other beats."""
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
    """The recommendation, and what it costs against the best one measured."""

    def told(record: dict) -> str:
        sampler, steps, scale = label(record)
        figure = record["figures"][0]
        return (
            f"{sampler} with {steps} steps and scale {scale} ({record['evaluations']:g} network evaluations, "
            f"{figure['metric']} {figure['value']:.4g}, {figure['low']:.4g} .. {figure['high']:.4g})"
        )

    sampler, steps, scale = label(chosen)
    more = "".join(f" --{k} {v}" for k, v in chosen["asked"].items() if k not in COLUMNS)
    options = f"--sampler {sampler.split()[0]} --steps {steps} --scale {scale}{more}"
    text = f"recommended for this checkpoint: {told(chosen)}: {options}"
    if chosen is best:
        return f"{text}; it is the best measured, and no cheaper one lies within its interval"
    return (
        f"{text}; the cheapest within the interval of the best measured, {told(best)}, at "
        f"{best['evaluations'] / chosen['evaluations']:.1f} times the cost"
    )
