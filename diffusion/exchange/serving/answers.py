"""From requests to pictures: sampled, filmed, edited, and two samplers compared. Knows nothing of the web page."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion import pictures
from diffusion.exchange.serving.ask import Ask, Limits, command, number, takes_pictures
from diffusion.exchange.serving.shelf import Shelf
from diffusion.generation.counting import Counted, evaluations
from diffusion.generation.editing.rows import Edit
from diffusion.generation.editing.sheet import VERBS, Sheet, prepare
from diffusion.generation.film import write
from diffusion.generation.pipeline import Pipeline
from diffusion.generation.request import Request
from diffusion.generation.sheets import save_sheet

Tell = Callable[[float], object]


class Stopped(ValueError):
    """The visitor ended the request."""


class Watch:
    """Counts evaluated images, reports the fraction done, and ends a request that is stopped or takes too long.

    Args:
        total: images times network evaluations; 0 if unknown.
        seconds: after which the request is ended.
        tell: called with the fraction done, in [0, 1].
        stop: set to end the request.
    """

    def __init__(self, total: float, seconds: float, tell: Tell = lambda part: None, stop: Event | None = None) -> None:
        self.total, self.seconds, self.tell, self.stop = total, seconds, tell, stop
        self.done, self.began = 0, time.monotonic()

    def __call__(self, images: int) -> None:
        """Count evaluated images.

        Raises:
            Stopped: the request was stopped.
            TimeoutError: it took too long.
        """
        self.done += images
        if self.stop is not None and self.stop.is_set():
            raise Stopped("stopped")
        if time.monotonic() - self.began > self.seconds:
            raise TimeoutError(f"ended after {self.seconds:g} seconds; ask for fewer pictures or fewer steps")
        self.tell(min(self.done / self.total, 1.0) if self.total else 0.0)


class Answer(NamedTuple):
    """The result of a request.

    Attributes:
        images: pictures (N, H, W, C) uint8.
        files: first the file that the command writes, then those that it reads.
        command: the command line that makes the same file.
        seconds: time of sampling, without opening the model.
        evaluations: network evaluations per picture.
        sampler: its name and steps.
        x0: the images (N, C, H, W).
    """

    images: np.ndarray
    files: list[Path]
    command: str
    seconds: float
    evaluations: float
    sampler: str
    x0: Tensor


class Desk:
    """Answers requests with the models of a shelf; files are written to the folder that each call names.

    Args:
        shelf: the models.
        limits: of one request.
    """

    def __init__(self, shelf: Shelf, limits: Limits = Limits()) -> None:
        self.shelf, self.limits = shelf, limits

    def sample(
        self, ask: Ask, folder: Path, tell: Tell = lambda part: None, stop: Event | None = None, name: str = "grid.png"
    ) -> Answer:
        """Pictures, and their grid as `diffusion sample` writes it.

        Raises:
            ValueError: a request out of the limits, or one that the model does not support.
            TimeoutError: sampling took too long.
        """
        run = self.shelf.model(ask.model)
        words = ask.words(run, self.limits, self.limits.pictures)
        opened = Request.of(run, **words).open(ask.n)
        pipeline, n, given, _ = opened
        watch = Watch(n * evaluations(pipeline.sampler, pipeline.denoiser.schedule), self.limits.seconds, tell, stop)
        began = time.perf_counter()
        counted = Counted(pipeline.guidance, watch)
        made = pipeline.sample(n, given.y, words["seed"], guidance=counted, image=given.image)
        seconds = time.perf_counter() - began
        images = pictures.visible(made, pipeline.bands, pipeline.scaling.dtype)
        save_sheet(opened, images, folder / name, 0)
        files = [folder / name, *([ask.image] if "image" in words else [])]
        line = command("sample", ask.model, words, name)
        return Answer(images, files, line, seconds, counted.images / n, described(pipeline), made)

    def film(
        self, ask: Ask, folder: Path, suffix: str = ".gif", tell: Tell = lambda part: None, stop: Event | None = None
    ) -> Answer:
        """The film of the denoising, as `diffusion film` writes it; its last frame is the only picture.

        Raises:
            ValueError, TimeoutError: as `sample`.
        """
        if suffix not in (".gif", ".mp4"):
            raise ValueError("film: wanted GIF or MP4")
        run = self.shelf.model(ask.model)
        words = ask.words(run, self.limits, self.limits.film)
        request = Request.of(run, **words)
        pipeline = request.choices.apply(run)
        total = ask.n * evaluations(pipeline.sampler, pipeline.denoiser.schedule)
        counted = Counted(pipeline.guidance, Watch(total, self.limits.seconds, tell, stop))
        began = time.perf_counter()
        choices = replace(request.choices, guidance=counted, scale=None)
        out = folder / f"denoising{suffix}"
        _, frames = write(replace(request, choices=choices), out)
        seconds = time.perf_counter() - began
        files = [out, *([ask.image] if "image" in words else [])]
        line = command("film", ask.model, words, out.name)
        shown = np.stack(frames[-1:])
        return Answer(shown, files, line, seconds, counted.images / ask.n, described(pipeline), torch.empty(0))

    def compare(
        self, asks: Sequence[Ask], folder: Path, tell: Tell = lambda part: None, stop: Event | None = None
    ) -> list[Answer]:
        """The same pictures by several samplers, one after the other.

        Raises:
            ValueError, TimeoutError: as `sample`.
        """
        for ask in asks:  # before any of them is sampled
            self.shelf.model(ask.model)
            ask.words(self.shelf.model(ask.model), self.limits, self.limits.pictures)
        made = []
        for k, ask in enumerate(asks):
            part = lambda done, k=k: tell((k + done) / len(asks))  # noqa: E731
            made.append(self.sample(ask, folder, part, stop, f"{'ab'[k]}.png"))
        return made

    def edit(
        self,
        verb: str,
        ask: Ask,
        picture: Image.Image | None,
        drawn: Image.Image | None,
        folder: Path,
        mask: str = "drawn",
        strength: float = 0.5,
        tell: Tell = lambda part: None,
        stop: Event | None = None,
    ) -> Answer:
        """Results of `diffusion edit inpaint` or `img2img` for an uploaded picture.

        Args:
            ask: n is the number of results.
            picture: of any size; its middle is cropped and scaled to the model's size.
            drawn: RGBA of the picture's size, opaque where it is regenerated; for the mask "drawn".
            mask: drawn, or a name of `editing.inputs.MASKS` with its usual fraction.
            strength: of img2img, in [0, 1].
        Raises:
            ValueError: no picture or mask, or as `sample`.
            TimeoutError: as `sample`.
        """
        if verb not in ("inpaint", "img2img"):
            raise ValueError("edit: wanted inpaint or img2img")
        run = self.shelf.model(ask.model)
        if reason := takes_pictures(run):
            raise ValueError(f"edit: {reason}")
        words = ask.words(run, self.limits, self.limits.edits)
        if picture is None:
            raise ValueError("edit: there is no picture; upload one, or sample pictures and choose one of them")
        own, files = edit_words(verb, run, picture, drawn, folder, mask, strength)
        edit = Edit(**own | {"input": [own["input"]], "mask": str(own.get("mask", "right"))})
        kind, job = VERBS[verb], prepare(VERBS[verb], Request.of(run, **words), edit)
        counted = Counted(job.pipeline.guidance, Watch(kind.work(job), self.limits.seconds, tell, stop))
        began = time.perf_counter()
        rows, text = kind.rows(job._replace(pipeline=replace(job.pipeline, guidance=counted)))
        seconds = time.perf_counter() - began
        out = folder / f"{verb}.png"
        Sheet(rows, text, job).save(out)
        x0 = torch.cat([row.images for row in rows[2:]])
        line = command(f"edit {verb}", ask.model, own | words, out.name)
        used = counted.images / len(x0)
        return Answer(run.picture(x0), [out, *files], line, seconds, used, described(job.pipeline), x0)


def described(pipeline: Pipeline) -> str:
    """The name of the sampler and its steps."""
    return f"{type(pipeline.sampler).__name__}, {pipeline.sampler.steps} steps"


def edit_words(
    verb: str,
    pipeline: Pipeline,
    picture: Image.Image,
    drawn: Image.Image | None,
    folder: Path,
    mask: str,
    strength: float,
) -> tuple[dict[str, Any], list[Path]]:
    """The options of an edit, and the files that they name: the picture and the mask in the model's size."""
    C, H, W = pipeline.shape
    read = folder / "input.png"
    pictures.save_png(fitted(picture, C, H, W), read)
    if verb == "img2img":
        return {"input": read, "strength": number("strength", strength, 0, 1)}, [read]
    if mask != "drawn":
        if mask not in ("left", "right", "top", "bottom", "center", "random"):
            raise ValueError("mask: wanted drawn, left, right, top, bottom, center or random")
        return {"input": read, "mask": mask}, [read]
    hidden = None if drawn is None else covered(drawn, H, W)
    if hidden is None or not hidden.any():
        raise ValueError("mask: nothing is drawn; paint over the part to regenerate, or choose a half")
    pictures.save_png(hidden[..., None].astype(np.uint8) * 255, folder / "mask.png")
    return {"input": read, "mask": folder / "mask.png"}, [read, folder / "mask.png"]


def middle(width: int, height: int, W: int, H: int) -> tuple[float, float, float, float]:
    """The largest box of the shape W:H in the middle of a picture."""
    scale = min(width / W, height / H)
    w, h = W * scale, H * scale
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def fitted(picture: Image.Image, C: int, H: int, W: int) -> np.ndarray:
    """The middle of a picture as uint8 (H, W, C); areas are averaged, so an enlarged picture is restored exactly."""
    if C != 4:
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    picture = picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[C])
    how = Image.Resampling.BOX if min(picture.width / W, picture.height / H) >= 1 else Image.Resampling.BICUBIC
    return np.asarray(picture.resize((W, H), how, box=middle(*picture.size, W, H))).reshape(H, W, C)


def covered(drawn: Image.Image, H: int, W: int) -> np.ndarray:
    """The pixels (H, W), bool, of which a drawing covers a quarter or more, in the middle of the picture."""
    alpha = drawn.convert("RGBA").getchannel("A")
    small = alpha.resize((W, H), Image.Resampling.BOX, box=middle(*alpha.size, W, H))
    return np.asarray(small) >= 64


def enlarged(image: np.ndarray, width: int = 448) -> Image.Image:
    """A picture (H, W, C) as RGB, enlarged by an integer to about `width` pixels, to be drawn on."""
    grown = pictures.enlarge(image, max(1, width // max(image.shape[:2])))
    return pictures.pillow(grown).convert("RGBA" if image.shape[-1] == 4 else "RGB")


def difference(a: Answer, b: Answer) -> float:
    """The root mean square difference of two answers' images, in units of x_0."""
    return float((a.x0.double() - b.x0.double()).square().mean().sqrt()) if a.x0.shape == b.x0.shape else float("nan")
