"""Edits as sheets: the output of `diffusion edit` for a run and some pictures, row by row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion import pictures
from diffusion.generation.conditions import repeated
from diffusion.generation.counting import Counted, evaluations
from diffusion.generation.editing.inpainting import inpaint, route
from diffusion.generation.editing.inputs import Inputs, from_files, from_tests, given_mask
from diffusion.generation.editing.inversion import interpolate, inverter, reconstruct, vary
from diffusion.generation.editing.midway import beginning, img2img, noised, stop
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.request import NAMES, Request
from diffusion.guidance import Plain
from diffusion.noise.draws import ImageDraws
from diffusion.noise.level import Level
from diffusion.samplers import DDIM
from diffusion.support.console import progress
from diffusion.support.files import atomic, check_writable
from diffusion.support.scaling import arranged

MOST = 8  # pictures of the test set, if none are given


@dataclass(frozen=True)
class Edit:
    """The arguments of an edit; each verb uses its own subset.

    Attributes:
        input: picture files of the model's size and channels, or .npy files.
        numbers: images of the run's test set instead; None is the first of each class.
        mask: for inpaint: left, right, top, bottom, center, random, with `:fraction`, or a picture file.
        jumps: for inpaint: number of repetitions of each segment of the walk.
        length: for inpaint: levels per segment.
        strength: for img2img, in [0, 1]: 0 is the picture, 1 pure noise.
        amount: for vary, in [0, 1]: 0 is the picture, 1 a new sample.
        iterations: for interpolate, vary and reconstruct: network evaluations to invert a step.
        at: for stop: times in [0, 1], 1 is noise and 0 clean.
    """

    input: Sequence[str | Path] = ()
    numbers: Sequence[int] | None = None
    mask: str = "right"
    jumps: int = 10
    length: int = 5
    strength: float = 0.5
    amount: float = 0.3
    iterations: int = 5
    at: Sequence[float] = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


class Row(NamedTuple):
    """A row of the sheet: its title and images (K, C, H, W)."""

    title: str
    images: Tensor


class Job(NamedTuple):
    """The inputs of a verb.

    Attributes:
        pipeline: the model with the chosen sampler and guidance.
        n: results per picture; pictures per row for interpolate; samples for stop.
        inputs: pictures to edit; none for stop, where `y` is that of the samples.
    """

    pipeline: Pipeline
    edit: Edit
    n: int
    seed: int
    batch_size: int
    inputs: Inputs

    @property
    def how(self) -> dict[str, Any]:
        return {"sampler": self.pipeline.sampler, "guidance": self.pipeline.guidance, "batch_size": self.batch_size}


class Sheet(NamedTuple):
    """Rows of pictures, a description of the edit, and its inputs."""

    rows: list[Row]
    words: str
    job: Job

    def save(self, out: Path) -> None:
        """Write a .png sheet, or a .npz with the raw rows (K, H, W, C) as arrays by title, atomically."""
        pipeline = self.job.pipeline
        if out.suffix == ".png":
            images = [pipeline.picture(row.images) for row in self.rows]
            pictures.save_png(pictures.grid(np.concatenate(images), len(images[0])), out)
        else:
            with atomic(out) as temporary:
                arrays = {row.title: arranged(pipeline.scaling.decode(row.images)) for row in self.rows}
                np.savez_compressed(temporary, **arrays)


# --- the verbs ------------------------------------------------------------------------------------------


def inpaint_rows(job: Job) -> tuple[list[Row], str]:
    edit, x0 = job.edit, job.inputs.images
    mask, words = given_mask(edit.mask, job.pipeline.shape, job.seed)
    rows = [Row("input", x0), Row("masked", x0.masked_fill(mask, 0.0))]
    for seed in range(job.seed, job.seed + job.n):
        how = {"jumps": edit.jumps, "length": edit.length} | job.how
        rows.append(Row(f"result, seed {seed}", inpaint(job.pipeline, x0, mask, job.inputs.y, seed, **how)))
    return rows, f"{words}, {edit.jumps} jumps of {edit.length} levels"


def img2img_rows(job: Job) -> tuple[list[Row], str]:
    strength, x0, sampler = job.edit.strength, job.inputs.images, job.pipeline.sampler
    schedule = job.pipeline.denoiser.schedule
    start = beginning(sampler, schedule, strength)
    t = sampler.levels(schedule)[start]
    x = noised(x0, sampler, schedule, start, ImageDraws(job.seed, range(len(x0))))
    rows = [Row("input", x0), Row(f"noised to t = {float(t.t):.3g}, seed {job.seed}", x / std(t))]
    for seed in range(job.seed, job.seed + job.n):
        rows.append(Row(f"result, seed {seed}", img2img(job.pipeline, x0, strength, job.inputs.y, seed, **job.how)))
    return rows, f"strength {strength:g}: {sampler.steps - start} of the steps"


def interpolate_rows(job: Job) -> tuple[list[Row], str]:
    x0, y, _ = job.inputs
    if len(x0) < 2:
        raise ValueError("interpolate: wanted at least two pictures; give them, e.g. --numbers 0,1")
    labels = (None, None) if y is None else (y[:-1], y[1:])
    made = interpolate(job.pipeline, x0[:-1], x0[1:], job.n, *labels, iterations=job.edit.iterations, **job.how)
    rows = [Row(f"from picture {k} to {k + 1}", row) for k, row in enumerate(made, 1)]
    off = torch.stack([made[:, 0] - x0[:-1], made[:, -1] - x0[1:]]).square().mean().sqrt()
    return rows, f"{job.n} pictures per row, the ends differ by {float(off):.2g} rms from the given pictures"


def vary_rows(job: Job) -> tuple[list[Row], str]:
    (x0, y, _), amount = job.inputs, job.edit.amount
    made = vary(job.pipeline, x0, amount, job.n, y, job.seed, iterations=job.edit.iterations, **job.how)
    rows = [Row(f"variation, seed {job.seed + k}", made[:, k]) for k in range(job.n)]
    return [Row("input", x0), *rows], f"amount {amount:g}"


def reconstruct_rows(job: Job) -> tuple[list[Row], str]:
    x0, y, _ = job.inputs
    made, error = reconstruct(job.pipeline, x0, y, iterations=job.edit.iterations, **job.how)
    errors = " ".join(f"{e:.2g}" for e in error.tolist())
    return [Row("input", x0), Row("there and back", made)], f"rms error of each, in [-1, 1]: {errors}"


def stop_rows(job: Job) -> tuple[list[Row], str]:
    frames = stop(job.pipeline, job.edit.at, job.n, job.inputs.y, job.seed, guidance=job.pipeline.guidance)
    rows = []
    for k in range(job.n):
        rows.append(Row(f"picture {k + 1}: x_t", torch.stack([(f.x / std(f.t))[k].cpu() for f in frames])))
        rows.append(Row(f"picture {k + 1}: predicted x_0", torch.stack([f.x0[k].cpu() for f in frames])))
    return rows, "columns t = " + ", ".join(f"{float(f.t.t):.3g}" for f in frames)


def std(t: Level) -> float:
    """The standard deviation of x_t if that of x_0 is 1, by which states are divided for display."""
    return float(t.alpha**2 + t.sigma**2) ** 0.5


# --- their work, for the progress bar -------------------------------------------------------------------


def per_step(job: Job) -> float:
    """Network evaluations per sampler step."""
    return evaluations(job.pipeline.sampler, job.pipeline.denoiser.schedule) / job.pipeline.sampler.steps


def inpaint_work(job: Job) -> float:
    """Images times network evaluations."""
    steps = route(job.pipeline.sampler.steps, job.edit.jumps, job.edit.length)
    forward = sum(to > k for k, to in zip([0, *steps], steps, strict=False))
    return forward * per_step(job) * job.n * len(job.inputs.images)


def img2img_work(job: Job) -> float:
    """Images times network evaluations."""
    start = beginning(job.pipeline.sampler, job.pipeline.denoiser.schedule, job.edit.strength)
    return (job.pipeline.sampler.steps - start) * per_step(job) * job.n * len(job.inputs.images)


class Verb(NamedTuple):
    """An edit: its description, the fields of `Edit` that it uses, and its default n (0: unused)."""

    rows: Callable[[Job], tuple[list[Row], str]]
    does: str
    options: tuple[str, ...]
    n: int = 0
    n_of: str = "results per picture, with consecutive seeds"
    inverts: bool = False
    work: Callable[[Job], float] | None = None  # None: unknown


VERBS = {
    "inpaint": Verb(inpaint_rows, "repaint a part (RePaint)", ("mask", "jumps", "length"), 1, work=inpaint_work),
    "img2img": Verb(img2img_rows, "start from a noised picture (SDEdit)", ("strength",), 1, work=img2img_work),
    "interpolate": Verb(
        interpolate_rows, "interpolate from each picture to the next", ("iterations",), 9,
        "pictures per row, both ends included", True,
    ),
    "vary": Verb(vary_rows, "variations near a picture", ("amount", "iterations"), 3, inverts=True),
    "reconstruct": Verb(reconstruct_rows, "invert to noise and back, with the error", ("iterations",), inverts=True),
    "stop": Verb(stop_rows, "show x_t and the predicted x_0 during sampling", ("at",), 3, "pictures, two rows each"),
}  # fmt: skip


def edit(verb: str, run: str | Path | Pipeline, out: str | Path | None = None, **options: Any) -> dict[str, Tensor]:
    """Edit pictures with a trained model: the rows of `diffusion edit`'s sheet, images (K, C, H, W) by their titles.

    Those of 8-bit data are in [-1, 1]; of other data they have its type and its units.

    Args:
        verb: inpaint, img2img, interpolate, vary, reconstruct or stop.
        run: run directory, experiment folder (its newest run), checkpoint file, or an open pipeline.
        out: a .png or .npz file to write as well.
        options: the fields of `Edit`, and the keywords of `sample` (n, seed, label, sampler, scale, ...).
    Raises:
        FileNotFoundError: there is no checkpoint, or no test image.
        ValueError: an unknown verb, or options that contradict each other or the model.
    """
    own = {f.name: options.pop(f.name) for f in fields(Edit) if f.name in options}
    words = {name: options.pop(name) for name in list(options) if name in NAMES}
    sheet = perform(verb, Request.of(run, options, **words), Edit(**own), None if out is None else Path(out))
    return {row.title: sheet.job.pipeline.in_units(row.images) for row in sheet.rows}


def perform(verb: str, request: Request, edit: Edit, out: Path | None = None) -> Sheet:
    """Validate the request, edit, and write the sheet if a file is given.

    Raises:
        FileNotFoundError: there is no checkpoint, or no test image.
        ValueError: an unknown verb, or options that contradict each other or the model.
    """
    if verb not in VERBS:
        raise ValueError(f"edit: wanted one of {', '.join(VERBS)}, got {verb!r}")
    if out is not None and out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out {out}: wanted a .png or a .npz")
    if out is not None:
        check_writable(out)
    kind, job = VERBS[verb], prepare(VERBS[verb], request, edit)
    with progress(kind.work and round(kind.work(job))) as bar:
        counted = Counted(job.pipeline.guidance, bar.update)
        rows, words = kind.rows(job._replace(pipeline=replace(job.pipeline, guidance=counted)))
    sheet = Sheet(rows, words, job)
    if out is not None:
        sheet.save(out)
    return sheet


def prepare(verb: Verb, request: Request, edit: Edit) -> Job:
    """The model and the pictures, validated before any work."""
    n = verb.n if request.n is None else request.n
    if verb.n and n < 1 or request.batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {request.batch_size}")
    run = request.load()
    pipeline = request.choices.apply(run)
    rows = request.asked.rows(pipeline)  # unsupported conditions are rejected before pictures are read
    if verb.inverts:
        if pipeline.guidance is run.guidance:  # guidance makes inversion less accurate
            pipeline = replace(pipeline, guidance=Plain())
        if not (request.choices.sampler or isinstance(pipeline.sampler, DDIM)):  # the run's own is not invertible
            steps = request.choices.steps or inverter(pipeline).steps
            pipeline = replace(pipeline, sampler=DDIM(steps, grid=pipeline.sampler.grid))
        inverter(pipeline, pipeline.sampler)
    if verb.rows is stop_rows:
        y = pipeline.in_turn(n) if rows is None else repeated(rows, n)
        inputs = Inputs(torch.empty(0), y, f"seed {request.seed}")
        return Job(pipeline, edit, n, request.seed, request.batch_size, inputs)
    if edit.input:
        if edit.numbers or request.data:
            raise ValueError("input reads files, numbers and data read the run's test set; give one of the two")
        inputs = from_files(pipeline, edit.input)
    else:
        inputs = from_tests(pipeline, open_tests(request), edit.numbers, MOST)
    if rows is not None:
        inputs = inputs._replace(y=repeated(rows, len(inputs.images)))
    return Job(pipeline, edit, n, request.seed, request.batch_size, inputs)


def open_tests(request: Request) -> Any:
    """The run's data set.

    Raises:
        FileNotFoundError: the run's configuration is missing.
    """
    try:
        return request.open_data()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; or give your own pictures with --input FILE.png") from error
