"""Every notebook runs from top to bottom with its smoke preset, and leaves what it promises."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FILES = {"theory": ["theory.gif"]}  # what each leaves in its folder of runs


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_thin_and_stored_without_outputs(path):
    book = read(path)
    assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"
    code = [c for c in book.cells if c.cell_type == "code"]
    assert len(code) <= 15 and max(len(c.source.splitlines()) for c in code) <= 40
    assert all(c.outputs == [] and c.execution_count is None for c in code)
    assert [k for k, c in enumerate(code) if "parameters" in c.metadata.get("tags", [])] == [0]
    first, last = book.cells[0].source, book.cells[-1].source
    assert first.startswith("# ") and "**Time:**" in first and "try next" in last


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = read(path)
    place = next(k for k, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
    book.cells.insert(place + 1, nbformat.v4.new_code_cell('preset = "smoke"'))
    where = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
    shown = [o for c in book.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    assert sum("image/png" in o["data"] or "image/gif" in o["data"] for o in shown) >= 3
    for name in FILES.get(path.stem, []):
        found = next(tmp_path.rglob(name))
        if found.suffix == ".gif":
            film = Image.open(found)
            first = np.asarray(film.convert("RGB"), float)
            film.seek(film.n_frames - 1)
            assert film.n_frames > 5 and np.abs(np.asarray(film.convert("RGB"), float) - first).mean() > 1
