"""Options of a training compared at equal time: Frechet distance and class agreement, over several seeds.

    python -m benchmarks.recipes --data digits,fashion --seeds 3 [--only muon,dropout=0.1] [--steps 500] [--n 1000]
        [--out recipes] [--table docs/recipes_table.md]

Each entry changes one option of a bundled configuration, on the digits and Fashion-MNIST with AdamW; Fashion-MNIST is
reduced to 16x16 pixels and its network is narrower. Before any training, the time of a step of each entry is measured
in relation to the unchanged configuration's, in alternating rounds: the CPU time of one thread, which other processes
hardly change. An entry then takes as many steps as fit in the time of `--steps` unchanged ones, so that nothing else
depends on the clock. Measured ratios and finished trainings are kept in --out and not repeated; an interrupted training
is resumed.

The table has the mean over the seeds with a 95 % interval (Student's t), and the difference from the unchanged
configuration, seed by seed, with its own.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from benchmarks.common import machine, save
from diffusion import evaluate
from diffusion.support.files import atomic
from diffusion.training.api import words
from diffusion.training.run import train

CONFIGS = {"digits": "digits", "fashion": "fashion", "sprites": "sprites", "mnist": "mnist_cpu"}
STEPS = {"digits": 1100, "fashion": 800, "sprites": 400, "mnist": 400}  # those of the unchanged configuration
SMALL = {  # of the unchanged configuration, which takes a few minutes of a CPU core
    "digits": {"model.optimizer": "AdamW"},
    "fashion": {
        "model.optimizer": "AdamW", "model.lr": 1e-3, "model.betas": [0.9, 0.99], "model.warmup": 100,
        "model.objective.times": "Stratified", "model.guidance": "ClassifierFree", "model.guidance.scale": 1.5,
        "model.net.widths": [16, 32, 64], "model.net.ones": True, "data.batch_size": 64, "data.reduce": 2,
    },
    "sprites": {"model.optimizer": "Muon"},
    "mnist": {"model.optimizer": "Muon"},
}  # fmt: skip
SAMPLED = {"sprites": {"steps": 20, "grid": "karras"}, "mnist": {"steps": 20}}  # by UniPC; 10 steps of other data
QUIET = {
    "trainer.accelerator": "cpu", "trainer.max_epochs": -1, "trainer.limit_val_batches": 0,
    "trainer.log_every_n_steps": 50, "trainer.enable_progress_bar": False, "samples.every_n_epochs": 0, "samples.n": 1,
    "gif.n": 1, "gif.frames": 2, "diagnostics.images": 0, "evaluation.every_n_epochs": 0,
    "checkpoint.every_n_steps": 200,
}  # fmt: skip
OBJECTIVE, AUGMENT = "model.objective.", "model.augment"
CHANGES = {
    "digits": ["scale", "stretch", "shift"],
    "fashion": ["x_flip", "scale", "rotate", "stretch", "shift"],
    "sprites": ["y_flip", "rotate", "shift"],
    "mnist": ["scale", "stretch", "shift"],
}
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {  # entries by family; {} is the unchanged configuration
    "optimizer": {
        "muon": {"model.optimizer": "Muon"},
        "adamw": {"model.optimizer": "AdamW"},
        "radam": {"model.optimizer": "RAdam"},
    },
    "decay": {"wsd": {"model.decay": "wsd"}, "constant": {"model.decay": "constant"}},
    "dropout": {"dropout=0.1": {"model.net.dropout": 0.1}},
    "augmentation": {"augment": {AUGMENT: "NonLeaking"}},
    "times": {
        "times=Uniform": {f"{OBJECTIVE}times": "Uniform"},
        "times=LogNormal": {f"{OBJECTIVE}times": "LogNormal"},
        "times=LossAware": {f"{OBJECTIVE}times": "LossAware"},
    },
    "target": {"target=Eps": {"model.target": "Eps"}, "target=X0": {"model.target": "X0"}},
    "weight": {
        f"weight={name}": {f"{OBJECTIVE}weight": name}
        for name in ("MinSNR", "SigmoidWeight", "EDMWeight")
    },
    "dispersive": {
        "dispersive": {f"{OBJECTIVE}dispersive": "Dispersive", f"{OBJECTIVE}dispersive.layer": "downs.1"},
    },
}  # fmt: skip


def net(class_path: str, **init_args: Any) -> dict[str, Any]:
    """The settings of another network."""
    return {"model.net": {"class_path": class_path, "init_args": init_args}}


NETS: dict[str, dict[str, dict[str, Any]]] = {  # the family "net" of a data set
    "sprites": {
        "net=patches": net("UNet", width=64, mults=[1, 2], blocks=1, attention=[1], head_width=32, patch=2),
        "net=wide": net("UNet", width=48, mults=[1, 2, 2], blocks=1, attention=[1, 2], head_width=48),
        "net=context": net("ContextUNet", width=32),
    },
    "mnist": {
        "net=pixels": net("UNet", width=16, mults=[1, 2, 4, 6], blocks=1, attention=[3], head_width=32),
        "net=attention": net("AttentionUNet", widths=[32, 64, 128, 128], ones=True),
    },
}
BASE = "base"
ROUNDS, TIMED, FIRST = 3, 24, 4  # of the measurement of a step's time; the first steps are not timed
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # Student's t, 97.5 %, by samples


class CPUTime(pl.Callback):
    """CPU time of this process per step, in seconds, without the first steps."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args) -> None:
        if trainer.global_step == FIRST:
            self.begun = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if trainer.global_step == TIMED:
            self.seconds = (time.process_time() - self.begun) / (TIMED - FIRST)


class Entry(NamedTuple):
    """A changed option on a data set."""

    data: str
    family: str
    name: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """Its name among files."""
        return f"{self.data}-{self.name}"


def entries(data: list[str], only: list[str]) -> list[Entry]:
    """The unchanged configuration of each data set and the chosen entries, by name or family.

    Raises:
        ValueError: there is no such entry, family or data set.
    """
    if unknown := [word for word in data if word not in CONFIGS]:
        raise ValueError(f"--data {unknown[0]}: there are: {', '.join(CONFIGS)}")
    found, known = [], []
    for one in data:
        found.append(Entry(one, "", BASE, {}))
        for family, mine in (FAMILIES | {"net": NETS.get(one, {})}).items():
            known += [family, *mine]
            for name, changed in mine.items():
                settings = dict(changed)
                if AUGMENT in settings:
                    settings[f"{AUGMENT}.changes"] = CHANGES[one]
                same = all(SMALL[one].get(key) == value for key, value in settings.items())
                if not same and (not only or name in only or family in only):
                    found.append(Entry(one, family, name, settings))
    if unknown := [word for word in only if word not in known]:
        raise ValueError(f"--only {unknown[0]}: there are: {', '.join(dict.fromkeys(known))}")
    return found


def fitted(entry: Entry, out: Path, experiment: str, steps: int, seed: int, resume: bool = True, **more: Any):
    """A finished training of an entry."""
    settings = SMALL[entry.data] | QUIET | entry.settings | more
    settings |= {"trainer.max_steps": steps, "seed_everything": seed, "out": str(out), "experiment": experiment}
    argv = ["-c", f"configs/{CONFIGS[entry.data]}.yaml", *words(settings), *(["--resume", "auto"] if resume else [])]
    return train(argv, final=False)


def kept(file: Path, make) -> Any:
    """The contents of a JSON file, made and written if it does not exist."""
    if not file.is_file():
        found = make()
        with atomic(file) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(file.read_text())


def step_ratio(entry: Entry, out: Path) -> float:
    """The time of a step of an entry over that of the unchanged configuration, the median of alternating rounds."""
    if entry.name == BASE:
        return 1.0
    base = Entry(entry.data, "", BASE, {})

    def seconds(one: Entry) -> float:
        timer = {"trainer.callbacks": [{"class_path": "benchmarks.recipes.CPUTime"}]}
        run = fitted(one, out / "timing", one.key, TIMED, 0, resume=False, **timer)
        return next(c.seconds for c in run.trainer.callbacks if type(c).__name__ == "CPUTime")

    def measure() -> dict:
        pairs = [(seconds(entry), seconds(base)) for _ in range(ROUNDS)]
        return {"ratio": statistics.median(a / b for a, b in pairs), "seconds": pairs, "machine": machine()}

    return kept(out / "ratios" / f"{entry.key}.json", measure)["ratio"]


def result(entry: Entry, seed: int, steps: int, args: argparse.Namespace) -> dict:
    """Figures of an entry trained with a seed; from its file if it is finished."""

    def make() -> dict:
        run = fitted(entry, args.out / "runs", f"{entry.key}-seed{seed}", steps, seed)
        how = {"steps": 10} | SAMPLED.get(entry.data, {})
        records = evaluate(
            run.folder, args.n, sampler="UniPC", metrics="frechet,consistency", device="cpu", **how
        ).records
        figures = {f["metric"]: {k: f[k] for k in ("value", "low", "high", "floor")} for f in records[0]["figures"]}
        return {"figures": figures, "steps": steps, "seed": seed, "n": args.n, "machine": machine()}

    return kept(args.out / "results" / f"{entry.key}-steps{steps}-seed{seed}-n{args.n}.json", make)


def spread(values: list[float]) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval; nan for a single value."""
    n = len(values)
    half = T95[n] * statistics.stdev(values) / math.sqrt(n) if n in T95 else float("nan")
    return statistics.fmean(values), half


def row(entry: Entry, ratio: float, mine: list[dict], base: list[dict]) -> dict:
    """One line of the table."""
    line = {"data": entry.data, "family": entry.family, "name": entry.name, "ratio": ratio, "steps": mine[0]["steps"]}
    for metric in ("frechet", "consistency"):
        values, theirs = ([r["figures"][metric]["value"] for r in found] for found in (mine, base))
        differences = [a - b for a, b in zip(values, theirs, strict=True)]
        line[metric] = {"values": values, "mean": spread(values), "difference": spread(differences)}
    line["floor"] = mine[0]["figures"]["frechet"]["floor"]
    return line


def table(rows: list[dict], args: argparse.Namespace) -> str:
    """The Markdown table of all lines."""
    text = []
    for data in dict.fromkeys(r["data"] for r in rows):
        own, walk = [r for r in rows if r["data"] == data], SAMPLED.get(data, {}).get("steps", 10)
        text += [
            f"{data}: {args.seeds} seeds, {own[0]['steps']:,} steps of the unchanged configuration, {args.n:,} samples "
            f"by UniPC with {walk} steps, Frechet distance of as many test images {own[0]['floor']:.3g}; {machine()}",
            "",
            "| | time of a step | steps | Frechet distance | difference | class agreement | difference |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in own:
            cells = [r["name"], f"{r['ratio']:.2f}", f"{r['steps']:,}"]
            for metric, factor, unit in (("frechet", 1, ""), ("consistency", 100, " %")):
                (m, h), (d, dh) = r[metric]["mean"], r[metric]["difference"]
                sure = " **" if abs(d) > dh else ""
                cells += [f"{factor * m:.4g}{unit} ± {factor * h:.2g}"]
                cells += ["" if r["name"] == BASE else f"{factor * d:+.3g} ± {factor * dh:.2g}{sure}"]
            text.append(f"| {' | '.join(cells)} |")
        text.append("")
    return "\n".join([*text, "** the interval of the difference excludes 0"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits,fashion", help=f"of {', '.join(CONFIGS)} (default digits,fashion)")
    parser.add_argument("--only", default="", help="entries or families, comma-separated (default all)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per entry (default 3)")
    parser.add_argument("--steps", type=int, default=0, help="of the unchanged configuration (default: see STEPS)")
    parser.add_argument("--n", type=int, default=1000, help="samples judged (default 1000)")
    parser.add_argument(
        "--out", type=Path, default=Path("recipes"), help="folder of runs and results (default recipes)"
    )
    parser.add_argument("--table", type=Path, help="file for the table, besides the output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = entries(args.data.split(","), [word for word in args.only.split(",") if word])
    ratios = {entry.key: step_ratio(entry, args.out) for entry in chosen}
    rows, base = [], {}
    for entry in chosen:
        steps = max(1, round((args.steps or STEPS[entry.data]) / ratios[entry.key]))
        found = [result(entry, seed, steps, args) for seed in range(args.seeds)]
        base.setdefault(entry.data, found)
        rows.append(row(entry, ratios[entry.key], found, base[entry.data]))
        print(f"{entry.key}: Frechet distance {spread([r['figures']['frechet']['value'] for r in found])}", flush=True)
    text = table(rows, args)
    print(text)
    if args.table:
        args.table.write_text(text + "\n")
    print(save("recipes", {"seeds": args.seeds, "n": args.n, "rows": rows}))


if __name__ == "__main__":
    main()
