"""Imported checkpoints of denoising-diffusion-pytorch, made by that package."""

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.cli import main
from diffusion.denoiser.targets import X0, Eps, V
from diffusion.exchange.importing.run import import_run, load
from diffusion.generation.pipeline import Pipeline
from diffusion.noise import Cosine, Linear, SigmoidAlpha
from diffusion.samplers import DDIM, DDPM

ddp = pytest.importorskip("denoising_diffusion_pytorch", reason="pip install -e '.[test]'")
ema_pytorch = pytest.importorskip("ema_pytorch", reason="pip install -e '.[test]'")


def randomise(net, seed=0):
    torch.manual_seed(seed)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1) if p.ndim > 1 else nn.init.uniform_(p, -0.5, 1.0)
    return net.eval()


def saved(path, unet, **options):
    """A file as their Trainer.save writes it, with other averages than weights; the model and its average."""
    net = randomise(ddp.Unet(**{"dim": 8, "dim_mults": (1, 2)} | unet))
    model = ddp.GaussianDiffusion(net, image_size=8, timesteps=100, **options)
    ema = ema_pytorch.EMA(model, beta=0.99, update_every=1)
    randomise(ema.ema_model.model, 1)
    state = {"step": 7, "model": model.state_dict(), "opt": {}, "ema": ema.state_dict(), "scaler": None}
    torch.save(state | {"version": "2.3.4"}, path)
    return model, ema.ema_model


@pytest.mark.parametrize("unet, options, parts", [
    ({}, {}, (SigmoidAlpha, V)),
    ({"self_condition": True, "full_attn": (True, False), "channels": 1},
     {"objective": "pred_noise", "beta_schedule": "cosine"}, (Cosine, Eps)),
    ({"dim_mults": (1, 2, 2), "attn_heads": 2, "attn_dim_head": 16},
     {"objective": "pred_x0", "beta_schedule": "linear", "min_snr_loss_weight": True}, (Linear, X0)),
], ids=["v", "noise", "x0"])  # fmt: skip
def test_an_imported_model_outputs_the_same(unet, options, parts, tmp_path):
    """Raw and averaged weights, the schedule's table, and the prediction of x_0."""
    model, average = saved(tmp_path / "model-1.pt", unet, **options)
    run = import_run(tmp_path / "model-1.pt", tmp_path / "run", flags={"image_size": "8"}, tell=lambda note: None)
    for weights, theirs in (("raw", model), ("ema", average)):
        pipeline = Pipeline.load(run, weights)
        net, schedule = pipeline.denoiser.net, pipeline.denoiser.schedule
        assert (type(schedule), type(pipeline.denoiser.target)) == parts
        x, t = torch.randn(2, *pipeline.shape), torch.tensor([3, 77])
        previous = torch.randn_like(x) if net.self_condition else None
        with torch.no_grad():
            a = net(x if previous is None else torch.cat([x, previous], dim=1), t.float())
            b = theirs.model(x, t, previous)
            pred = pipeline.denoiser(x, schedule.level((t.double() + 1) / 100))
            expected = theirs.model_predictions(x, t).pred_x_start
        assert (a - b).norm() / b.norm() < 1e-5
        assert (pred.x0 - expected).norm() / expected.norm() < 1e-4  # their tables are in float32
    np.testing.assert_allclose(schedule.betas()[:-1], model.betas[:-1].double(), rtol=1e-3)


def test_the_checkpoint_keeps_step_and_sampler(tmp_path):
    saved(tmp_path / "model-1.pt", {})
    model = load(tmp_path / "model-1.pt", flags={"image_size": "8"})
    assert model.step == 7 and model.decay == 0.995 and isinstance(model.sampler, DDPM) and model.sampler.steps == 100
    model = load(tmp_path / "model-1.pt", flags={"image_size": "8", "sampling_timesteps": "25"})
    assert isinstance(model.sampler, DDIM) and model.sampler.steps == 25


def test_what_is_missing_or_not_supported_is_named(tmp_path, capsys):
    def refused(path, at, *words):
        assert main(["import", str(path), "--out", str(tmp_path / "run"), *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and at in error, error
        assert not (tmp_path / "run").exists()

    file = tmp_path / "model-1.pt"
    saved(file, {})
    refused(file, "--image_size 128")
    found = torch.load(file, weights_only=True)
    old = {k.replace(".norm.g", ".norm.weight"): v for k, v in found["model"].items()}
    torch.save(found | {"model": old}, tmp_path / "old.pt")
    refused(tmp_path / "old.pt", "version 1", "--image_size", "8")
    saved(tmp_path / "odd.pt", {"init_dim": 16})
    refused(tmp_path / "odd.pt", "init_dim 16", "--image_size", "8")
    saved(tmp_path / "tau.pt", {}, schedule_fn_kwargs={"tau": 0.5})
    refused(tmp_path / "tau.pt", "beta_schedule", "--image_size", "8")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(file, "truncated")
    torch.save({"model": found["model"], "net": nn.Linear(1, 1)}, file)
    refused(file, "could run code")
