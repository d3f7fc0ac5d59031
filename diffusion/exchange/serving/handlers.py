"""The functions behind the page's buttons: from the values of its controls to those of its displays."""

import html
import re
import sys
import tempfile
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from diffusion import pictures
from diffusion.exchange.serving.answers import Answer, Desk, Stopped, difference, enlarged, fitted
from diffusion.exchange.serving.ask import Ask, scale_of, takes_pictures, whole
from diffusion.exchange.serving.veil import ROOM, tidy
from diffusion.generation.pipeline import Pipeline

MIXES = 16  # sliders
TURN, CHOSEN, MIX = "All classes in turn", "Chosen classes", "A mix"
OWN = ""  # value of the run's own sampler
USER = (ValueError, OSError, ImportError)
VISITORS = 256  # whose requests can be stopped, and whose last pictures are kept


def told(error: Exception, folder: Path) -> str:
    """An error in one line of HTML without a path of this machine."""
    if isinstance(error, Image.DecompressionBombError):
        return "the picture has too many pixels"
    if not isinstance(error, USER):
        traceback.print_exception(error, file=sys.stderr)
        return "something broke here; the server's terminal shows what"
    text = re.sub(r"\s+", " ", str(error)).replace(str(folder), "")
    text = re.sub(r"(?<![\w.])(/[^\s/:'\"]+)+/", "", text)
    return html.escape(text[:300])


class Handlers:
    """The page's functions for a desk.

    Args:
        desk: answers requests.
        folder: for the files of answers.
    """

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk, self.folder = desk, folder
        self.stops: OrderedDict[str, threading.Event] = OrderedDict()
        self.made: OrderedDict[str, np.ndarray] = OrderedDict()

    # --- the model --------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of the models."""
        return list(self.desk.shelf.files())

    def opening(self) -> tuple[str, dict[str, Any]]:
        """The name and the facts of the first model that can be opened.

        Raises:
            ValueError: none of them can.
        """
        errors = []
        for name in self.names():
            try:
                return name, self.facts(name)
            except USER as error:
                errors.append(error)
        raise errors[0]

    def facts(self, name: str) -> dict[str, Any]:
        """What the controls of a model need: classes, kinds of conditions, sampler, steps, scale, description."""
        model = self.desk.shelf.model(name)
        kinds = model.num_classes or model.context_dim
        classes = [c if c else str(k) for k, c in enumerate(model.class_names)] or [str(k) for k in range(kinds)]
        conditions = [TURN, *([CHOSEN] if kinds else [])]
        conditions += [MIX] if model.context_dim else []
        C, H, W = model.shape
        trained = f"{kinds} classes" if kinds else "captions" if model.tokens else "no classes"
        parameters = sum(p.numel() for p in model.denoiser.parameters())
        words = f"{W}×{H} pixels, {C} channel{'s' * (C > 1)}, {trained}, {parameters / 1e6:.2g} million parameters"
        return {
            "classes": classes,
            "conditions": conditions,
            "sampler": type(model.sampler).__name__,
            "steps": min(model.sampler.steps, self.desk.limits.steps),
            "scale": scale_of(model),
            "words": f"{words}, trained with {type(model.denoiser.schedule).__name__} noise.",
            "hint": model.hint is not None,
            "text": model.tokens is not None,
            "editing": takes_pictures(model),
            "width": W,
        }

    # --- requests ---------------------------------------------------------------------------------------

    def ask(self, given: Mapping[str, Any], n: Any, sampler: Any, steps: Any) -> Ask:
        """The request of the shared controls."""
        model: Pipeline = self.desk.shelf.model(given["model"])
        known = self.facts(given["model"])["classes"]
        labels, mix = (), {}
        if given["condition"] == CHOSEN:
            labels = given["labels"] or ()
            if not labels:
                raise ValueError("classes: choose at least one, or all classes in turn")
        elif given["condition"] == MIX:
            mix = {c: given[f"mix{k}"] or 0 for k, c in enumerate(known[:MIXES])}
        own = sampler == OWN or sampler is None
        if own and steps == model.sampler.steps:
            steps = None
        image = None
        if given.get("image") is not None and model.hint is not None:
            image = Path(tempfile.mkdtemp(dir=self.folder)) / "image.png"
            C, H, W = model.shape
            pictures.save_png(fitted(given["image"], C, H, W), image)
        scale = given["scale"] if scale_of(model) is not None else None
        texts = [(given.get(name) or "").strip() if model.tokens else "" for name in ("prompt", "negative")]
        for text in texts:
            if text and (hint := model.tokens.hint(text)):
                gr.Warning(html.escape(hint, quote=False), title="Not read as it stands")
        return Ask(given["model"], n, labels, mix, sampler or OWN, steps, scale, given["seed"], image, *texts)

    @contextmanager
    def working(self, request: gr.Request | None) -> Iterator[tuple[Path, threading.Event]]:
        """A folder for an answer, and the event that stops it; errors are told in one line."""
        visitor = getattr(request, "session_hash", None) or ""
        stop = self.stops[visitor] = threading.Event()
        self.stops.move_to_end(visitor)
        while len(self.stops) > VISITORS:
            self.stops.popitem(last=False)
        tidy(self.folder, ROOM)
        try:
            yield Path(tempfile.mkdtemp(dir=self.folder)), stop
        except Stopped:
            raise gr.Error("Stopped.", title="", duration=3, print_exception=False) from None
        except Exception as error:
            raise gr.Error(told(error, self.folder), title="Not done", print_exception=False) from None

    def stop(self, request: gr.Request) -> None:
        """End the visitor's own request."""
        if found := self.stops.get(request.session_hash or ""):
            found.set()

    def sample(self, given: Mapping[str, Any], progress: Callable, request: gr.Request | None) -> list[Any]:
        """Pictures: gallery, status, command and files."""
        with self.working(request) as (folder, stop):
            ask = self.ask(given, given["n"], given["sampler"], given["steps"])
            made = self.desk.sample(ask, folder, bar(progress), stop)
            self.keep(made.images, request)
            return [gallery(made), status(made), made.command, files(made)]

    def film(self, given: Mapping[str, Any], progress: Callable, request: gr.Request | None) -> list[Any]:
        """A film: image, video, status, command and files."""
        with self.working(request) as (folder, stop):
            ask = self.ask(given, given["film_n"], given["sampler"], given["steps"])
            suffix = f".{given['format'].lower()}" if isinstance(given["format"], str) else ""
            made = self.desk.film(ask, folder, suffix, bar(progress), stop)
            out, gif = str(made.files[0]), suffix == ".gif"
            shown = gr.update(value=out if gif else None, visible=gif)
            video = gr.update(value=None if gif else out, visible=not gif)
            return [shown, video, status(made, "a film"), made.command, files(made)]

    def compare(self, given: Mapping[str, Any], progress: Callable, request: gr.Request | None) -> list[Any]:
        """Two samplers: for each gallery, status and command; and the difference."""
        with self.working(request) as (folder, stop):
            names = (("sampler_a", "steps_a"), ("sampler_b", "steps_b"))
            asks = [self.ask(given, given["compare_n"], given[s], given[k]) for s, k in names]
            a, b = self.desk.compare(asks, folder, bar(progress), stop)
            faster, ratio = (
                ("first", b.seconds / a.seconds) if a.seconds < b.seconds else ("second", a.seconds / b.seconds)
            )
            words = (
                f"The {faster} one is {ratio:.1f} times as fast. "
                f"Root mean square difference of the pictures: {difference(a, b):.3g} on a scale from -1 to 1."
            )
            return [gallery(a), status(a), a.command, gallery(b), status(b), b.command, words, files(a) + files(b)]

    def edit(self, given: Mapping[str, Any], progress: Callable, request: gr.Request | None) -> list[Any]:
        """Results of an edit: gallery, status, command and files."""
        with self.working(request) as (folder, stop):
            drawing = given["editor"] or {}
            layers = [layer for layer in drawing.get("layers") or [] if layer is not None]
            drawn = None
            if layers:
                drawn = Image.new("RGBA", layers[0].size)
                for layer in layers:
                    drawn = Image.alpha_composite(drawn, layer.convert("RGBA").resize(drawn.size))
            ask = self.ask(given, given["results"], given["sampler"], given["steps"])
            made = self.desk.edit(
                given["verb"], ask, drawing.get("background"), drawn, folder, given["mask"], given["strength"],
                bar(progress), stop,
            )  # fmt: skip
            return [gallery(made), status(made), made.command, files(made)]

    def chosen(self, k: Any, request: gr.Request) -> dict[str, Any]:
        """One of the visitor's last pictures, enlarged for the editor."""
        with self.working(None):
            made = self.made.get(request.session_hash or "")
            if made is None:
                raise ValueError("there are no pictures yet; make some first")
            large = enlarged(made[whole("picture", k, 0, len(made) - 1)])
            return {"background": large, "layers": [], "composite": large}

    def keep(self, images: np.ndarray, request: gr.Request | None) -> None:
        """Keep a visitor's pictures, to be edited."""
        visitor = getattr(request, "session_hash", None) or ""
        self.made[visitor] = images
        self.made.move_to_end(visitor)
        while len(self.made) > VISITORS:
            self.made.popitem(last=False)


def bar(progress: Callable) -> Callable[[float], None]:
    """A progress bar as a function of the fraction done."""
    return lambda part: progress(part, desc="sampling")


def gallery(made: Answer) -> list[Image.Image]:
    """The pictures of an answer."""
    return [pictures.pillow(image) for image in made.images]


def status(made: Answer, what: str = "") -> str:
    """The figures of an answer in one line."""
    n = len(made.images)
    what = what or f"{n} picture{'s' * (n != 1)}"
    return f"{what} in {made.seconds:.2f} s: {made.sampler}, {made.evaluations:g} network evaluations for each picture"


def files(made: Answer) -> list[str]:
    """The files of an answer, to be downloaded."""
    return [str(file) for file in made.files]
