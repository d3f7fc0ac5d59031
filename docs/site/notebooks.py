"""The notebooks as pages: text, code and, of an executed copy, everything that they show.

A notebook in notebooks/ has no outputs. Copies with outputs are in outputs/notebooks/, which git ignores: the slow
tests leave them there, those of the full preset where it takes under two minutes on a CPU, else of the smoke preset;
`python -m docs.site.notebooks NAME --preset full` makes a full one. A copy counts only as long as its cells are those
of the notebook.
"""

import argparse
import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from docs.site.links import ROOT, rewritten

FOLDER = ROOT / "notebooks"
COPIES = ROOT / "outputs" / "notebooks"
PRESETS = ("full", "smoke")  # the better first
ORDER = ("entry", "noise", "theory", "sampling", "context", "editing", "text", "gallery")
QUICK = ("noise", "theory")  # whose full preset takes under two minutes on a CPU
PICTURES = {"image/png": "png", "image/gif": "gif", "image/webp": "webp", "image/jpeg": "jpg"}
ESCAPES = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
Cell = dict[str, Any]


def names() -> list[str]:
    """All notebooks, the known ones in the order of reading."""
    found = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def read(path: Path) -> list[Cell]:
    """The cells of a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: Cell) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def fingerprint(cells: list[Cell]) -> str:
    """A hash of the cells of a notebook, by which a copy with outputs is recognised."""
    return hashlib.sha256(json.dumps([[c["cell_type"], source(c)] for c in cells]).encode()).hexdigest()


def copy(name: str, preset: str) -> Path:
    """Where a copy with outputs belongs."""
    return COPIES / f"{name}.{preset}.ipynb"


def keep(name: str, preset: str, book: Any) -> None:
    """Keep an executed notebook for the site.

    Args:
        book: the notebook as nbformat has it, with its preset's cell after the parameters.
    """
    book = json.loads(json.dumps(book))
    book["cells"] = [c for c in book["cells"] if source(c) != f'preset = "{preset}"']
    book["metadata"]["litdiffusion"] = fingerprint(read(FOLDER / f"{name}.ipynb"))
    COPIES.mkdir(parents=True, exist_ok=True)
    temporary = COPIES / f"{name}.{preset}.{os.getpid()}"
    temporary.write_text(json.dumps(book), encoding="utf-8")
    temporary.replace(copy(name, preset))


def preset_of(name: str) -> str:
    """The preset that tests and the build execute."""
    return "full" if name in QUICK else "smoke"


def kept(name: str) -> tuple[list[Cell], str]:
    """The cells to show and the preset that their outputs are of; "" without outputs."""
    cells = read(FOLDER / f"{name}.ipynb")
    for preset in PRESETS:
        path = copy(name, preset)
        if path.is_file():
            book = json.loads(path.read_text(encoding="utf-8"))
            if book["metadata"].get("litdiffusion") == fingerprint(cells):
                return book["cells"], preset
    return cells, ""


def execute(name: str, preset: str) -> None:
    """Execute a notebook and keep the copy; its runs go into a temporary folder, its caches to the usual one."""
    import tempfile

    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    place = next(k for k, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(f'preset = "{preset}"'))
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("DIFFUSION_OUT")
        os.environ["DIFFUSION_OUT"] = folder
        try:
            where = {"metadata": {"path": str(FOLDER)}}
            NotebookClient(book, timeout=7200, kernel_name="python3", resources=where).execute()
        finally:
            os.environ.pop("DIFFUSION_OUT") if before is None else os.environ.update(DIFFUSION_OUT=before)
    keep(name, preset, book)


def prepare() -> None:
    """Execute the quick notebooks that have no copy; the others are shown as they are."""
    for name in QUICK:
        if not kept(name)[1]:
            execute(name, preset_of(name))


def page(name: str, dotted: dict[str, str]) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures in it by their addresses.

    Args:
        dotted: names of the package -> their addresses on the site.
    """
    cells, preset = kept(name)
    pictures: dict[str, bytes] = {}
    said = {
        "full": "Executed as it stands, with its full preset.",
        "smoke": 'Executed with `preset = "smoke"`, tiny models after a few steps of training, as the tests do: it '
        "shows what each cell prints and draws, not what a trained model achieves.",
        "": "Not executed here: open it in Jupyter to see its pictures.",
    }[preset]
    text = [
        f'!!! note "A notebook: [`notebooks/{name}.ipynb`](../source/notebooks/{name}.ipynb.md)"',
        "",
        f"    {said}",
    ]
    for k, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            piece = rewritten(source(cell), f"notebooks/{name}.ipynb", dotted)
            text = [piece, "", *text] if not k else [*text, "", piece]
        elif cell["cell_type"] == "code" and source(cell).strip():
            text += ["", "````python", source(cell), "````"]
            for output in cell.get("outputs", []):
                text += ["", *shown(output, name, pictures)]
    return "\n".join(text) + "\n", pictures


def shown(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> list[str]:
    """An output of a cell as lines of Markdown; its picture, if it is one, is added to the pictures."""
    data = output.get("data", {})
    for kind, suffix in PICTURES.items():
        if kind in data:
            number = len(pictures) + 1
            pictures[f"notebooks/{name}/{number}.{suffix}"] = base64.b64decode("".join(data[kind]))
            what = "film" if suffix == "gif" else "picture"
            return [f"![{what} {number} of the notebook {name}, drawn by the cell above]({name}/{number}.{suffix})"]
    text = "".join(output.get("text", "")) or "".join(data.get("text/plain", ""))
    if output["output_type"] == "error":
        text = "\n".join(output["traceback"])
    text = ESCAPES.sub("", text)
    lines = [line.rpartition("\r")[2] if "\r" in line.rstrip("\r") else line for line in text.rstrip("\n").split("\n")]
    return ["````text", *lines, "````"] if "".join(lines).strip() else []


def main() -> None:
    """Execute notebooks by name and keep the copies."""
    parser = argparse.ArgumentParser(description="Execute notebooks, for their pages on the site.")
    parser.add_argument("names", nargs="*", choices=[[], *names()], help="notebooks (default: all)")
    parser.add_argument("--preset", choices=PRESETS, default="full", help="full trains models (default full)")
    words = parser.parse_args()
    for name in words.names or names():
        execute(name, words.preset)
        print(copy(name, words.preset))


if __name__ == "__main__":
    main()
