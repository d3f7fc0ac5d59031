"""Figures of a sweep: quality against cost, quality against guidance scale."""

from typing import Literal


def quality_plot(records: list[dict], against: Literal["evaluations", "seconds"] = "evaluations"):
    """A matplotlib figure of a sweep: quality against network evaluations or time, one line per sampler and scale.

    Error bars are 95 % intervals. Circles, labelled with their seconds, mark the settings that are Pareto-optimal in
    evaluations. The dashed line is the score of the test images, if there are as many as samples.

    Args:
        records: as `diffusion evaluate --sweep` writes them.
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure = blank(8, 5)
    axes = figure.subplots()
    lines: dict[str, list[dict]] = {}
    several = len({r["setting"]["scale"] for r in records}) > 1
    for r in records:
        scale = f", scale {r['setting']['scale']:g}" if several else ""
        lines.setdefault(f"{sampled(r)}{scale}", []).append(r)
    for k, (name, mine) in enumerate(lines.items()):
        mine = sorted(mine, key=lambda r: r[against])
        first = [r["figures"][0] for r in mine]
        x, y = [r[against] for r in mine], [f["value"] for f in first]
        error = [[f["value"] - f["low"] for f in first], [f["high"] - f["value"] for f in first]]
        axes.errorbar(x, y, error, marker="osD^v<>P"[k % 8], ms=5, lw=1.3, capsize=2, label=name)
    front = [r for r in records if r["pareto"]]
    values = [r["figures"][0]["value"] for r in front]
    axes.scatter([r[against] for r in front], values, s=140, facecolors="none", edgecolors="k", label="Pareto")
    for r in front:
        at = r[against], r["figures"][0]["value"]
        axes.annotate(f"{r['seconds']:.0f} s", at, (9, 7), textcoords="offset points", fontsize=8)
    shown = records[0]["figures"][0]
    if shown["m"] == shown["n"]:  # fewer test images would not give a floor
        axes.axhline(shown["floor"], color="0.5", lw=1, ls="--", label=f"{shown['m']:,} test images")
    seconds = f"seconds for {shown['n']:,} samples"
    axes.set(
        xscale="log",
        xlabel="network evaluations per image" if against == "evaluations" else seconds,
        ylabel=shown["metric"],
    )
    if all(f["value"] > 0 for r in records for f in r["figures"][:1]) and shown["better"] == "low":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if against == "evaluations":
        axes.set_xticks(sorted({r["evaluations"] for r in records}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_title(f"{shown['n']:,} samples per point, {shown['weights']} weights")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def scale_plot(records: list[dict]):
    """A matplotlib figure of a sweep over the guidance scale: each metric against it, one line per sampler and steps.

    Bands are 95 % intervals; dashed lines are the scores of the test images, where comparable. Scale 1, no guidance,
    is marked.

    Args:
        records: as `diffusion evaluate --sweep` writes them.
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    names = [f["metric"] for f in records[0]["figures"]]
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = blank(4 * columns, 3.4 * rows + 0.5)
    lines: dict[str, list[dict]] = {}
    for r in sorted(records, key=lambda r: r["setting"]["scale"]):
        lines.setdefault(f"{sampled(r)}, {r['setting']['steps']} steps", []).append(r)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for k, (name, axes) in enumerate(zip(names, panels, strict=False)):
        for i, (label, mine) in enumerate(lines.items()):
            figures, x = [r["figures"][k] for r in mine], [r["setting"]["scale"] for r in mine]
            (line,) = axes.plot(x, [f["value"] for f in figures], marker="osD^v<>P"[i % 8], ms=4, lw=1.3, label=label)
            ends = [f["low"] for f in figures], [f["high"] for f in figures]
            axes.fill_between(x, *ends, color=line.get_color(), alpha=0.2, lw=0)
        f = records[0]["figures"][k]
        if f["better"] != "low" or f["m"] == f["n"]:  # distances depend on the number of images
            axes.axhline(f["floor"], color="0.5", lw=1, ls="--", label=f"{f['m']:,} test images")
        axes.axvline(1, color="0.8", lw=1, zorder=0)
        better = {"low": "lower is better", "high": "higher is better", "floor": "as test images"}[f["better"]]
        axes.set(xlabel="guidance scale", title=f"{name}, {better}")
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    n, weights = (records[0]["setting"][key] for key in ("n", "weights"))
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9,
                  title=f"{n:,} samples per point, {weights} weights", title_fontsize=9)  # fmt: skip
    return figure


def sampled(record: dict) -> str:
    """The sampler of a record, with its further arguments."""
    shown = ("sampler", "steps", "scale", "w")
    return record["setting"]["sampler"] + "".join(f" {k}={v}" for k, v in record["asked"].items() if k not in shown)


def blank(width: float, height: float):
    """An empty matplotlib figure of the given size in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("matplotlib is missing; run: pip install 'litdiffusion[notebook]'") from error
    return Figure(figsize=(width, height), layout="constrained")
