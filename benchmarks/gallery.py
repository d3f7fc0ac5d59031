"""A trained run for docs/gallery.md: figures with floors, samples beside test images, nearest training images, a film.

    python -m benchmarks.gallery RUN [--n 1000] [--out FOLDER] [--sampler UniPC] [--steps 10] [--grid karras]
        [--scale 1.5] [--interval 0.2,4] [--columns 16] [--name sprites] [--title Sprites]
        [--command "diffusion fit -c configs/sprites.yaml"] [--note "Both cores alone take 26 minutes."]
    python -m benchmarks.gallery --collect FOLDER [FOLDER ...] --page docs/gallery.md

FOLDER, RUN/gallery by default, gets gallery.json, gallery.md and four pictures. The figures are those of
`diffusion evaluate`, and all pictures but the film show the samples that it measured, those of each class in their
order: none is chosen. --collect joins the fragments of several runs to a page, and copies their pictures beside it.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import machine
from diffusion import describe, evaluate, pictures
from diffusion.data import ImageData
from diffusion.data.recorded import open_data
from diffusion.generation.choices import Choices
from diffusion.generation.nearest import nearest_images, seen, sheet
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.sheets import denoising, examples
from diffusion.metrics.background import MOST, plain
from diffusion.support import runs
from diffusion.support.console import clock, number, shown
from diffusion.support.files import atomic
from diffusion.training.resume import read_config

COLUMNS, WIDE = 16, 1000  # images per row, and pixels of a wide sheet
NEIGHBOURS, FILMED = 3, 10
LABELLED, UNLABELLED = "frechet,pr,consistency,memory", "frechet,pr,memory"
PAGE = """# Gallery

What the bundled configurations produce, with the commands and their times. No picture is chosen: they show the first
samples of each class that `diffusion evaluate` measured. In the sheets a row of samples is followed by a row of real
test images of the same class, which no model was trained on. The tables have each figure with its 95 % interval beside
the same figure of the real test images; [metrics.md](metrics.md) defines them. "Over the floor" is the Frechet distance
of as many samples as there are test images over that of the test images: 1 is as near to the training images as unseen
ones are. Its interval is that of the samples; the test images' own uncertainty is not in it.
`python -m benchmarks.gallery RUN` measures a run and makes its pictures.
"""


class Samples(NamedTuple):
    """Evaluated samples: their record, raw images (n, C, H, W), and classes (n,), all 0 for data without classes."""

    record: dict[str, Any]
    raw: Tensor
    kinds: Tensor


def judged(run: Path, data: ImageData, pipeline: Pipeline, n: int, how: dict[str, Any]) -> Samples:
    """Samples of a run, measured by `diffusion evaluate`, which keeps both."""
    classes = data.labelled and bool(pipeline.num_classes or pipeline.context_dim)
    metrics = LABELLED if classes else UNLABELLED
    first = data.some("train", torch.arange(min(MOST, len(data.store("train")[0]))))[0]
    if plain(pipeline.scaling.encode(first)) is not None:
        metrics += ",background"
    record = evaluate(run, n, metrics=metrics, keep=True, **how)[0]
    file = Path(record["file"]).with_suffix(".npz")
    if not file.is_file():  # measured before, and the samples were not kept
        record = evaluate(run, n, metrics=metrics, keep=True, again=True, **how)[0]
    with np.load(file) as kept:
        raw, y = torch.from_numpy(kept["images"]).permute(0, 3, 1, 2), torch.from_numpy(kept["labels"])
    return Samples(record, raw, kinds_of(y) if classes else torch.zeros(n, dtype=torch.int64))


def kinds_of(y: Tensor) -> Tensor:
    """The classes (n,) of labels (n,) or one-hot vectors (n, K)."""
    return y.argmax(1) if y.ndim > 1 else y


# --- pictures -----------------------------------------------------------------------------------------------


def row(images: np.ndarray, columns: int = COLUMNS) -> np.ndarray:
    """The first images of a class (n, H, W, C); mid-grey where there are fewer."""
    missing = np.full((max(0, columns - len(images)), *images.shape[1:]), 128, np.uint8)
    return np.concatenate([images[:columns], missing])


def draw(pipeline: Pipeline, data: ImageData, samples: Samples, out: Path, columns: int) -> list[str]:
    """Write the pictures, with a number of images per row, and return their names."""
    encode, picture = pipeline.scaling.encode, pipeline.picture
    (test, y), kinds = data.arrays("test"), range(int(samples.kinds.max()) + 1)
    theirs = kinds_of(y) if len(kinds) > 1 else torch.zeros(len(y))
    made = [row(picture(encode(samples.raw[samples.kinds == k][:columns])), columns) for k in kinds]
    real = [row(picture(encode(test[theirs == k][:columns])), columns) for k in kinds]
    if len(kinds) == 1:  # without classes: as many rows of samples
        first = picture(encode(samples.raw[: 6 * columns]))
        made = [row(first[k : k + columns], columns) for k in range(0, len(first), columns)]
    pictures.save_png(pictures.grid(np.concatenate(made), columns), out / "grid.png")
    both = [part for pair in zip(made, real, strict=False) for part in pair]
    pictures.save_png(pictures.grid(np.concatenate(both), columns, width=WIDE), out / "beside.png")
    first = torch.cat([(samples.kinds == k).nonzero()[: max(1, FILMED // len(kinds)), 0] for k in kinds])
    x0 = encode(samples.raw[first[:FILMED] if len(kinds) > 1 else slice(FILMED)])
    found = nearest_images(x0, seen(data, pipeline.scaling), NEIGHBOURS)
    pictures.save_png(sheet(pipeline, x0, found, FILMED), out / "nearest.png")
    across = len(kinds) if 2 <= len(kinds) <= FILMED else FILMED
    n = across * max(1, FILMED // across)
    film = denoising(pipeline, n, frames=24, seed=1, columns=across, given=examples(pipeline, data, n))
    pictures.save_film(film, out / "film.gif", fps=10)
    return ["grid.png", "beside.png", "nearest.png", "film.gif"]


# --- figures ------------------------------------------------------------------------------------------------


def over_floor(figure: dict[str, Any]) -> dict[str, float]:
    """A figure over its floor, both of m images, with the interval of the samples: the figure's, of n, moved there."""
    moved = figure["matched"] - figure["value"]
    values = (figure["matched"], figure["low"] + moved, figure["high"] + moved)
    return {name: v / figure["floor"] for name, v in zip(("value", "low", "high"), values, strict=True)}


def trained(run: Path) -> dict[str, Any]:
    """Steps, parameters, images/s and seconds of a run's training, from its checkpoint, configuration and log.

    The seconds are those of the steps alone, without validation and pictures, at the rate that was logged last.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps, config = runs.read_checkpoint(runs.find_checkpoint(run))["global_step"], read_config(run)
    batch = config["data"]["init_args"]["batch_size"] * (config["trainer"].get("accumulate_grad_batches") or 1)
    found = {"steps": steps, "batch_size": batch, "parameters": describe(run).parameters}
    log = EventAccumulator(str(run)).Reload()
    if "train/images_per_s" in log.Tags()["scalars"]:
        rate = log.Scalars("train/images_per_s")[-1].value
        found |= {"images_per_s": round(rate, 1), "seconds": round(steps * batch / rate)}
    return found | {"precision": config["trainer"].get("precision")}


SETTING = "n", "sampler", "sampler_args", "steps", "guidance", "scale", "weights", "seed", "extractor"
ROWS = {  # figure: its name, and the factor and the unit that it is shown with
    "frechet": ("Frechet distance", 1, ""),
    "consistency": ("class agreement, by the judge", 100, " %"),
    "precision": ("precision", 1, ""),
    "recall": ("recall", 1, ""),
    "nearest_pixels": ("nearest training image, pixels", 1, ""),
    "nearest_features": ("nearest training image, features", 1, ""),
    "background": ("background: mean deviation, of 255", 1, ""),
    "background_visible": ("background: share of values off by more than 8", 100, " %"),
    "background_specks": ("background: isolated pixels per image", 1, ""),
}


def table(report: dict[str, Any]) -> str:
    """The Markdown table of a report's figures."""
    lines = ["| | samples | 95 % interval | test images |", "|---|---|---|---|"]
    for name, (title, factor, unit) in ROWS.items():
        if (f := report["figures"].get(name)) is None:
            continue
        value, low, high, floor = (number(factor * f[k]) + unit for k in ("value", "low", "high", "floor"))
        lines.append(f"| {title} | {value} | {low} .. {high} | {floor} |")
        if name == "frechet":
            value, low, high = (number(report["ratio"][k]) for k in ("value", "low", "high"))
            lines.append(f"| over the floor, {f['m']:,} images each | **{value}** | {low} .. {high} | 1 |")
    return "\n".join(lines)


def fragment(report: dict[str, Any]) -> str:
    """The part of the page for one run."""
    training, how = report["training"], report["sampling"]
    times = f"{training['steps']:,} steps of {training['batch_size']}"
    if "seconds" in training:
        times += f", {clock(training['seconds'])} of training at {training['images_per_s']:,.0f} images/s"
    command = f"`{report['command']}`: " if report["command"] else ""
    note = f" {report['note']}" if report["note"] else ""
    grid = how["sampler_args"].get("grid")
    walk = f"{how['n']:,} samples by {how['sampler']}, {how['steps']} steps{f' on the {grid} grid' if grid else ''}"
    limits = how["guidance"]["init_args"]
    within = f" where {limits['low']:g} < sigma / alpha <= {limits['high']:g}" if "low" in limits else ""
    seed = f"{how['weights']} weights, seed {how['seed']}, {how['seconds']:.0f} s"
    return f"""## {report["title"]}

| samples, one row per class | from noise to pictures |
|:--:|:--:|
| ![samples](grid.png) | ![denoising](film.gif) |

{command}{times}, {training["parameters"]:,} parameters, precision {training["precision"]} ({report["machine"]}).{note}
{walk}, guidance scale {how["scale"]:g}{within}, {seed}.

{table(report)}

Each row of samples above a row of test images of its class:

![samples and test images](beside.png)

Samples, and below each its {NEIGHBOURS} nearest training images:

![samples and their nearest training images](nearest.png)
"""


def made(args: argparse.Namespace) -> dict[str, Any]:
    """Measure a run, write its pictures and its fragment, and return the report."""
    run = runs.directory(runs.find_checkpoint(args.run))
    how = {k: v for k in ("sampler", "steps", "scale", "interval") if (v := getattr(args, k)) is not None}
    grid = {"grid": args.grid} if args.grid else {}
    data, pipeline = open_data(run), Choices(**how, arguments=grid).apply(Pipeline.load(run))
    data.prepare_data()
    samples = judged(run, data, pipeline, args.n, how | grid)
    out, kind = args.out or run / "gallery", type(data).__name__
    out.mkdir(parents=True, exist_ok=True)
    record, config = samples.record, Path("configs", f"{run.parent.name}.yaml")
    figures = {
        f["metric"]: {k: f[k] for k in ("value", "low", "high", "floor", "matched", "m")} for f in record["figures"]
    }
    setting = {k: record["setting"][k] for k in SETTING}
    report = {
        "name": args.name or kind.lower(),
        "title": args.title or kind,
        "command": args.command or (f"diffusion fit -c {config}" if config.is_file() else ""),
        "note": args.note,
        "machine": machine(),
        "date": date.today().isoformat(),
        "training": trained(run),
        "sampling": setting | {k: record[k] for k in ("evaluations", "seconds")},
        "figures": figures,
        "ratio": over_floor(figures["frechet"]),
        "alerts": [f["alert"] for f in record["figures"] if f["alert"]],
        "files": draw(pipeline, data, samples, out, args.columns),
    }
    for name, text in (("gallery.json", json.dumps(report, indent=1) + "\n"), ("gallery.md", fragment(report))):
        with atomic(out / name) as temporary:
            temporary.write_text(text)
    print(f"{table(report)}\n" + "".join(f"ALERT: {a}\n" for a in report["alerts"]) + f"written: {shown(out)}")
    return report


def collect(folders: list[Path], page: Path) -> None:
    """Join the fragments of several runs to a page, with their pictures in the folder `images` beside it."""
    parts, images = [PAGE], page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        report, text = json.loads((folder / "gallery.json").read_text()), (folder / "gallery.md").read_text()
        for name in report["files"]:
            kept = f"gallery_{report['name']}_{name}"
            (images / kept).write_bytes((folder / name).read_bytes())
            text = text.replace(f"]({name})", f"](images/{kept})")
        parts.append(text)
    page.write_text("\n".join(parts))
    print(f"written: {shown(page)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="run directory, experiment folder, or checkpoint file")
    parser.add_argument("--n", type=int, default=1000, help="samples measured (default 1000)")
    parser.add_argument("--out", type=Path, help="folder (default RUN/gallery)")
    parser.add_argument("--sampler", help="default: the run's")
    parser.add_argument("--steps", type=int, help="of the sampler")
    parser.add_argument("--grid", help="of the sampler's steps")
    parser.add_argument("--scale", type=float, help="of the guidance")
    parser.add_argument("--interval", help="of the guidance, low,high")
    parser.add_argument("--columns", type=int, default=COLUMNS, help=f"images per row (default {COLUMNS})")
    parser.add_argument("--name", help="of the pictures on the page (default: of the data)")
    parser.add_argument("--title", help="of the fragment (default: the data's class)")
    parser.add_argument("--command", help="that trained the run (default: the configuration of the experiment's name)")
    parser.add_argument("--note", default="", help="sentences about the training")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="FOLDER", help="folders to join to a page")
    parser.add_argument("--page", type=Path, default=Path("docs/gallery.md"), help="default docs/gallery.md")
    args = parser.parse_args()
    if bool(args.run) == bool(args.collect):
        parser.error("give either a run, or --collect and folders")
    if args.collect:
        collect(args.collect, args.page)
    else:
        made(args)


if __name__ == "__main__":
    main()
