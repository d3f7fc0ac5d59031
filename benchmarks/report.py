"""The page and the plot of benchmarks/samplers.py, from its measurements alone."""

import os
from pathlib import Path

from diffusion.support.files import atomic

SURE = 1.96  # standard errors of a 95 % interval
BITS = {"32": "float32", "bf16": "bfloat16"}
FEW = (10, 20)  # range of network evaluations in which equals of the reference are sought


def name(row: dict) -> str:
    return row["sampler"]["class_path"].rpartition(".")[2]


def steps(row: dict) -> int | None:
    return row["sampler"]["init_args"].get("steps")


def write(results: dict, out: Path, plot: Path, command: str) -> None:
    """Write the Markdown page and the plot beside it."""
    rows = sorted(results["rows"], key=lambda r: (r["evaluations"], r["frechet"]))
    reference = max((r for r in rows if name(r) == "DDPM"), key=lambda r: r["evaluations"])
    draw(rows, reference, results["floor"], plot)
    page = text(rows, reference, results, command, Path(os.path.relpath(plot, out.parent)))
    with atomic(out) as path:
        path.write_text(page)


def text(rows: list[dict], reference: dict, results: dict, command: str, plot: Path) -> str:
    floor, setting = results["floor"], results["setting"]
    guidance = setting["guidance"]
    scale = guidance["init_args"].get("scale", 1)
    schedule, target = (setting[k]["class_path"].rpartition(".")[2] for k in ("schedule", "target"))
    lines = [
        f"| {name(r)} | {steps(r) or ''} | {r['evaluations']:.0f} | {100 * r['agreement']:.1f} ± "
        f"{100 * SURE * r['agreement_error']:.1f} | {r['frechet'] / floor:.2f} ± "
        f"{SURE * r['frechet_error'] / floor:.2f} | {r['frechet']:.2f} | {100 * r['spread']:.0f} | "
        f"{verdict(r, reference)} |"
        for r in rows
    ]
    return f"""# Samplers

{sentence(rows, reference, floor)}

![Frechet distance against network evaluations]({plot.as_posix()})

`{command}` on {results["machine"]}: one digits model (schedule {schedule}, target {target}, EMA weights), \
{setting["n"]:,} digits per row, a tenth of each class, the same starting noise in every row, guidance scale \
{scale:g}, each sampler with its own defaults (grid "trailing") except `steps`; network evaluations in \
{BITS[setting["precision"]]}. The judge is the demo's: a classifier of the real digits that took no part in training, \
right on {results["accuracy"]:.1%} of the test digits; the floor is the Frechet distance of test to training digits \
in its features, {floor:.2f}.

- **evaluations**: network calls per image, counted during sampling. A guided call uses a batch of twice the size \
and counts as one.
- **agreement**: percentage of the samples that the judge classifies as the requested digit.
- **Frechet**: distance to the training digits, in units of the floor and absolute; below 1 is closer than the test \
digits, of which there are fewer.
- **±**: 95 % intervals over sets of {setting["n"]:,} samples, by the jackknife for Frechet (20 groups; more \
likely too wide than too narrow). They do not cover training another model or another judge.
- **spread**: distance between two samples of a class, as a percentage of that between real digits.
- **against {name(reference)} {steps(reference):,}**: "equal" where neither agreement nor Frechet is worse beyond a 95 \
% interval of the difference, "better" where Frechet is better beyond it too, else "worse". This \
number of digits cannot resolve a difference in Frechet below about {blind(rows, reference) / floor:.2f} of the \
floor: "equal" means no further apart than that.

| sampler | steps | evaluations | agreement % | Frechet / floor | Frechet | spread % | against {name(reference)} \
{steps(reference):,} |
|---|---:|---:|---:|---:|---:|---:|---|
{chr(10).join(lines)}
"""


def verdict(row: dict, reference: dict) -> str:
    """A row compared with the reference: "", "better", "equal" or "worse" (see the page)."""
    if row is reference:
        return ""
    further, f_error = difference(row, reference, "frechet")
    more, a_error = difference(row, reference, "agreement")
    if further > SURE * f_error or more < -SURE * a_error:
        return "worse"
    return "better" if further < -SURE * f_error else "equal"


def difference(row: dict, reference: dict, what: str) -> tuple[float, float]:
    """Row minus reference, and its standard error as if the two were independent."""
    return row[what] - reference[what], (row[f"{what}_error"] ** 2 + reference[f"{what}_error"] ** 2) ** 0.5


def blind(rows: list[dict], reference: dict) -> float:
    """The median 95 % half-width of a difference in Frechet distance: smaller differences are not resolved."""
    widths = sorted(SURE * difference(r, reference, "frechet")[1] for r in rows if r is not reference)
    return widths[len(widths) // 2]


def sentence(rows: list[dict], reference: dict, floor: float) -> str:
    """Which samplers equal the reference at 10 to 20 evaluations, by the figures alone."""

    def told(row: dict) -> str:
        d, e = (v / floor for v in difference(row, reference, "frechet"))
        more, a = (100 * v for v in difference(row, reference, "agreement"))
        return (
            f"{name(row)} with {row['evaluations']:.0f} is at {row['frechet'] / floor:.2f} of the floor, {d:+.2f} ± "
            f"{SURE * e:.2f} from it, and {row['agreement']:.1%}, {more:+.1f} ± {SURE * a:.1f}"
        )

    low, high = FEW
    few = [r for r in rows if low <= round(r["evaluations"]) <= high]
    good: dict[int, list[str]] = {}
    for row in few:
        if verdict(row, reference) in ("equal", "better"):
            good.setdefault(round(row["evaluations"]), []).append(name(row))
    what = (
        f"{name(reference)} at {reference['evaluations']:,.0f} network evaluations is at "
        f"{reference['frechet'] / floor:.2f} ± {SURE * reference['frechet_error'] / floor:.2f} of the floor (Frechet "
        f"distance) with {reference['agreement']:.1%} class agreement."
    )
    if not few:
        return f"{what} Nothing was measured with {low} to {high} evaluations."
    nearest = f"The closest in Frechet distance: {told(min(few, key=rank))}."
    if not good:
        return f"{what} No sampler equals it with {low} to {high} evaluations. {nearest}"
    equals = "; ".join(f"at {n} {', '.join(sorted(names))}" for n, names in sorted(good.items()))
    return f"{what} Equal or better, by 95 % intervals of the differences: {equals}. {nearest}"


def rank(row: dict) -> float:
    return row["frechet"]


def draw(rows: list[dict], reference: dict, floor: float, path: Path) -> None:
    """Frechet / floor against evaluations, both logarithmic, one line per sampler; the reference is a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    figure, axes = pyplot.subplots(figsize=(9, 5.5), dpi=130, layout="constrained")
    level, error = reference["frechet"] / floor, SURE * reference["frechet_error"] / floor
    axes.axhspan(level - error, level + error, color="0.85", zorder=0)
    label = f"{name(reference)} at {reference['evaluations']:,.0f}"
    axes.axhline(level, color="0.4", lw=1, ls="--", zorder=1, label=label)
    lines: dict[tuple, list[str]] = {}  # identical samplers under two names share a line
    for kind in sorted({name(r) for r in rows}):
        mine = [r for r in rows if name(r) == kind and r is not reference]
        lines.setdefault(tuple((r["evaluations"], r["frechet"] / floor) for r in mine), []).append(kind)
    colors = pyplot.get_cmap("tab20")
    for i, points in enumerate(sorted((p for p in lines if p), key=lambda p: min(y for _, y in p))):
        x, y = zip(*points, strict=True)
        color = colors((2 * i + i // 10) % 20)
        axes.plot(x, y, marker="osD^v<>Pp*hX"[i % 12], ms=5, lw=1.3, color=color, label=", ".join(lines[points]))
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per image", ylabel="Frechet distance / floor")
    for axis, ticks in (
        (axes.xaxis, (10, 20, 50, 100, 200, 500)),
        (axes.yaxis, (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50)),
    ):
        low, high = axis.get_view_interval()
        axis.set_ticks([t for t in ticks if low <= t <= high])
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
