"""The rows of an edit's sheet: what each verb generates for some pictures, and how much work that is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.generation.counting import evaluations
from diffusion.generation.editing.inpainting import inpaint, route
from diffusion.generation.editing.inputs import Inputs, given_mask
from diffusion.generation.editing.inversion import interpolate, reconstruct, vary
from diffusion.generation.editing.midway import beginning, img2img, noised, stop
from diffusion.generation.pipeline import Pipeline
from diffusion.noise.draws import ImageDraws
from diffusion.noise.level import Level


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


# --- the verbs ------------------------------------------------------------------------------------------


def inpaint_rows(job: Job) -> tuple[list[Row], str]:
    """The input, the masked input and a row per seed; with the words for the mask."""
    edit, x0 = job.edit, job.inputs.images
    mask, words = given_mask(edit.mask, job.pipeline.shape, job.seed)
    rows = [Row("input", x0), Row("masked", x0.masked_fill(mask, 0.0))]
    for seed in range(job.seed, job.seed + job.n):
        how = {"jumps": edit.jumps, "length": edit.length} | job.how
        rows.append(Row(f"result, seed {seed}", inpaint(job.pipeline, x0, mask, job.inputs.y, seed, **how)))
    return rows, f"{words}, {edit.jumps} jumps of {edit.length} levels"


def img2img_rows(job: Job) -> tuple[list[Row], str]:
    """The input, its noised form and a row per seed; with the words for the strength."""
    strength, x0, sampler = job.edit.strength, job.inputs.images, job.pipeline.sampler
    schedule = job.pipeline.denoiser.schedule
    start = beginning(sampler, schedule, strength)
    t = sampler.levels(schedule)[start]
    x = noised(x0, sampler, schedule, start, ImageDraws(job.pipeline.stream(job.seed), range(len(x0))))
    rows = [Row("input", x0), Row(f"noised to t = {float(t.t):.3g}, seed {job.seed}", x / std(t))]
    for seed in range(job.seed, job.seed + job.n):
        rows.append(Row(f"result, seed {seed}", img2img(job.pipeline, x0, strength, job.inputs.y, seed, **job.how)))
    return rows, f"strength {strength:g}: {sampler.steps - start} of the steps"


def interpolate_rows(job: Job) -> tuple[list[Row], str]:
    """A row from each picture to the next."""
    x0, y, _ = job.inputs
    if len(x0) < 2:
        raise ValueError("interpolate: wanted at least two pictures; give them, e.g. --numbers 0,1")
    labels = (None, None) if y is None else (y[:-1], y[1:])
    made = interpolate(job.pipeline, x0[:-1], x0[1:], job.n, *labels, iterations=job.edit.iterations, **job.how)
    rows = [Row(f"from picture {k} to {k + 1}", row) for k, row in enumerate(made, 1)]
    off = torch.stack([made[:, 0] - x0[:-1], made[:, -1] - x0[1:]]).square().mean().sqrt()
    return rows, f"{job.n} pictures per row, the ends differ by {float(off):.2g} rms from the given pictures"


def vary_rows(job: Job) -> tuple[list[Row], str]:
    """The input and a row per variation; with the words for the amount."""
    (x0, y, _), amount = job.inputs, job.edit.amount
    made = vary(job.pipeline, x0, amount, job.n, y, job.seed, iterations=job.edit.iterations, **job.how)
    rows = [Row(f"variation, seed {job.seed + k}", made[:, k]) for k in range(job.n)]
    return [Row("input", x0), *rows], f"amount {amount:g}"


def reconstruct_rows(job: Job) -> tuple[list[Row], str]:
    """The input and its reconstruction; with the error of each picture."""
    x0, y, _ = job.inputs
    made, error = reconstruct(job.pipeline, x0, y, iterations=job.edit.iterations, **job.how)
    errors = " ".join(f"{e:.2g}" for e in error.tolist())
    return [Row("input", x0), Row("there and back", made)], f"rms error of each, in [-1, 1]: {errors}"


def stop_rows(job: Job) -> tuple[list[Row], str]:
    """x_t and the predicted x_0 of each picture, a column per time."""
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


def work(job: Job, steps: Callable[[Pipeline], int]) -> float:
    """Images times network evaluations of all stages, from the number of sampler steps of each."""
    each = (steps(p) * evaluations(p.sampler, p.denoiser.schedule) / p.sampler.steps for p in job.pipeline.stages)
    return sum(each) * job.n * len(job.inputs.images)


def inpaint_work(job: Job) -> float:
    """Images times network evaluations."""

    def forward(pipeline: Pipeline) -> int:
        places = route(pipeline.sampler.steps, job.edit.jumps, job.edit.length)
        return sum(to > k for k, to in zip([0, *places], places, strict=False))

    return work(job, forward)


def img2img_work(job: Job) -> float:
    """Images times network evaluations."""
    strength = job.edit.strength
    return work(job, lambda p: p.sampler.steps - beginning(p.sampler, p.denoiser.schedule, strength))
