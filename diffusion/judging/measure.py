"""Samples of a run, measured in one setting; figures are cached in a file."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion.data import ImageData
from diffusion.data.recorded import open_shared
from diffusion.denoiser import averages
from diffusion.denoiser.saved import load_weights, trimmed, untold
from diffusion.generation.cascade import Cascade
from diffusion.generation.choices import Choices
from diffusion.generation.counting import counted
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.sheets import examples
from diffusion.judging import nll
from diffusion.judging.judge import open_evaluator, open_extractor
from diffusion.judging.request import Request
from diffusion.judging.sweep import WIDTH
from diffusion.metrics.base import Metric
from diffusion.metrics.bits import Bits
from diffusion.metrics.evaluator import Evaluator
from diffusion.support import runs, zoo
from diffusion.support.console import machine
from diffusion.support.files import atomic, digest
from diffusion.support.processes import Processes
from diffusion.support.specs import spec

BITS = 256  # images per split whose bits are measured


class Run(NamedTuple):
    """An open checkpoint and the evaluator of its data."""

    path: Path
    hash: str
    step: int
    pipeline: Pipeline  # with the run's own sampler and guidance
    data: ImageData
    evaluator: Evaluator

    @property
    def folder(self) -> Path:
        """The folder of the run's figures."""
        return zoo.kept(runs.directory(self.path)) / "evaluation"


class Job(NamedTuple):
    """One run in one setting of the sweep."""

    run: Run
    setting: dict
    pipeline: Pipeline  # with the setting's sampler and guidance


def open_pipelines(request: Request) -> list[tuple[Path, Pipeline]]:
    """The checkpoint files of the runs, and their frozen models; of cascades the file is that of the last stage."""
    how = request.weights, request.device, request.precision, request.compile, request.engine, request.threads
    rows = min(request.n, request.batch_size)
    opened = []
    for run in request.runs:
        files = files_of(run, request)
        stages = [Pipeline.load(file, *how, rows) for file in files]
        for stage in stages:
            stage.denoiser.requires_grad_(False)
        opened.append((files[-1], Cascade.of(*stages)))
    return opened


def with_width(request: Request, setting: Mapping[str, Any], path: Path, pipeline: Pipeline) -> Pipeline:
    """The pipeline of a run with the average of its weights of the setting's width, or as it is without one.

    Raises:
        FileNotFoundError: the run has no snapshots of averages.
        ValueError: a width together with other weights, or a width out of range.
    """
    if WIDTH not in setting:
        return pipeline
    if request.then or request.weights == "raw" or request.engine != "torch":
        raise ValueError(
            f"sweep: {WIDTH} is of averaged weights of a single model; leave out --then, --weights, --engine"
        )
    read = runs.read_checkpoint(path)
    made = averages.averaged(runs.directory(path), setting[WIDTH], read["global_step"])
    own = Pipeline.load(path, request.weights, request.device, request.precision, request.compile)
    own.denoiser.requires_grad_(False)
    told = untold(read["hyper_parameters"])[1]
    state = trimmed(read["state_dict"] | made.weights, own.denoiser.net, told)
    load_weights(own.denoiser, state, path, "denoiser.")
    return own


def files_of(run: str | Path, request: Request) -> list[Path]:
    """The checkpoint files of a run and of the stages after it."""
    return [runs.find_checkpoint(stage) for stage in (run, *request.then)]


def open_runs(
    pipelines: list[tuple[Path, Pipeline]],
    request: Request,
    processes: Processes = Processes(),
    train: Callable[[ImageData], None] | None = None,
) -> list[Run]:
    """The checkpoints with the evaluators of their data; one evaluator for runs on the same data.

    Args:
        train: see `open_extractor`.
    Raises:
        ValueError: the runs were trained on different data, and their figures are not comparable.
    """
    opened, evaluators = [], {}
    for run, (path, pipeline) in zip(request.runs, pipelines, strict=True):
        stages = files_of(run, request)
        data = open_shared(stages, pipeline.class_names, **request.data)
        key = json.dumps(spec(data)["init_args"] | {"class": type(data).__name__, "batch_size": 0}, sort_keys=True)
        if key not in evaluators:
            data.prepare_data()
            extractor = open_extractor(data, request.features, pipeline.device, processes, train)
            evaluators[key] = open_evaluator(data, extractor, processes)
        step = runs.read_checkpoint(path)["global_step"]
        made = digest(*stages)[:12]
        opened.append(Run(path, made, step, pipeline, data, evaluators[key]))
    if len({run.evaluator.reference.hash for run in opened}) > 1:
        raise ValueError("these runs were trained on different data, so their figures are not comparable")
    return opened


def setting_of(job: Job, request: Request) -> dict:
    """Everything that a figure depends on, in plain types."""
    run, first = job.run, job.pipeline.first
    sampler, guidance = first.sampler, first.guidance
    return {
        "checkpoint": run.hash,
        "step": run.step,
        "weights": request.weights,
        "sampler": type(sampler).__name__,
        "sampler_args": spec(sampler)["init_args"],
        "steps": getattr(sampler, "steps", None),
        "guidance": spec(guidance),
        "scale": getattr(guidance, "scale", 1.0),
        "n": request.n,
        "seed": request.seed,
        "data": run.evaluator.data,
        "extractor": f"{run.evaluator.extractor.name}-{run.evaluator.extractor.hash}",
        "reference": run.evaluator.reference.hash,
        **({} if request.precision == "32" else {"precision": request.precision}),
        **({} if (engine := engine_of(job.pipeline)) == "torch" else {"engine": engine}),
        **({WIDTH: job.setting[WIDTH]} if WIDTH in job.setting else {}),
        **({"cascade": job.pipeline.setting} if isinstance(job.pipeline, Cascade) else {}),
    }


def engine_of(pipeline: Pipeline) -> str:
    """The way in which the networks of all stages are evaluated; the ways in turn if they differ."""
    return ", then ".join(dict.fromkeys(stage.engine for stage in pipeline.stages))


def given(choices: Choices) -> dict[str, str | float]:
    """The choices that hold for all settings of a sweep, by the names of their options."""
    named = {field.name.replace("_", "-"): getattr(choices, field.name) for field in fields(choices)}
    return {k: v for k, v in (named | dict(choices.arguments)).items() if isinstance(v, (str, int, float))}


def measure(job: Job, request: Request, metrics: list[Metric], bar: tqdm, processes: Processes = Processes()) -> dict:
    """The record of a job: read from its file if it was measured before, else sampled, measured and written.

    Processes share the samples and their features; all obtain the same figures, and the first writes them.
    """
    run, setting = job.run, setting_of(job, request)
    file = run.folder / file_name(setting)
    record = json.loads(file.read_text()) if file.is_file() and not request.again else {"figures": []}
    record = processes.agreed(record)
    known = {figure["metric"] for figure in record["figures"]}
    missing = [metric for metric in metrics if not set(metric.better) <= known]
    if missing:
        images, y, seconds, evaluations = samples(job, request, file.with_suffix(".npz"), bar, processes)
        described = run.evaluator.describe(images, job.pipeline.condition(y).y)
        missing = [Bits(bits(run, request)) if isinstance(metric, Bits) else metric for metric in missing]
        found = run.evaluator.figures(described, missing)
        lines = {f["metric"]: f for f in record["figures"]}
        lines |= {f.name: {"metric": f.name, **f._asdict(), **line(setting)} for f in found}
        record = {
            "setting": setting,
            "reference": run.evaluator.provenance,
            "seconds": round(seconds, 2),
            "evaluations": evaluations,
            "machine": machine(job.pipeline.device),
            "figures": [{k: v for k, v in f.items() if k != "name"} for f in lines.values()],
        }
        if processes.first:
            with atomic(file) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n")
    wanted = {name for metric in metrics for name in metric.better}
    figures = [f for f in record["figures"] if f["metric"] in wanted]
    return record | {"figures": figures, "file": str(file), "asked": job.setting, "given": given(request.choices)}


def line(setting: dict) -> dict:
    """The part of a setting that is stored with every figure."""
    keys = ("weights", "sampler", "steps", "scale", "n", "extractor", "reference", "seed", "checkpoint")
    return {key: setting[key] for key in keys}


def file_name(setting: dict) -> str:
    """A readable file name, unique to the setting."""
    key = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:8]
    parts = (f"step{setting['step']:08d}", setting["weights"], setting["sampler"], setting["steps"] or 0)
    return "-".join(map(str, parts)) + f"-scale{setting['scale']:g}-n{setting['n']}-{key}.json"


def labels_of(job: Job, n: int) -> Tensor | None:
    """The labels or contexts of n samples, in the proportions of the training set; None if the model takes none."""
    return job.run.evaluator.labels(n) if job.pipeline.conditional else None


def samples(
    job: Job, request: Request, file: Path, bar: tqdm, processes: Processes = Processes()
) -> tuple[Tensor, Tensor | None, float, float]:
    """Raw images (n, C, H, W), their labels or contexts, seconds, and network evaluations per image.

    Args:
        file: kept samples, read if it exists, and written if the request keeps them.
    """
    pipeline, n = job.pipeline, request.n
    y, image = labels_of(job, n), None
    if pipeline.hint and not isinstance(pipeline, Cascade):
        y, image, *_ = examples(pipeline, job.run.data, n, request.seed)
    if processes.agreed(file.is_file() and not request.again):
        with np.load(file) as kept:
            return torch.from_numpy(kept["images"]).permute(0, 3, 1, 2), y, *map(float, kept["cost"])
    pipeline, counters = counted(pipeline, bar.update)
    done, begun = [], time.perf_counter()
    share = processes.part(n)
    for first in range(share.start, share.stop, request.batch_size):
        part = slice(first, min(first + request.batch_size, share.stop))
        mine, its = (v if v is None else v[part] for v in (y, image))
        frames = pipeline.frames(part.stop - first, mine, request.seed, first=first, image=its)
        for frame in frames:  # noqa: B007
            pass
        done.append(pipeline.scaling.decode(frame.x).cpu())
    images = processes.gather(torch.cat(done))
    evaluations = sum(counter.images for counter in counters) / (share.stop - share.start)
    seconds = processes.agreed(time.perf_counter() - begun)
    if request.keep and processes.first:
        labels = np.full(n, -1) if y is None else y.numpy()
        with atomic(file) as temporary:
            array = images.permute(0, 2, 3, 1).numpy()
            np.savez_compressed(temporary, images=array, labels=labels, cost=[seconds, evaluations])
    return images, y, seconds, evaluations


def bits(run: Run, request: Request) -> dict[str, Tensor]:
    """Bits per dimension of the first images of each split by the variational bound, (N,) each."""
    how = nll.Request(run.path, "vlb", steps=request.bound, seed=request.seed, batch_size=request.batch_size)
    found = {}
    for split in ("test", "train"):
        index = torch.arange(min(BITS, len(run.data.store(split)[0])))
        images, y = run.data.some(split, index)
        found[split] = nll.measure(how, run.pipeline, images, y, run.pipeline.pair(run.data, split, index)).vlb.sum(0)
    return found
