"""Benchmark scripts run on the smallest input and save their figures."""

import json
import shlex
from importlib import import_module

import pytest

from benchmarks import common

SCRIPTS = {
    "overhead": "--config configs/digits.yaml --batch 8 --block 1 --pairs 2 --precision 32-true",
    "diagnostics": "--pairs 2 --widths 8 16",
    "hooks": "--tiny --batch 8 --steps 3",
    "sampling": "--n 2 --steps 2 --rounds 2 --empty",
    "growth": "--rounds 1 --sizes 2 --plot {tmp}/growth.png",
    "origin": "--batch 2 --rounds 1",
    "layouts": "--rounds 1 --only 'digits (AttentionUNet)'",
    "attention": "--rounds 1",
    "training": "--against . --precision 32-true --block 1 --pairs 2",
    "startup": "--rounds 1 --only 'import torch' 'import torch and Lightning' 'fit to its first step'",
    "threads": "--rounds 1 --seconds 0.3",
    "unlabelled": "--steps 2 --extractors untrained VICReg SimSiam SimCLR",
    "gpu": "race --small --minutes 0.2 --out {tmp}",
}
PRINTED = ("diagnostics", "unlabelled", "gpu")  # without a file


def test_few_rounds_have_no_error_and_are_valid_json(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    few, many = common.ratio([2.0, 4.0], [1.0, 1.0]), common.ratio([1.0, 2.0, 3.0, 2.0], [1.0] * 4)
    assert few == (3.0, None) and common.said(few) == "3.000" and common.said(many).startswith("2.000 +- 0.")
    text = common.save("few", {"ratio": few}).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["ratio"] == [3.0, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_benchmark_script_runs_to_its_end(name, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", [name, *shlex.split(SCRIPTS[name].format(tmp=tmp_path))])
    import_module(f"benchmarks.{name}").main()
    saved = [json.loads(file.read_text(), parse_constant=pytest.fail) for file in tmp_path.glob("*.json")]
    assert name in PRINTED or saved[0]["machine"]
