"""Every notebook runs from top to bottom, with its full preset where that is quick, and writes its files."""

import json
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from PIL import Image

from diffusion.support import runs
from docs.site import notebooks

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FILES = {  # the files that each writes to its folder of runs
    "theory": ["theory.gif"],
    "entry": ["last.ckpt", "denoising.gif", "film.gif", "samples.npz", "step00000010.png"],
    "sampling": ["last.ckpt", "ddpm_ddim.gif", "quality.png"],
    "context": ["last.ckpt", "mixes.gif", "mixes.png"],
    "editing": ["last.ckpt", "between.gif", "early_stop.png"],
    "text": ["last.ckpt", "prompts.gif", "prompts.png"],
    "gallery": ["last.ckpt", "film.gif", "grid.png", "nearest.png"],
}


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_short_and_stored_without_outputs(path):
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
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path))
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = read(path)
    preset = notebooks.preset_of(path.stem)
    place = next(k for k, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(f'preset = "{preset}"'))
    where = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(book, timeout=3000, kernel_name="python3", resources=where).execute()
    notebooks.keep(path.stem, preset, book)  # for the page that shows it
    shown = [o for c in book.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    assert sum("image/png" in o["data"] or "image/gif" in o["data"] for o in shown) >= 3
    for name in FILES.get(path.stem, []):
        found = next(tmp_path.rglob(name))
        if found.suffix == ".gif":
            film = Image.open(found)
            first = np.asarray(film.convert("RGB"), float)
            film.seek(film.n_frames // 2)  # one film plays forwards and backwards
            assert film.n_frames > 5 and np.abs(np.asarray(film.convert("RGB"), float) - first).max() > 4
        elif found.suffix == ".png":
            assert np.asarray(Image.open(found).convert("L"), float).std() > 10
        elif found.suffix == ".npz":
            kept = np.load(found)
            assert kept["images"].shape == (80, 8, 8, 1) and kept["labels"].tolist() == list(range(10)) * 8
        else:
            made = next(
                p for p in tmp_path.glob("*_smoke/version_0/checkpoints/last.ckpt") if "classifier" not in str(p)
            )
            assert runs.read_checkpoint(made)["global_step"] == 10


@pytest.mark.slow
@pytest.mark.notebook
def test_interrupted_training_resumes(tmp_path, monkeypatch):
    """The kernel is interrupted in mid-training: the cell ends normally, the next ones work, and the cell resumes."""
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = [c.source for c in read(ROOT / "notebooks" / "entry.ipynb").cells if c.cell_type == "code"]
    cells.insert(1, 'preset, epochs = "smoke", 60')
    training = next(k for k, cell in enumerate(cells) if "notebook.train(" in cell)
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT / "notebooks"), startup_timeout=600)
    run = tmp_path / "digits_smoke" / "version_0"

    def execute(code):
        said = []

        def hook(message):
            content = message["content"]
            said.append(content.get("text", "") if message["msg_type"] == "stream" else "")

        reply = client.execute_interactive(code, output_hook=hook, timeout=1200)["content"]
        assert reply["status"] == "ok", "\n".join(reply["traceback"])
        return "".join(said)

    def interrupt():
        for _ in range(12000):
            if list(run.glob("checkpoints/step*.ckpt")):
                return manager.interrupt_kernel()
            time.sleep(0.05)

    try:
        for cell in cells[:training]:
            execute(cell)
        watch = threading.Thread(target=interrupt)
        watch.start()
        said = execute(cells[training])
        watch.join()
        step = runs.read_checkpoint(runs.find_checkpoint(run))["global_step"]
        assert 0 < step < 300  # 60 epochs of 5 steps
        assert f"stopped at step {step}; newest checkpoint: step {step}" in said
        assert "run this cell again to resume" in said
        for cell in cells[training + 1 :]:
            execute(cell)
        assert np.load(run / "samples" / "samples.npz")["images"].std() > 10
        said = execute(cells[training])
        assert f"step {step}, epoch {step // 5 + 1}" in said or f"step {step}, epoch {(step - 1) // 5 + 1}" in said
        assert "resuming from" in said and "300 steps" in said
        assert runs.read_checkpoint(runs.find_checkpoint(run))["global_step"] == 300
        assert "this run is complete" in execute(cells[training])
        assert [p.name for p in runs.versions(tmp_path / "digits_smoke")] == ["version_0"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
