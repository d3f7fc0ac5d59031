"""`diffusion check`: tables, verdicts and exit codes, for the classes of the package and of users."""

import re
import sys

import pytest
import torch

import diffusion
from diffusion.cli import main
from diffusion.noise import VP
from diffusion.samplers import DDIM

MINE = """
from diffusion.noise import Flow
from diffusion.samplers import DDIM, Sampler

class Right(Sampler):
    convergence = 1

    def step(self, denoise, x, t, s, past, noise):
        pred = denoise(x, t)
        return s.alpha * pred.x0 + s.sigma * pred.eps, pred

class Wrong(Right):
    def step(self, denoise, x, t, s, past, noise):
        pred = denoise(x, t)
        return s.alpha * pred.x0 + s.sigma**2 * pred.eps, pred  # the variance for the standard deviation

class Optimist(DDIM):
    def __init__(self, steps=50):
        super().__init__(steps)
        self.convergence = 2

class Sound(Flow):
    def scales(self, t):
        return (1 - t) ** 2, t

class Unsound(Flow):
    def sde(self, t):
        f, g2 = super().sde(t)
        return f, 2 * g2
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_to_check.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder is added to it
    monkeypatch.delitem(sys.modules, "mine_to_check", raising=False)
    return tmp_path


def rows(text):
    """The cells of each row of the tables, keyed by its first two."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {(c[0], c[1]): c[2:] for c in cells}


def test_check_passes_a_correct_sampler(mine, capsys):
    assert main(["check", "--sampler", "mine_to_check.Right", "--schedule", "VP", "mine_to_check.Sound"]) == 0
    said = capsys.readouterr().out
    expected, order, errors, verdict = rows(said)["Right", "VP"]
    assert (expected, verdict) == ("1", "ok") and float(order) == pytest.approx(1, abs=0.05)
    assert [float(v) for v in re.findall(r"[\d.]+", errors)] == pytest.approx([30.9, 16.4, 6.9], abs=0.1)
    assert rows(said)["Right", "Sound"][-1] == "ok" and "2 schedules, 2 walks: all as they should be" in said


def test_check_fails_wrong_samplers_with_the_reason(mine, capsys):
    assert main(["check", "--sampler", "mine_to_check.Wrong", "mine_to_check.Optimist", "--schedule", "VP"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"FAIL: order -?0\.\d, expected 1", rows(said)["Wrong", "VP"][-1])
    assert rows(said)["Optimist", "VP"][-1] == "FAIL: order 1.0, expected 2"
    assert "1 schedules, 2 walks: 2 FAIL" in said


def test_check_fails_a_wrong_schedule_without_sampling(mine, capsys):
    assert main(["check", "--sampler", "DPM2", "--schedule", "mine_to_check.Unsound", "Flow"]) == 1
    said = capsys.readouterr().out
    table = rows(said)
    assert re.search(r"FAIL: sde: g\^2 differs by", table[next(k for k in table if k[0] == "Unsound")][-1])
    assert ("DPM2", "Unsound") not in table and table["DPM2", "Flow"][-1] == "ok"
    assert "samplers are not walked on a schedule that fails" in said and "1 FAIL" in said


def test_check_writes_a_page_with_its_command_and_tables(mine, capsys):
    """The page has its command, one row per sampler, and both kinds of figures."""
    argv = ["check", "--sampler", "DDIM", "mine_to_check.Wrong", "--schedule", "VE", "Cosine", "--out", "a/check.md"]
    assert main(argv) == 1
    page = (mine / "a" / "check.md").read_text()
    assert f"`diffusion {' '.join(argv)}` (" in page and "CPU cores" in page
    table = rows(page)
    assert table["DDIM", "1"][-1] == "2 of 2 ok" and table["Wrong", "1"][-1] == "0 of 2 ok"
    assert table["DDIM(eta=1.0)", "0.98 .. 0.98"][0] == "0.0 / 0.0 / 0.0"
    assert "- Wrong on VE: order" in page
    capsys.readouterr()


def test_check_in_python_equals_the_command(capsys):
    assert main(["check", "--sampler", "DDIM", "--schedule", "VP"]) == 0
    said = capsys.readouterr().out
    report = diffusion.check("DDIM", [VP])
    assert f"{report}\n" == said and report.failures == []
    assert [(r.sampler, r.schedule) for r in report.results] == [("DDIM", "VP"), ("DDIM(eta=1.0)", "VP")]


def test_check_preserves_the_random_state():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    diffusion.check(DDIM, VP)
    assert torch.equal(torch.rand(4), wanted)
