"""Sampling of pictures: as a tensor, a grid, an array file, or a folder of files."""

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion import pictures
from diffusion.denoiser.hints import Paired
from diffusion.generation.engine import Engine
from diffusion.generation.nearest import COLUMNS, Nearest, nearest_images, sheet, training_images
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.request import Request
from diffusion.generation.sheets import Opened, save_sheet
from diffusion.guidance import Guidance
from diffusion.nets.threads import threads_restored
from diffusion.samplers import Sampler
from diffusion.support.files import check_writable
from diffusion.support.processes import Processes, together
from diffusion.support.scaling import LAST, Scaling, arranged

PICTURES = 64  # unless a number is given


@threads_restored()
def sample(
    run: str | Path | Pipeline,
    n: int | None = None,
    *,
    label: int | str | None = None,
    labels: Any = None,
    context: Any = (),
    prompt: str | Sequence[str] = (),
    between: int = 0,
    each: bool = False,
    image: str | None = None,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    guidance: str | Guidance | None = None,
    scale: float | None = None,
    w: float | None = None,
    rescale: float | None = None,
    negative: str | None = None,
    interval: str | tuple[float, float] | None = None,
    guide: str | None = None,
    classifier: str | None = None,
    clip_prompt: str | None = None,
    clip: str | None = None,
    clip_scale: float | None = None,
    seed: int = 0,
    weights: Literal["ema", "raw"] = "ema",
    batch_size: int = 256,
    device: str = "auto",
    precision: Literal["32", "bf16"] = "32",
    compile: str = "",
    engine: Engine = "torch",
    threads: int | str | None = None,
    data: Mapping[str, Any] | None = None,
    then: str | Path | Pipeline | Sequence[str | Path | Pipeline] = (),
    augment: float | Sequence[float] | None = None,
    nearest: int = 0,
    progress: bool = False,
    **arguments: Any,
) -> Tensor:
    """Pictures (n, C, H, W) of a trained model, on the CPU: what `diffusion sample` writes.

    With `nearest`, (n, 1 + nearest, C, H, W): each picture, then the training images nearest to it in pixels.

    Those of 8-bit data are in [-1, 1]; of other data they have its type and its units.

    Args:
        run: run directory, experiment folder (its newest run), checkpoint file, or an open pipeline.
        n: pictures, 64 by default; the number of labels, mixes or prompts if several are given.
        label, labels, context, prompt, between, each, image: the conditions, see `conditions.Asked`.
        sampler, steps, guidance, scale, w, rescale, negative, interval, guide, classifier, clip_prompt, clip,
            clip_scale: how they are sampled, see `choices.Choices`; the run's own by default.
        seed: picture k is a function of (seed, k) and its condition alone.
        weights: averaged or raw.
        batch_size: pictures per batch; it does not change them.
        device, precision, compile, engine, threads: see `Pipeline.load`.
        data: overrides of the data set's arguments, for image="test".
        then: super-resolution models that enlarge the pictures one after the other, see `cascade.Cascade`.
        augment: noise on the input of each of them, one strength or one per model; 0 by default.
        nearest: training images beside each picture, the nearest first; n is then 10 by default.
        progress: show a progress bar.
        arguments: further arguments of the sampler and the guidance, e.g. eta=0.5.
    Raises:
        FileNotFoundError: there is no checkpoint, or for `nearest` no data.
        ValueError: choices and conditions that contradict each other, or that the model does not support.
    """
    request = Request.of(
        run, arguments, n=n, label=label, labels=labels, context=context, prompt=prompt, between=between,
        each=each, image=image, sampler=sampler, steps=steps, guidance=guidance, scale=scale, w=w, rescale=rescale,
        negative=negative, interval=interval, guide=guide, classifier=classifier,
        clip_prompt=clip_prompt, clip=clip, clip_scale=clip_scale, seed=seed, weights=weights,
        batch_size=batch_size, device=device, precision=precision, compile=compile, engine=engine, threads=threads,
        data=data or {}, augment=augment,
        then=(then,) if isinstance(then, (str, Path, Pipeline)) else tuple(then),
    )  # fmt: skip
    pipeline, n, given, _ = request.open(COLUMNS if nearest else PICTURES)
    train = training_images(request, pipeline, nearest) if nearest else None
    made = pipeline.sample(
        n, given.y, seed, batch_size=batch_size, progress=progress, image=given.image, same=given.same
    )
    if train is None:
        return pipeline.in_units(made)
    beside = nearest_images(made, train, nearest).images
    return pipeline.in_units(torch.cat([made[:, None], beside], 1).flatten(0, 1)).unflatten(0, (n, 1 + nearest))


class Written(NamedTuple):
    """The results of `write`.

    Attributes:
        opened: the request with its model.
        seconds: time of sampling.
        processes: number of processes that shared the work.
        psnr: of the pictures, and of their hints if they were derived from it, against the truth, in dB; () if the
            truth is unknown.
        nearest: the training images nearest to the pictures, if they were requested.
    """

    opened: Opened
    seconds: float
    processes: int
    psnr: tuple[float, ...]
    nearest: Nearest | None = None


@threads_restored()
def write(request: Request, out: Path, columns: int = 0, nearest: int = 0) -> Written | None:
    """Sample, and write a .png grid, a .npy, a .npz, or a folder of files, atomically.

    Arrays have the type and the units of the data. A folder has a PNG for each picture, of 8 or 16 bits as the data
    have, and a .npy where a PNG cannot hold it: floats, or more than four channels.

    The processes of a torchrun share the work; all but the first return None.

    Args:
        columns: pictures per row of a grid; 0 is one column per class, else a square.
        nearest: training images below each picture of a grid, or beside it in a .npz; see `nearest.Nearest`.
    Raises:
        FileNotFoundError: the run's data are missing.
        ValueError: an unknown suffix, or a folder that is not empty.
    """
    if out.suffix not in (".png", ".npy", ".npz", ""):
        raise ValueError(f"--out {out}: wanted a .png, a .npy, a .npz, or a folder name without a dot")
    if not out.suffix and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out {out}: the folder is not empty; give a new one")
    if nearest and out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out {out}: with --nearest, wanted a .png or a .npz")
    opened = request.open(COLUMNS if nearest else PICTURES)
    pipeline, n, (y, image, truth, same), across = opened
    train = training_images(request, pipeline, nearest) if nearest else None
    check_writable(out if out.suffix else out / "x")
    with together() as processes:
        started = time.perf_counter()
        part = processes.part(n)
        mine, its = (v if v is None else v[part] for v in (y, image))
        batches = pipeline.batches(
            part.stop - part.start, mine, request.seed, batch_size=request.batch_size, progress=processes.first,
            first=part.start, image=its, same=same,
        )  # fmt: skip
        grid, scaling = out.suffix == ".png", pipeline.scaling
        if out.suffix:
            made = torch.cat([x if grid else scaling.decode(x) for x in batches])
        else:
            made = stream(pipeline, batches, out, part.start, processes, keep=truth is not None)
        if processes.size > 1:
            made = processes.gather(made)
        seconds = time.perf_counter() - started
        if not processes.first:
            return None
        beside = None if train is None else nearest_images(made if grid else scaling.encode(made), train, nearest)
        if beside and grid:
            pictures.save_png(sheet(pipeline, made, beside, columns or across), out)
        elif out.suffix:
            images = pictures.visible(made, pipeline.bands, scaling.dtype) if grid else arranged(made)
            save_sheet(opened, images, out, columns, beside.arrays(scaling) if beside else {})
        compared = [] if truth is None else [made if grid else scaling.encode(made)]
        if truth is not None and not isinstance(pipeline.hint, Paired):
            compared.append(pipeline.hint.show(image, pipeline.shape))
        found = tuple(psnr(v, truth, scaling) for v in compared)
        return Written(opened, seconds, processes.size, found, beside)


def stream(
    pipeline: Pipeline, batches: Iterator[Tensor], folder: Path, first: int, processes: Processes, keep: bool
) -> Tensor:
    """Write 00000.png, 00001.png, ... as they are generated, starting from `first`: all of them or none.

    Returns:
        The raw images (n, C, H, W) if `keep`; else an empty tensor.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp-") if processes.first else None
    temporary, kept = Path(processes.agreed(made)), []
    try:
        for x in batches:
            raw = pipeline.scaling.decode(x)
            for image in pipeline.picture(x) if pipeline.bands else arranged(raw):
                save(image, temporary / f"{first:05d}")
                first += 1
            kept.append(raw if keep else raw[:0])
        processes.gather(torch.zeros(0))  # every process has written its images
        if processes.first:
            temporary.chmod(0o755)
            temporary.replace(folder)
    finally:
        if processes.first:
            shutil.rmtree(temporary, ignore_errors=True)
    return torch.cat(kept)


def save(image: np.ndarray, path: Path) -> None:
    """Write an image, (H, W, C) or (C, H, W) for C > 4, as a PNG of its bits if there is one, else as a .npy."""
    if image.dtype == np.uint8 and image.shape[-1] in (1, 3, 4):
        pictures.pillow(image).save(path.with_suffix(".png"))
    elif image.dtype == np.uint16 and image.shape[-1] <= LAST:
        pictures.save_deep(image, path.with_suffix(".png"))
    else:
        np.save(path.with_suffix(".npy"), image)


def psnr(x: Tensor, truth: Tensor, scaling: Scaling) -> float:
    """Peak signal-to-noise ratio in dB of x_0 (n, C, H, W): 10 log10(2^2 / mean squared error).

    8-bit images are rounded as they are written. The range of 2 is that of integer data; of float data it is four
    standard deviations.
    """
    if scaling.dtype == "uint8":
        x, truth = (scaling.encode(scaling.decode(v)) for v in (x, truth))
    error = float((x.double() - truth.double()).square().mean())
    return 10 * math.log10(4 / max(error, 4e-10 / 255**2))
