"""An evaluation from request to table: open the runs, sample and measure every setting, and format the results."""

from collections.abc import Callable
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffusion.data import ImageData
from diffusion.generation.counting import cost
from diffusion.judging import reconstructions, sweep, table
from diffusion.judging.measure import Job, Run, labels_of, measure, open_pipelines, open_runs, with_width
from diffusion.judging.request import Request
from diffusion.judging.table import Table
from diffusion.metrics.base import Features, Metric
from diffusion.metrics.bits import Bits
from diffusion.nets.threads import threads_restored
from diffusion.support.console import progress
from diffusion.support.processes import Processes


@threads_restored()
def answer(
    request: Request,
    processes: Processes = Processes(),
    train: Callable[[ImageData], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Table:
    """Measure every run in every setting, or the reconstructions of an autoencoder.

    Args:
        processes: share the work; every process must call this.
        train: trains a missing extractor, see `judge.open_extractor`.
        tell: called with each of the table's notes before sampling begins.
    Raises:
        FileNotFoundError: no checkpoint, no configuration beside it, or no data.
        ValueError: runs, settings or metrics that are incompatible.
    """
    if autoencoder := reconstructions.autoencoder_of(request):
        return reconstructions.answer(autoencoder, request, processes, train)
    pipelines, settings = open_pipelines(request), request.settings()
    chosen = [[request.choices_of(s).apply(with_width(request, s, *pair)) for s in settings] for pair in pipelines]
    runs = open_runs(pipelines, request, processes, train)
    jobs = [
        [Job(run, *pair) for pair in zip(settings, row, strict=True)] for run, row in zip(runs, chosen, strict=True)
    ]
    notes = [f"judge: {described(runs[0])}", *(f"warning: {w}" for w in runs[0].evaluator.warnings(request.n))]
    metrics = []
    for row in jobs:
        usable, left_out = measurable(row, request)
        metrics.append(usable)
        notes += [note for note in left_out if note not in notes]
    for note in notes if tell else ():
        tell(note)
    records = measured(jobs, metrics, request, processes)
    if not processes.first:
        return Table(tuple(r for row in records for r in row), "", notes=tuple(notes))
    return in_words(runs, records, request, notes)


def measured(
    jobs: list[list[Job]], metrics: list[list[Metric]], request: Request, processes: Processes
) -> list[list[dict]]:
    """The records of every job, run by run, with a progress bar of network evaluations."""
    share = processes.part(request.n)
    n = share.stop - share.start
    work = [[n * cost(job.pipeline) for job in row] for row in jobs]
    records = []
    with progress(sum(map(sum, work)), processes) as bar:
        for row, amounts, kinds in zip(jobs, work, metrics, strict=True):
            records.append([])
            for job, amount in zip(row, amounts, strict=True):
                before = name_bar(bar, job)
                records[-1].append(measure(job, request, kinds, bar, processes))
                bar.update(amount - (bar.n - before))  # read from a file
    return records


def name_bar(bar: tqdm, job: Job) -> float:
    """Describe the job on the bar, and return the bar's position."""
    sampler = job.pipeline.first.sampler
    bar.set_description(f"{type(sampler).__name__} {getattr(sampler, 'steps', '')}".strip(), refresh=False)
    return bar.n


def measurable(jobs: list[Job], request: Request) -> tuple[list[Metric], list[str]]:
    """The metrics that apply to every setting of a run, and the reasons for leaving out others.

    Raises:
        ValueError: a metric that was requested by name does not apply.
    """
    usable, left_out = [], []
    reference = jobs[0].run.evaluator.reference
    likes = [like(job, request.n) for job in jobs]
    for kind in request.chosen_metrics(labelled=jobs[0].run.evaluator.labelled):
        reasons = (kind.missing(samples, reference) for samples in likes)
        reason = "" if isinstance(kind, Bits) else next(filter(None, reasons), "")
        if reason and request.metrics:
            raise ValueError(f"metrics {kind.key}: {reason}")
        if reason:
            left_out.append(f"left out {kind.key}: {reason}")
        else:
            usable.append(kind)
    return usable, left_out


def like(job: Job, n: int) -> Features:
    """Placeholder features with the number, widths and labels of a job's n samples, before any is generated."""
    evaluator = job.run.evaluator
    real = evaluator.reference.train
    parts = (v[:1].expand(n, *[-1] * (v.ndim - 1)) for v in (real.features, real.logits))
    images = torch.zeros(1, *real.images.shape[1:]).expand(n, -1, -1, -1)
    return Features(images, *parts, evaluator.classes(labels_of(job, n)))


def described(run: Run) -> str:
    """A description of the judge."""
    extractor, reference = run.evaluator.extractor, run.evaluator.reference
    test, right = reference.test, ""
    if extractor.class_names:
        share = float((test.logits.argmax(1) == test.labels).float().mean())
        right = f", right on {share:.1%} of the {len(test):,} test images"
    return (
        f"{extractor.name} {extractor.hash}, {test.features.shape[1]:,} features{right}; compared with the "
        f"{len(reference.train):,} training images of {run.evaluator.data}, reference {reference.hash}"
    )


def in_words(runs: list[Run], records: list[list[dict]], request: Request, notes: list[str]) -> Table:
    """The table of all records; a sweep and its plots are also written beside the figures of its run."""
    if request.sweep:
        texts, files, rows = [], [], []
        for run, mine in zip(runs, records, strict=True):
            mine = sweep.in_order(mine)
            text, recommended = sweep.report(run.path, mine)
            text += table.footnote(run.evaluator.extractor.note)
            written, lack = sweep.write(run.folder, mine, recommended)
            texts.append(f"{text}\n{lack}" if lack else text)
            files, rows = [*files, *written], [*rows, *mine]
        return Table(tuple(rows), "\n".join(texts), tuple(files), tuple(notes))
    rows = [record for row in records for record in row]
    text = table.compared(rows, [run.path for run in runs]) if len(runs) > 1 else table.one(rows[0])
    text += table.footnote(runs[0].evaluator.extractor.note)
    return Table(tuple(rows), text, tuple(Path(r["file"]) for r in rows), tuple(notes))
