"""The figures, the table and the plot of a race."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS
from benchmarks.race.entries import ENTRIES
from benchmarks.race.environment import REPO
from benchmarks.race.images import DATA, opened
from diffusion.judging.judge import open_evaluator, open_extractor
from diffusion.metrics.base import Features, Metric, bootstrap, mixed
from diffusion.metrics.evaluator import Evaluator
from diffusion.metrics.frechet import Frechet
from diffusion.metrics.manifold import PrecisionRecall
from diffusion.support.files import atomic
from diffusion.training.extractor_of import train_extractor
from diffusion.training.run import train


def parts(images: Features, m: int) -> list[Features]:
    """Images in parts of m each; a last one that has fewer is left out."""
    return [images.pick(slice(begin, begin + m)) for begin in range(0, len(images) - m + 1, m)]


def mean(metric: Metric, images: list[Features], evaluator: Evaluator) -> dict[str, float]:
    """The scores of a metric against the training images, each the mean over parts of equal size."""
    scores = [metric.scores(part, evaluator.reference.train) for part in images]
    return {name: fmean(score[name].value for score in scores) for name in scores[0]}


def judged(file: Path, evaluator: Evaluator, fewest: int, most: int) -> dict[str, Any]:
    """Kept samples: Frechet distance over the floor with its interval, precision and recall.

    The floor is the distance of `most` test images. The distance of fewer samples, n, is larger by a bias that
    decreases as 1 / n (Chong & Forsyth 2020, arXiv:1911.07023, sec. 3); the difference of the floors of n and of
    `most` test images is subtracted. Precision and recall are means over parts of `fewest` samples.
    """
    with np.load(file) as kept:
        raw, y = torch.from_numpy(kept["images"]), torch.from_numpy(kept["labels"])
    labelled, order = int(y.min()) >= 0, mixed(y)
    found = evaluator.describe(raw[order], y[order] if labelled else None)
    distance = Frechet().scores(found, evaluator.reference.train)["frechet"]
    floor, same = (
        mean(Frechet(), parts(evaluator.reference.test, n), evaluator)["frechet"] for n in (most, len(found))
    )
    low, high = bootstrap(distance)
    ends = {"value": distance.value, "low": low, "high": high}
    quotients = {name: (end - same + floor) / floor for name, end in ends.items()}
    return quotients | mean(PrecisionRecall(), parts(found, fewest), evaluator)


def evaluator_of(name: str) -> Evaluator:
    """The evaluator of a data set with its own classifier, trained if there is none yet."""
    data = opened(name)
    return open_evaluator(data, open_extractor(data, train=lambda d: train_extractor(d, train)))


def together(records: list[dict]) -> dict[str, dict[float, dict]]:
    """Records by entry and mark, seeds joined: means, and intervals that contain those of all seeds."""
    found: dict[str, dict[float, dict]] = {}
    for name in ENTRIES:
        mine = [r for r in records if r["name"] == name]
        for mark in sorted({r["minutes"] for r in mine}):
            seeds = sorted((r for r in mine if r["minutes"] == mark), key=lambda r: r["seed"])
            joined = {
                k: fmean(r[k] for r in seeds) for k in ("value", "precision", "recall", "train_s", "sample_s", "steps")
            }
            joined |= {"low": min(r["low"] for r in seeds), "high": max(r["high"] for r in seeds)}
            joined |= {"seeds": [r["seed"] for r in seeds], "n": seeds[0]["n"]}
            joined |= {k: seeds[0].get(k) for k in ("recipe", "sampled", "parameters", "documented", "documented_s")}
            found.setdefault(name, {})[mark] = joined
    return found


def ahead(entries: dict[str, dict[float, dict]], mark: float, labels: bool) -> tuple[str, str, list[str]] | None:
    """The first entry at a mark, the best of another package, and those whose intervals touch ours; None without any.

    Of several entries of ours, it is the better one.

    Args:
        labels: compare the entries that are trained with labels, or those without.
    """
    there = {k: v[mark] for k, v in entries.items() if mark in v and ENTRIES[k].labels == labels}
    mine, others = ([k for k in there if (ENTRIES[k].kind is None) == own] for own in (True, False))
    if not mine or not others:
        return None
    own, best = (min(names, key=lambda k: there[k]["value"]) for names in (mine, others))
    ours = there[own]
    touching = [k for k in others if there[k]["low"] <= ours["high"] and ours["low"] <= there[k]["high"]]
    return (own if ours["value"] < there[best]["value"] else best), best, touching


def said(value: float) -> str:
    """Three digits at most."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value >= 10 else f"{value:.2f}"


def table(entries: dict[str, dict[float, dict]], machine: str, versions: dict[str, str]) -> str:
    """The Markdown table of a race."""
    marks = sorted({mark for found in entries.values() for mark in found})
    columns = [f"after {mark:g} min" for mark in marks]
    lines = [
        f"| entry | recipe | parameters | steps | {' | '.join(columns)} | precision, recall | s per 1,000 samples |",
        "|---|---|---:|---:|" + "---:|" * len(marks) + "---:|---:|",
    ]
    most = max(found[max(found)]["n"] for found in entries.values())
    for name, found in sorted(entries.items(), key=lambda pair: pair[1][max(pair[1])]["value"]):
        last = found[max(found)]
        cells = [
            f"**{said(found[m]['value'])}** ({said(found[m]['low'])} .. {said(found[m]['high'])})" if m in found else ""
            for m in marks
        ]
        spent = f"{said(last['sample_s'])} ({last['sampled']})"
        if last["documented"]:
            spent += f"; {said(last['documented_s'])} ({last['documented']})"
        notes = f", {len(last['seeds'])} seeds" if len(last["seeds"]) > 1 else ""
        notes += f", {last['n']} samples" if last["n"] < most else ""
        sizes = f"{last['parameters']:,} | {last['steps']:,.0f}"
        quality = f"{last['precision']:.2f}, {last['recall']:.2f}"
        lines.append(f"| {name} | {last['recipe']}{notes} | {sizes} | {' | '.join(cells)} | {quality} | {spent} |")
    told = ", ".join(f"{k} {v}" for k, v in versions.items())
    lines += ["", f"{machine}; {most} samples each where no other number is named; {told}"]
    return "\n".join(lines)


def plot(entries: dict[str, dict[float, dict]], file: Path, title: str) -> None:
    """Quality against training time, and against the time of 1,000 samples at the last mark."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    packages = list(dict.fromkeys(name.partition(",")[0] for name in entries))
    for i, (name, found) in enumerate(entries.items()):
        package, _, kind = name.partition(",")
        marker = "^" if ENTRIES[name].clusters else "s" if kind else "o"
        style = {"color": f"C{packages.index(package)}", "marker": marker, "markersize": 5}
        marks = sorted(found)
        values = [found[m]["value"] for m in marks]
        error = [[v - found[m]["low"] for v, m in zip(values, marks, strict=True)],
                 [found[m]["high"] - v for v, m in zip(values, marks, strict=True)]]  # fmt: skip
        line = ":" if ENTRIES[name].clusters else "--" if kind else "-"
        beside = 1.015 ** (i - (len(entries) - 1) / 2)  # so that intervals do not hide each other
        left.errorbar(
            [beside * m for m in marks],
            values,
            error,
            linestyle=line,
            capsize=2,
            linewidth=2.4 if package == "ours" else 1.2,
            **style,
        )
        last = found[marks[-1]]
        right.plot(last["sample_s"], last["value"], linestyle="", label=name, **style)
        if last["documented"]:
            right.plot([last["sample_s"], last["documented_s"]], [last["value"]] * 2, ":", color=style["color"], lw=1)
    left.set(xscale="log", yscale="log", xlabel="minutes of training", ylabel="Frechet distance over the floor")
    left.set_ylim(bottom=min(r["value"] for found in entries.values() for r in found.values()) / 3)  # low may be 0
    right.set(xscale="log", xlabel="seconds per 1,000 samples (dotted: to the documented sampler)")
    marks = sorted({mark for found in entries.values() for mark in found})
    left.set_xticks(marks, [f"{m:g}" for m in marks])
    left.minorticks_off()
    for axes in (left, right):
        axes.axhline(1, color="0.6", linewidth=1)
        axes.grid(alpha=0.3)
    left.set_title(title)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic(file) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def made(data: str, out: Path) -> int:
    """Judge what is in a folder, print the table, and write results and plot."""
    files = sorted(out.glob(f"{data}-*.json"))
    if not files:
        print(f"no samples of {data} in {out}: run the race first")
        return 1
    evaluator, records = evaluator_of(data), [json.loads(file.read_text()) for file in files]
    counts = [record["n"] for record in records]
    for file, record in zip(files, records, strict=True):
        record |= judged(file.with_suffix(".npz"), evaluator, min(counts), max(counts))
    entries = together(records)
    text = table(entries, records[0]["machine"], records[0]["versions"])
    print(text)
    path = RESULTS / f"race-{data}.json"
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + "\n")
    picture = REPO / "docs" / "images" / f"race_{data}.png"
    plot(entries, picture, f"{DATA[data].__name__}, one CPU core")
    for mark in sorted({m for found in entries.values() for m in found}):
        for labels in (False, True):
            if found := ahead(entries, mark, labels):
                first, best, touching = found
                kind, which = "with" if labels else "without", "; ".join(touching) or "none"
                print(f"{mark:g} min, {kind} labels: first {first}; best other {best}; overlapping ours: {which}")
    print(f"written: {path}, {picture}")
    return 0
