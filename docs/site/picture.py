"""One picture of the whole: the way of a batch and of a sample through the classes, drawn from a trace of both.

    python -m docs.site.picture    # traces again, into docs/site/trace.json

Each class stands below the one that first calls it, in the order of the calls. Functions of no class are passed
through, a network is one box, and values that are only passed on (named tuples) are left out.
"""

import inspect
import json
import sys
import tempfile
from html import escape
from pathlib import Path
from types import FrameType

from docs.site.links import ROOT
from docs.site.reference import addresses, summaries

TRACE = Path(__file__).with_name("trace.json")
PACKAGE = str(ROOT / "diffusion") + "/"
HIDDEN = ("support", "pictures")  # packages whose classes are no part of the way
ROW, STEP, WIDTH, BOX = 34, 22, 350, 24
COLOURS = {  # of a package: the fill of its boxes, light enough for black text
    "data": "#cfe8d5", "training": "#ffe0b3", "loss": "#ffd0cc", "denoiser": "#d6dcff", "nets": "#c9ecf5",
    "noise": "#eed9f7", "generation": "#fff3b0", "guidance": "#ffd9ec", "samplers": "#dff0c0", "metrics": "#e6e0d4",
}  # fmt: skip
Tree = list[tuple[int, str]]  # (depth, dotted name of a class), in the order of the first calls


def class_of(frame: FrameType) -> type | None:
    """The class of the package that a call belongs to: that of `self`, or of `cls`."""
    names = frame.f_locals
    kind = type(names["self"]) if "self" in names else names.get("cls")
    if not inspect.isclass(kind) or not kind.__module__.startswith("diffusion.") or "<locals>" in kind.__qualname__:
        return None
    package = kind.__module__.split(".")[1]
    if package in HIDDEN or issubclass(kind, tuple) or kind.__name__.startswith("_"):
        return None
    return kind


class Way:
    """Records the classes of the package in the order of their first calls, each below its first caller."""

    def __init__(self) -> None:
        self.tree: Tree = []
        self.depths: dict[str, int] = {}
        self.children: dict[str, list[str]] = {}

    def start(self) -> None:
        """Begin to record."""
        sys.setprofile(self._call)

    def stop(self) -> None:
        """Record no more."""
        sys.setprofile(None)

    def _call(self, frame: FrameType, event: str, arg: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        kind = class_of(frame)
        name = f"{kind.__module__}.{kind.__qualname__}" if kind else ""
        if not kind or name in self.depths:
            return
        above, inside = frame.f_back, False
        caller = ""
        while above is not None and not caller:
            if above.f_code.co_filename.startswith(PACKAGE) and (found := class_of(above)) and found is not kind:
                inside = found.__module__.startswith("diffusion.nets.")
                caller = f"{found.__module__}.{found.__qualname__}"
                caller = caller if caller in self.depths else ""
            above = above.f_back
        if inside and name.startswith("diffusion.nets."):
            return  # a part of the network
        self.depths[name] = self.depths[caller] + 1 if caller else 0
        self.children.setdefault(caller, []).append(name)

    def ordered(self, above: str = "") -> Tree:
        """The classes as a tree, in order."""
        below = self.children.get(above, [])
        return [entry for name in below for entry in ((self.depths[name], name), *self.ordered(name))]


def sample() -> Tree:
    """The way of a sample: `diffusion sample zoo:digits`, the second time, so that no import is part of it."""
    from diffusion.cli import run

    way = Way()
    with tempfile.TemporaryDirectory() as folder:
        words = ["sample", "zoo:digits", "--label", "3", "--scale", "2", "--n", "2", "--steps", "2", "--device", "cpu"]
        words += ["--out", str(Path(folder) / "a.png")]
        run(words)
        way.start()
        try:
            run(words)
        finally:
            way.stop()
    return way.ordered()


def batch() -> Tree:
    """The way of a batch: one training step of configs/digits.yaml, from the loader to the last callback."""
    from benchmarks.trace import STEP as AFTER
    from benchmarks.trace import OneBatch
    from diffusion.training.build import quiet
    from diffusion.training.run import assemble, begin

    quiet()
    way = Way()
    with tempfile.TemporaryDirectory() as folder:
        words = ["-c", str(ROOT / "configs" / "digits.yaml"), "--trainer.max_steps", str(AFTER + 2), "--gif.n", "1"]
        words += ["--samples.n", "1", "--model.sampler.steps", "2", "--diagnostics.images", "2", "--out", folder]
        run = begin(assemble([*words, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]))
        run.trainer.callbacks.append(OneBatch(way))
        run.trainer.fit(run.model, run.data)
    return way.ordered()


def drawn(tree: Tree, name: str, start: str) -> str:
    """A tree of classes as an SVG, each box a link to the reference.

    Args:
        name: what the picture shows, for those who cannot see it.
        start: what stands at the top.
    """
    known = [(depth + 1, n) for depth, n in tree if n in addresses()]
    height = ROW * (len(known) + 1)
    lines = [
        f'<svg class="whole" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect x="1" y="5" width="{12 + 7.4 * len(start):.0f}" height="{BOX}" rx="4" fill="#37474f"/>'
        f'<text x="8" y="22" fill="#fff">{escape(start)}</text>',
    ]
    lasts = {0: 0}  # the row of the last box at each depth
    texts = summaries()
    for row, (depth, dotted) in enumerate(known, 1):
        x, y = 1 + STEP * depth, ROW * row + 5
        package, kind = dotted.split(".")[1], dotted.rpartition(".")[2]
        top = ROW * lasts[depth - 1] + 5 + BOX
        lines.append(f'<path d="M{x - STEP + 10} {top}V{y + BOX / 2:.0f}H{x}" fill="none" stroke="#78909c"/>')
        lasts[depth] = row
        text = f"{package}.{kind}"
        page, _, anchor = addresses()[dotted].partition("#")
        lines.append(
            f'<a href="{page.removesuffix(".md")}.html#{anchor}"><title>{escape(texts.get(dotted, ""))}</title>'
            f'<rect x="{x}" y="{y}" width="{12 + 7.2 * len(text):.0f}" height="{BOX}" rx="4" '
            f'fill="{COLOURS.get(package, "#eceff1")}" stroke="#607d8b"/>'
            f'<text x="{x + 7}" y="{y + 17}" fill="#111">{escape(package)}.'
            f'<tspan font-weight="bold">{escape(kind)}</tspan></text></a>'
        )
    return "\n".join([*lines, "</svg>"])


def page() -> str:
    """The page with both pictures."""
    trees = json.loads(TRACE.read_text(encoding="utf-8"))
    text = Path(__file__).with_name("together.md").read_text(encoding="utf-8")
    pictures = {
        "batch": (
            "The classes that a training batch passes through, each below the one that calls it",
            "diffusion fit",
        ),
        "sample": ("The classes that a sample passes through, each below the one that calls it", "diffusion sample"),
    }
    for name, (said, start) in pictures.items():
        text = text.replace(f"{{{name}}}", drawn([(d, n) for d, n in trees[name]], said, start))
    return text


def traced() -> str:
    """Both trees as the text of trace.json."""
    trees = {"batch": batch(), "sample": sample()}
    lines = [
        f'  "{k}": [\n' + ",\n".join(f"    {json.dumps(list(e))}" for e in tree) + "\n  ]" for k, tree in trees.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    TRACE.write_text(traced(), encoding="utf-8")
    print(TRACE)
