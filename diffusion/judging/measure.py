"""Samples of a run, measured: what `diffusion evaluate` does for one setting, and the file that remembers it."""

import hashlib
import json
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion.data import ImageData
from diffusion.data.recorded import open_data
from diffusion.generation.counting import Counted
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.sheets import examples
from diffusion.guidance import Guidance
from diffusion.judging import nll
from diffusion.judging.judge import open_evaluator, open_extractor
from diffusion.metrics.base import Metric
from diffusion.metrics.bits import Bits
from diffusion.metrics.evaluator import Evaluator, eight_bits
from diffusion.samplers import Sampler
from diffusion.support import runs
from diffusion.support.console import machine
from diffusion.support.files import atomic
from diffusion.support.processes import Processes
from diffusion.support.specs import spec

STEPS = None  # of the bound that bits are measured by: T, or 1000


class Opened(NamedTuple):
    """A checkpoint, ready to be measured."""

    path: Path
    hash: str
    step: int
    model: Pipeline
    data: ImageData
    evaluator: Evaluator

    @property
    def folder(self) -> Path:
        return runs.directory(self.path) / "evaluation"


def open_models(paths: list[str], args: Namespace) -> list[tuple[Path, Pipeline]]:
    """The checkpoint files and their models."""
    files = [runs.find_checkpoint(path) for path in paths]
    found = [(file, Pipeline.load(file, args.weights, args.device, args.precision, args.compile)) for file in files]
    for _, model in found:
        model.denoiser.requires_grad_(False)
    return found


def open_runs(
    models: list[tuple[Path, Pipeline]], args: Namespace, data_options: dict, processes: Processes = Processes()
) -> list[Opened]:
    """The checkpoints with the judges of their data; the same judge for the same data.

    Raises:
        ValueError: they were trained on different data, so that no figures of theirs can be compared.
    """
    opened, judges = [], {}
    for path, model in models:
        data = open_data(path, **data_options)
        key = json.dumps(spec(data)["init_args"] | {"class": type(data).__name__, "batch_size": 0}, sort_keys=True)
        if key not in judges:
            data.prepare_data()
            extractor = open_extractor(data, args.features, model.device, processes)
            judges[key] = open_evaluator(data, extractor, processes)
        step = runs.read_checkpoint(path)["global_step"]
        opened.append(Opened(path, hashlib.sha256(path.read_bytes()).hexdigest()[:12], step, model, data, judges[key]))
    if len({run.evaluator.reference.hash for run in opened}) > 1:
        raise ValueError("these runs were trained on different data: their figures cannot be compared")
    return opened


def setting_of(run: Opened, args: Namespace, sampler: Sampler, guidance: Guidance) -> dict:
    """All that a figure depends on, in plain types."""
    return {
        "checkpoint": run.hash,
        "step": run.step,
        "weights": args.weights,
        "sampler": type(sampler).__name__,
        "sampler_args": spec(sampler)["init_args"],
        "steps": getattr(sampler, "steps", None),
        "guidance": spec(guidance),
        "scale": getattr(guidance, "scale", 1.0),
        "n": args.n,
        "seed": args.seed,
        "data": run.evaluator.data,
        "extractor": f"{run.evaluator.extractor.name}-{run.evaluator.extractor.hash}",
        "reference": run.evaluator.reference.hash,
        **({} if args.precision == "32" else {"precision": args.precision}),
    }


def measure(
    run: Opened,
    args: Namespace,
    sampler: Sampler,
    guidance: Guidance,
    metrics: list[Metric],
    bar: tqdm,
    processes: Processes = Processes(),
) -> dict:
    """The record of a setting: read where it was measured before, else sampled, judged and written.

    Processes share the samples and their features; all then have the same figures, and the first writes them.
    """
    setting = setting_of(run, args, sampler, guidance)
    place = run.folder / name_of(setting)
    record = json.loads(place.read_text()) if place.is_file() and not args.again else {"figures": []}
    record = processes.agreed(record)
    known = {figure["metric"] for figure in record["figures"]}
    missing = [metric for metric in metrics if not set(metric.better) <= known]
    if missing:
        images, y, seconds, evaluations = samples(
            run, args, sampler, guidance, place.with_suffix(".npz"), bar, processes
        )
        kept = run.evaluator.describe(images, run.model.condition(y).y)
        for metric in missing:
            if isinstance(metric, Bits):
                metric.bits = lambda split: bits(run, args, split)
        found = run.evaluator.figures(kept, missing)
        lines = {f["metric"]: f for f in record["figures"]}
        lines |= {f.name: {"metric": f.name, **f._asdict(), **line(setting)} for f in found}
        record = {
            "setting": setting,
            "reference": run.evaluator.provenance,
            "seconds": round(seconds, 2),
            "evaluations": evaluations,
            "machine": machine(run.model.device),
            "figures": [{k: v for k, v in f.items() if k != "name"} for f in lines.values()],
        }
        if processes.first:
            with atomic(place) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n")
    wanted = {name for metric in metrics for name in metric.better}
    return record | {"figures": [f for f in record["figures"] if f["metric"] in wanted], "file": str(place)}


def line(setting: dict) -> dict:
    """What every figure carries with it."""
    keys = ("weights", "sampler", "steps", "scale", "n", "extractor", "reference", "seed", "checkpoint")
    return {key: setting[key] for key in keys}


def name_of(setting: dict) -> str:
    """A file name that can be read, and is another for another setting."""
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:8]
    parts = (f"step{setting['step']:08d}", setting["weights"], setting["sampler"], setting["steps"] or 0)
    return "-".join(map(str, parts)) + f"-scale{setting['scale']:g}-n{setting['n']}-{digest}.json"


def samples(
    run: Opened,
    args: Namespace,
    sampler: Sampler,
    guidance: Guidance,
    file: Path,
    bar: tqdm,
    processes: Processes = Processes(),
) -> tuple[Tensor, Tensor | None, float, float]:
    """Images uint8 (n, C, H, W), what was asked for, seconds, and network evaluations an image; kept ones if any."""
    labelled = run.model.num_classes or run.model.context_dim
    y, image = run.evaluator.labels(args.n) if labelled else None, None
    if run.model.hint:
        y, image, _ = examples(run.model, run.data, args.n, args.seed)
    if processes.agreed(file.is_file() and not args.again):
        with np.load(file) as kept:
            return torch.from_numpy(kept["images"]).permute(0, 3, 1, 2), y, *map(float, kept["cost"])
    counted, done, begun = Counted(guidance, bar.update), [], time.perf_counter()
    share = processes.part(args.n)
    for first in range(share.start, share.stop, args.batch_size):
        part = slice(first, min(first + args.batch_size, share.stop))
        mine, its = (v if v is None else v[part] for v in (y, image))
        for frame in run.model.frames(part.stop - first, mine, args.seed, sampler, counted, first, its):  # noqa: B007
            pass
        done.append(eight_bits(frame.x).cpu())
    images, evaluations = processes.gather(torch.cat(done)), counted.images / (share.stop - share.start)
    seconds = processes.agreed(time.perf_counter() - begun)
    if args.keep and processes.first:
        asked = np.full(args.n, -1) if y is None else y.numpy()
        with atomic(file) as temporary:
            array = images.permute(0, 2, 3, 1).numpy()
            np.savez_compressed(temporary, images=array, labels=asked, cost=[seconds, evaluations])
    return images, y, seconds, evaluations


def bits(run: Opened, args: Namespace, split: str) -> Tensor:
    """Bits a dimension of the first 256 images of a split by the variational bound: (N,)."""
    images, y = (v[:256] for v in run.data.arrays(split))
    learned = run.model.denoiser.learn_variance
    asked = Namespace(
        method="vlb", steps=STEPS, variance="learned" if learned else "large", seed=args.seed, unconditional=False,
        batch_size=args.batch_size,
    )  # fmt: skip
    return nll.measure(asked, run.model, images, y)["vlb"].sum(0)
