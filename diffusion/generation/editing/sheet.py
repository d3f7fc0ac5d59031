"""Edits as sheets: the output of `diffusion edit` for a run and some pictures, row by row."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion import pictures
from diffusion.generation.cascade import Cascade
from diffusion.generation.choices import Choices
from diffusion.generation.conditions import repeated
from diffusion.generation.counting import counted
from diffusion.generation.editing.inputs import Inputs, from_files, from_tests
from diffusion.generation.editing.inversion import inverter
from diffusion.generation.editing.rows import (
    Edit,
    Job,
    Row,
    img2img_rows,
    img2img_work,
    inpaint_rows,
    inpaint_work,
    interpolate_rows,
    reconstruct_rows,
    stop_rows,
    vary_rows,
)
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.request import NAMES, Request
from diffusion.guidance import Plain
from diffusion.nets.threads import threads_restored
from diffusion.samplers import DDIM
from diffusion.support.console import progress
from diffusion.support.files import atomic, check_writable
from diffusion.support.scaling import arranged

MOST = 8  # pictures of the test set, if none are given


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


@threads_restored()
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
        rows, words = kind.rows(job._replace(pipeline=counted(job.pipeline, bar.update)[0]))
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
        pipeline = invertible(pipeline, run, request.choices)
    if verb.rows is stop_rows:
        y = pipeline.in_turn(n) if rows is None else repeated(rows, n)
        inputs = Inputs(torch.empty(0), y, f"seed {request.seed}")
        return Job(pipeline, edit, n, request.seed, request.batch_size, inputs)
    if edit.input:
        if edit.numbers or request.data:
            raise ValueError("input reads files, numbers and data read the run's test set; give one of the two")
        inputs = from_files(pipeline, edit.input)
    else:
        inputs = from_tests(pipeline, open_tests(request, pipeline), edit.numbers, MOST)
    if rows is not None:
        inputs = inputs._replace(y=repeated(rows, len(inputs.images)))
    return Job(pipeline, edit, n, request.seed, request.batch_size, inputs)


def invertible(pipeline: Pipeline, run: Pipeline, choices: Choices) -> Pipeline:
    """The pipeline with DDIM and without the run's guidance, which makes inversion less accurate, unless chosen.

    Args:
        pipeline: with the choices.
        run: without them.
    Raises:
        ValueError: the chosen sampler cannot be inverted.
    """
    if isinstance(pipeline, Cascade):  # choices are of its base
        base, last = invertible(pipeline.base, run.base, choices), invertible(pipeline.last, run.last, Choices())
        return replace(pipeline, base=base, sampler=last.sampler, guidance=last.guidance)
    if pipeline.guidance is run.guidance:
        pipeline = replace(pipeline, guidance=Plain())
    if not (choices.sampler or isinstance(pipeline.sampler, DDIM)):
        steps = choices.steps or inverter(pipeline).steps
        pipeline = replace(pipeline, sampler=DDIM(steps, grid=pipeline.sampler.grid))
    inverter(pipeline, pipeline.sampler)
    return pipeline


def open_tests(request: Request, pipeline: Pipeline) -> Any:
    """The run's data set; of a cascade that of its last stage, whose images have the size of the result.

    Raises:
        FileNotFoundError: the run's configuration is missing.
        ValueError: the stages of a cascade were trained on different data.
    """
    from diffusion.data.recorded import open_shared  # needs Lightning

    try:
        if not request.then:
            return request.open_data()
        return open_shared([request.run, *request.then], pipeline.class_names, **request.data)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; or give your own pictures with --input FILE.png") from error
