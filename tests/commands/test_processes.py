"""Work shared over processes: the parts make up the whole, and the results equal those of one process."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from diffusion.cli import main
from diffusion.support.processes import Processes, together


def test_shares_of_processes_make_up_the_whole():
    for n, size in ((7, 3), (8, 4), (5, 1), (3, 3)):
        parts = [Processes(rank, size).part(n) for rank in range(size)]
        assert [k for part in parts for k in range(n)[part]] == list(range(n))
        assert max(p.stop - p.start for p in parts) - min(p.stop - p.start for p in parts) <= 1
    with pytest.raises(ValueError, match="2 images are too few to share over 3 processes"):
        Processes(0, 3).part(2)
    with together() as alone:
        assert alone.size == 1 and alone.first and alone.agreed({}) == {}


def torchrun(*words, size=2):
    """The output of a command under torchrun. Without "--", torchrun takes our --n for one of its own options."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size)]
    done = subprocess.run(
        [*command, "-m", "--", "diffusion", *map(str, words)], capture_output=True, text=True, timeout=1200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_sample_as_one(tiny, tmp_path):
    options = ["--n", "21", "--steps", "4", "--seed", "3", "--eta", "1"]
    said = torchrun("sample", tiny, *options, "--out", tmp_path / "two.npz")
    assert said.count("21 pictures") == 1
    assert main(["sample", str(tiny), *options, "--device", "cpu", "--out", str(tmp_path / "one.npz")]) == 0
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert np.array_equal(one["labels"], two["labels"])
        assert np.abs(one["images"].astype(int) - two["images"]).max() <= 1  # other batches round differently


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tiny, tmp_path, monkeypatch):
    """Both processes compute the reference features too; the first one stores them."""
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path))
    options = ["--n", "61", "--steps", "3", "--device", "cpu", "--metrics", "frechet,consistency,memory", "--again"]
    file = tiny / "evaluation"
    assert main(["fit", "-c", "configs/features_digits.yaml", "--trainer.max_epochs", "1"]) == 0
    assert torchrun("evaluate", tiny, *options).count("judge:") == 1
    two = json.loads(next(file.glob("*n61*.json")).read_text())
    assert len(list((tmp_path / "references").glob("*.pt"))) == 2
    assert main(["evaluate", str(tiny), *options]) == 0
    one = json.loads(next(file.glob("*n61*.json")).read_text())
    assert one["setting"] == two["setting"] and one["evaluations"] == two["evaluations"] == 3
    for mine, its in zip(one["figures"], two["figures"], strict=True):
        assert its["value"] == pytest.approx(mine["value"], rel=1e-3, abs=1e-6), mine["metric"]
