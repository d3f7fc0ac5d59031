"""The page: controls on the left, what they make on the right; below each other on a phone."""

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

from diffusion.exchange.serving.answers import Desk
from diffusion.exchange.serving.ask import LETTERS, SCALES, SEEDS, samplers
from diffusion.exchange.serving.handlers import CHOSEN, MIX, MIXES, OWN, TURN, Handlers

CSS = """
.pixels img { image-rendering: pixelated; }
.pixels .grid-container { grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)) !important; }
.pixels .grid-wrap { height: auto !important; max-height: 70vh !important; min-height: 96px; }
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.command textarea { font-family: ui-monospace, monospace; font-size: 0.85em; }
.quiet p { opacity: 0.8; font-size: 0.9em; margin: 0; }
footer { display: none !important; }
"""
APPEARANCE = {"css": CSS, "theme": gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"])}


class Page:
    """The controls and displays of the page by name, and their events.

    Args:
        desk: answers requests.
        folder: for files.
    """

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.limits, self.handlers = desk.limits, Handlers(desk, folder)
        self.controls: dict[str, Any] = {}
        self.names = self.handlers.names()
        self.start, self.first = self.handlers.opening()

    def add(self, name: str, control: Any) -> Any:
        """Keep a control under a name."""
        self.controls[name] = control
        return control

    def shared(self) -> None:
        """The controls that every tab uses."""
        facts = self.first
        self.add("model", gr.Dropdown(self.names, value=self.start, label="Model", filterable=True))
        self.words = gr.Markdown(facts["words"], elem_classes="quiet")
        for name, label in (("prompt", "Prompt"), ("negative", "Not in the pictures")):
            self.add(name, gr.Textbox("", label=label, max_length=LETTERS, visible=facts["text"]))
        self.add("condition", gr.Radio([TURN, CHOSEN, MIX], value=TURN, label="Condition"))
        self.add(
            "labels",
            gr.Dropdown(facts["classes"], value=[], label="Classes, in turn", multiselect=True, visible=False,
                        allow_custom_value=True),
        )  # fmt: skip
        with gr.Column(visible=False) as self.mixes:
            for k in range(MIXES):
                self.add(f"mix{k}", gr.Slider(0, 1, 0, step=0.05, label=f"Class {k}", **self.mix(facts, k)))
        self.add("image", gr.Image(type="pil", image_mode="RGB", label="Input image", visible=facts["hint"],
                                   sources=["upload", "clipboard"], height=200, buttons=[]))  # fmt: skip
        self.add("sampler", gr.Dropdown(self.samplers(facts), value=OWN, label="Sampler"))
        self.add("steps", gr.Slider(1, self.limits.steps, facts["steps"], step=1, label="Steps"))
        with gr.Row():
            scale = facts["scale"]
            self.add("scale", gr.Slider(0, SCALES, 1.0 if scale is None else scale, step=0.1, min_width=140,
                                        label="Guidance", info="1 is off", visible=scale is not None))  # fmt: skip
            self.add(
                "seed",
                gr.Number(
                    0,
                    precision=0,
                    minimum=0,
                    maximum=SEEDS,
                    label="Seed",
                    info="the same seed, the same pictures",
                    min_width=140,
                ),
            )

    def mix(self, facts: dict[str, Any], k: int) -> dict[str, Any]:
        """The label of a slider, and whether it is visible."""
        known = MIX in facts["conditions"] and k < len(facts["classes"])
        return {"visible": known} | ({"label": facts["classes"][k]} if known else {})

    def samplers(self, facts: dict[str, Any]) -> list[tuple[str, str]]:
        """The samplers by their labels, the model's own first."""
        return [(f"the model's ({facts['sampler']})", OWN), *((name, name) for name in samplers())]

    # --- tabs -------------------------------------------------------------------------------------------

    def shown(self, label: str = "Pictures", command: str = "The same on the command line") -> list[Any]:
        """Displays of an answer: gallery, status, command, files."""
        pictures = gr.Gallery(label=label, show_label=False, format="png", columns=8, object_fit="contain",
                              height="auto", elem_classes="pixels", buttons=["download", "fullscreen"],
                              interactive=False)  # fmt: skip
        words = gr.Markdown(elem_classes="quiet")
        line = gr.Textbox(label=command, buttons=["copy"], lines=1, max_lines=4, interactive=False,
                          elem_classes="command")  # fmt: skip
        return [pictures, words, line]

    def buttons(self, label: str) -> Any:
        """A button that starts, and one that stops."""
        with gr.Row():
            start = gr.Button(label, variant="primary", min_width=120)
            stop = gr.Button("Stop", min_width=80, scale=0)
        stop.click(self.handlers.stop, queue=False, api_visibility="private")
        return start

    def sampling(self) -> None:
        """Pictures from noise."""
        self.add("n", gr.Slider(1, self.limits.pictures, min(16, self.limits.pictures), step=1, label="Pictures"))
        start = self.buttons("Make pictures")
        self.gallery, words, line = self.shown()
        files = gr.File(label="Files", file_count="multiple", interactive=False)
        with gr.Row():
            self.number = gr.Number(0, precision=0, minimum=0, label="Picture, from 0", min_width=120, scale=1)
            self.take = gr.Button("Edit this picture", min_width=160, scale=2)
        self.on(start, "sample", self.handlers.sample, ["n"], [self.gallery, words, line, files])

    def filming(self) -> None:
        """The denoising."""
        formats = ["GIF", "MP4"] if find_spec("av") else ["GIF"]
        with gr.Row():
            self.add("film_n", gr.Slider(1, self.limits.film, min(9, self.limits.film), step=1, label="Pictures"))
            self.add("format", gr.Radio(formats, value="GIF", label="Format"))
        start = self.buttons("Make a film")
        image = gr.Image(type="filepath", format="gif", label="Film", elem_classes="pixels", buttons=["fullscreen"],
                         interactive=False)  # fmt: skip
        video = gr.Video(label="Film", visible=False, interactive=False, autoplay=True, loop=True, buttons=[])
        words = gr.Markdown(elem_classes="quiet")
        line = gr.Textbox(label="The same on the command line", buttons=["copy"], max_lines=4, elem_classes="command",
                          interactive=False)  # fmt: skip
        files = gr.File(label="Files", file_count="multiple", interactive=False)
        self.on(start, "film", self.handlers.film, ["film_n", "format"], [image, video, words, line, files])

    def editing(self) -> None:
        """Inpainting and img2img."""
        self.refused = gr.Markdown(self.first["editing"], visible=bool(self.first["editing"]))
        editor = gr.ImageEditor(
            type="pil", image_mode="RGBA", format="png", label="Upload a picture, and paint over what to regenerate",
            sources=["upload", "clipboard"], transforms=[], layers=False, height=520, canvas_size=(448, 448),
            brush=gr.Brush(default_size=32, colors=["#e5484d"], color_mode="fixed"), buttons=[], elem_id="editor",
        )  # fmt: skip
        self.editor = self.add("editor", editor)
        verbs = [("Repaint a part", "inpaint"), ("Start from the picture", "img2img")]
        masks = [("what I painted", "drawn"), "left", "right", "top", "bottom", "center", "random"]
        with gr.Row():
            self.add("verb", gr.Radio(verbs, value="inpaint", label="Edit"))
            self.add("results", gr.Slider(1, self.limits.edits, min(4, self.limits.edits), step=1, label="Results"))
        mask = self.add("mask", gr.Dropdown(masks, value="drawn", label="Part to repaint"))
        strength = self.add("strength", gr.Slider(0, 1, 0.5, step=0.05, visible=False,
                                                  label="Strength: 0 is the picture, 1 is pure noise"))  # fmt: skip
        start = self.buttons("Edit the picture")
        pictures, words, line = self.shown("Results", "The same on the command line, with the files below")
        files = gr.File(label="Files", file_count="multiple", interactive=False)
        names = ["editor", "verb", "results", "mask", "strength"]
        self.on(start, "edit", self.handlers.edit, names, [pictures, words, line, files])
        self.controls["verb"].change(
            lambda verb: [gr.update(visible=verb == "inpaint"), gr.update(visible=verb == "img2img")],
            self.controls["verb"], [mask, strength], queue=False, api_visibility="private",
        )  # fmt: skip

    def comparing(self) -> None:
        """Two samplers side by side."""
        self.add(
            "compare_n", gr.Slider(1, self.limits.pictures, min(8, self.limits.pictures), step=1, label="Pictures")
        )
        facts, known = self.first, samplers()
        with gr.Row():
            for letter, sampler, steps in (("a", "DPMSolver", 10), ("b", "DDIM", 50)):
                with gr.Column(min_width=260):
                    value = sampler if sampler in known else OWN
                    which = "First" if letter == "a" else "Second"
                    self.add(
                        f"sampler_{letter}", gr.Dropdown(self.samplers(facts), value=value, label=f"{which} sampler")
                    )
                    steps = min(steps, self.limits.steps)
                    self.add(f"steps_{letter}", gr.Slider(1, self.limits.steps, steps, step=1, label="Steps"))
        start, outputs = self.buttons("Compare both"), []
        with gr.Row():
            for which in ("First", "Second"):
                with gr.Column(min_width=260):
                    outputs += self.shown(which)
        words = gr.Markdown(elem_classes="quiet")
        files = gr.File(label="Files", file_count="multiple", interactive=False)
        names = ["compare_n", "sampler_a", "steps_a", "sampler_b", "steps_b"]
        self.on(start, "compare", self.handlers.compare, names, [*outputs, words, files])

    # --- events -----------------------------------------------------------------------------------------

    def on(self, button: Any, name: str, do: Callable, own: list[str], outputs: list[Any]) -> None:
        """Run a handler on a click, one at a time for all visitors; its inputs are the shared controls and its own."""
        names = [*self.common, *own]
        button.click(
            described(do, names), [self.controls[name] for name in names], outputs, api_name=name,
            concurrency_limit=1, concurrency_id="model", show_progress_on=outputs[0],
        )  # fmt: skip

    def choose(self, name: str) -> list[Any]:
        """Updates of the controls for a model."""
        with self.handlers.working(None):
            facts = self.handlers.facts(name)
            own, scale = self.samplers(facts), facts["scale"]
            return [
                facts["words"],
                gr.update(choices=facts["conditions"], value=TURN, visible=len(facts["conditions"]) > 1),
                gr.update(choices=facts["classes"], value=[], visible=False),
                gr.update(visible=False),
                gr.update(visible=facts["hint"]),
                gr.update(choices=own, value=OWN),
                gr.update(value=facts["steps"]),
                gr.update(value=1.0 if scale is None else scale, visible=scale is not None),
                gr.update(choices=own),
                gr.update(choices=own),
                *(gr.update(value="", visible=facts["text"]) for _ in ("prompt", "negative")),
                gr.update(value=facts["editing"], visible=bool(facts["editing"])),
                *(gr.update(value=0, **self.mix(facts, k)) for k in range(MIXES)),
            ]

    def renew(self) -> list[Any]:
        """Updates for a new visitor: the models as they are now, and the controls for the first one."""
        return [gr.update(choices=self.handlers.names(), value=self.start), *self.choose(self.start)]

    def events(self) -> None:
        """What depends on the model and on the kind of condition."""
        control = self.controls
        names = ("condition", "labels", "mixes", "image", "sampler", "steps", "scale", "sampler_a", "sampler_b")
        names += ("prompt", "negative")
        outputs = [self.words, *(self.mixes if name == "mixes" else control[name] for name in names), self.refused]
        outputs += [control[f"mix{k}"] for k in range(MIXES)]
        self.outputs, self.quiet = outputs, {"api_visibility": "private", "show_progress": "hidden"}
        quiet = self.quiet
        control["model"].change(
            self.choose, control["model"], outputs, concurrency_limit=1, concurrency_id="model", **quiet
        )
        control["condition"].change(
            lambda kind: [gr.update(visible=kind == CHOSEN), gr.update(visible=kind == MIX)],
            control["condition"], [control["labels"], self.mixes], queue=False, **quiet,
        )  # fmt: skip
        self.gallery.select(picked, None, self.number, queue=False, **quiet)
        self.take.click(self.handlers.chosen, self.number, self.editor, **quiet).success(
            lambda: gr.update(selected="edit"), None, self.tabs, queue=False, **quiet
        )

    def build(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(title="LitDiffusion", analytics_enabled=False, delete_cache=(600, 3600)) as page:
            gr.Markdown("# LitDiffusion")
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self.shared()
                    self.common = list(self.controls)
                with gr.Column(scale=3, min_width=320):
                    tabs = (
                        ("Sample", "sample", self.sampling), ("Film", "film", self.filming),
                        ("Edit", "edit", self.editing), ("Compare", "compare", self.comparing),
                    )  # fmt: skip
                    with gr.Tabs() as self.tabs:
                        for label, name, fill in tabs:
                            with gr.Tab(label, id=name):
                                fill()
            gr.Markdown(
                "Commands are typed in the folder that the server's terminal names. The same seed gives the same "
                "pictures.",
                elem_classes="quiet",
            )
            self.events()
            page.load(self.renew, None, [self.controls["model"], *self.outputs], **self.quiet)
        return page


def described(do: Callable, names: list[str]) -> Callable:
    """A handler as a function of one argument per control, whose names Gradio shows in its API."""

    def handle(*values: Any) -> list[Any]:
        *given, request, progress = values
        return do(dict(zip(names, given, strict=True)), progress, request)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = [inspect.Parameter(name, kind) for name in [*names, "request"]]
    handle.__signature__ = inspect.Signature([*own, inspect.Parameter("progress", kind, default=gr.Progress())])
    handle.__annotations__ = {"request": gr.Request}
    return handle


def picked(event: gr.SelectData) -> int:
    """The number of the selected picture."""
    return event.index


def build(desk: Desk, folder: Path) -> gr.Blocks:
    """The page of a desk, whose files are written to a folder."""
    return Page(desk, folder).build()
