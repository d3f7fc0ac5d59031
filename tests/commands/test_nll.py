"""`diffusion nll` prints the figures of the library for the images it names."""

import json
import re

import pytest
import torch

import diffusion
from diffusion import Pipeline
from diffusion.cli import main
from diffusion.data import Digits
from diffusion.likelihood import vlb
from diffusion.likelihood.flow import bits_per_dim, dequantise, log_likelihood
from diffusion.noise.draws import ImageDraws


def test_nll_reports_the_numbers_of_the_library(tiny, tmp_path, capsys):
    out = tmp_path / "nll.json"
    options = ["--n", "7", "--steps", "12", "--batch_size", "4", "--seed", "3", "--out", str(out)]
    assert main(["nll", str(tiny), *options]) == 0
    text = capsys.readouterr().out
    found = json.loads(out.read_text())
    model = Pipeline.load(tiny)
    model.denoiser.requires_grad_(False)
    images, y = (v[:7] for v in Digits(limit=320).arrays("test"))
    x0, schedule = images.float() / 127.5 - 1, model.denoiser.schedule
    tables, odes = [], []
    for part in (slice(0, 4), slice(4, 7)):  # in other batches the adaptive solver takes other steps
        denoise, numbers = model.denoiser.bind(model.condition(y[part])), range(7)[part]
        with torch.no_grad():
            terms = vlb.terms(model.clamp(denoise), x0[part], schedule, 12, "large", noise=ImageDraws(3, numbers))
            tables.append(torch.stack(list(terms)))
        noise = ImageDraws(3, numbers)
        density = log_likelihood(denoise, dequantise(x0[part], noise), schedule, rtol=1e-3, atol=1e-3, noise=noise)
        odes.append(bits_per_dim(density, 64))
    table = torch.cat(tables, dim=1)
    torch.testing.assert_close(torch.tensor(found["vlb"]), table, check_dtype=False)
    torch.testing.assert_close(torch.tensor(found["ode"]), torch.cat(odes), check_dtype=False)
    mean, error = (float(v) for v in re.search(r"vlb  (\S+) \+- (\S+) bits/dim", text).groups())
    bits = table.double().sum(0)
    assert mean == pytest.approx(float(bits.mean()), rel=1e-3)
    assert error == pytest.approx(float(bits.std()) / 7**0.5, rel=1e-2)
    rows = re.findall(r"^    L_.*?\s([\d.]+)$", text, re.M)
    assert len(rows) >= 5 and sum(map(float, rows)) == pytest.approx(mean, abs=1e-3)
    assert "7 images of the test split, 64 dimensions, conditioned on the labels" in text


def test_nll_in_python_equals_the_command(tiny, capsys):
    words = ["--n", "5", "--steps", "6", "--method", "vlb", "--split", "train", "--data.limit", "40"]
    assert main(["nll", str(tiny), *words]) == 0
    said = re.sub(r"\d+ s on", "s on", capsys.readouterr().out)
    report = diffusion.nll(tiny, n=5, steps=6, method="vlb", split="train", data={"limit": 40})
    assert re.sub(r"\d+ s on", "s on", f"{report}\n") == said
    (figure,) = report.figures
    assert figure["method"] == "vlb" and figure["n"] == 5 and report.bits.ode is None
    assert figure["value"] == pytest.approx(float(report.bits.vlb.sum(0).mean())) and report.bits.vlb.shape == (7, 5)
    assert report.request.variance == "large"  # the network has no learned one


@pytest.mark.slow
def test_nll_without_labels_differs(tiny, capsys):
    def bits(*more):  # a coarse solver: an untrained flow is rough
        assert main(["nll", str(tiny), "--n", "3", "--method", "ode", "--tolerance", "0.1", *more]) == 0
        return float(re.search(r"ode  (\S+)", capsys.readouterr().out)[1])

    assert bits() != bits("--unconditional")
    assert bits("--exact") == pytest.approx(bits(), rel=0.05)


@pytest.mark.parametrize(
    "options, message",
    [(["--steps", "0"], "at least 1"), (["--tolerance", "-1"], "positive"), (["--data.rot", "x"], "rot"),
     (["--variance", "learned", "--n", "2"], "learn_variance")],
)  # fmt: skip
def test_nll_reports_bad_input_in_one_line(tiny, capsys, options, message):
    assert main(["nll", str(tiny), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
