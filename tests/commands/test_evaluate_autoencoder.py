"""`diffusion evaluate` of an autoencoder: PSNR and distances of reconstructed test images."""

import json
import math

import pytest
import torch

from diffusion.cli import main
from diffusion.data import Digits
from diffusion.denoiser.codecs import Frozen
from diffusion.judging.reconstructions import psnr

QUICK = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An autoencoder of digits and a classifier of them, each trained for an epoch."""
    out = tmp_path_factory.mktemp("runs")
    assert main(["fit", "-c", "configs/digits_autoencoder.yaml", *QUICK, "--data.limit", "320", "--out", str(out)]) == 0
    assert main(["fit", "-c", "configs/features_digits.yaml", *QUICK, "--experiment", "judge", "--out", str(out)]) == 0
    return out / "digits_autoencoder" / "version_0", out / "judge" / "version_0"


def test_the_figures_are_those_of_the_reconstructions(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path))
    run, judge = runs
    assert main(["evaluate", str(run), "--features", str(judge), "--n", "100", "--metrics", "frechet"]) == 0
    said = capsys.readouterr().out
    record = json.loads(next((run / "evaluation").glob("*reconstructions-n100.json")).read_text())
    assert [figure["metric"] for figure in record["figures"]] == ["frechet"]
    images, _ = Digits().arrays("test")
    x0 = images[torch.arange(100) * len(images) // 100] / 127.5 - 1
    codec = Frozen(str(run))
    with torch.no_grad():
        back = ((codec.image(codec.code(x0)).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    wanted = 10 * math.log10(4 / (back - x0).double().square().mean())
    assert record["psnr"][0] == pytest.approx(wanted, abs=1e-3) and f"PSNR {wanted:.2f} dB" in said
    assert record["psnr"][1] < record["psnr"][0] < record["psnr"][2]
    assert record["setting"]["latent"] == "4x4x2"


def test_the_linear_codec_has_the_error_of_the_left_out_eigenvalues(runs, monkeypatch, tmp_path, float64):
    """On the images it was fitted to: digits of 2x2 patches with 2 components."""
    from diffusion.denoiser.codecs import PCA
    from diffusion.judging.reconstructions import batches

    data = Digits()
    codec, n = PCA(1, 2, 2).double(), len(data.store("train")[0])
    codec.prepare(lambda: batches(data, "train", n, 500))
    x0 = torch.cat(list(batches(data, "train", n, 500))).double()
    values = torch.linalg.eigvalsh(codec.patches(x0).transpose(0, 1).flatten(1).cov(correction=0))
    error = (codec.image(codec.code(x0)) - x0).square().mean()
    torch.testing.assert_close(error, values[:2].sum() / 4, rtol=1e-6, atol=0)


def test_psnr_of_known_errors():
    assert psnr(torch.full((5,), 0.04)) == pytest.approx((20, 20, 20))
    low, high = psnr(torch.tensor([0.03, 0.05]))[1:]
    assert low == pytest.approx(10 * math.log10(4 / (0.04 + 1.96 * 0.02**0.5 / 10 / 2**0.5)), abs=1e-6) and high > 20


def test_an_autoencoder_is_evaluated_alone(runs, capsys):
    run = str(runs[0])
    for words in ([run, run], [run, "--sweep", "steps=1,2"], [run, "--sampler", "DDIM"]):
        assert main(["evaluate", *words]) == 2
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffusion")]
        assert len(err) == 1 and "an autoencoder is evaluated alone" in err[0]
