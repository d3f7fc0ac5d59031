"""Denoisers loaded from a checkpoint file, without Lightning."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion import Diffusion
from diffusion.denoiser import Condition, load_denoiser
from diffusion.support.specs import build, complete, today

OLD = Path(__file__).resolve().parents[1] / "files" / "version_0_1"


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_loaded_denoiser_is_the_trained_one(weights):
    saved, model = load_denoiser(OLD, weights), Diffusion.load(OLD, weights)
    assert saved.path == OLD / "checkpoints" / "last.ckpt" and saved.checkpoint["global_step"] > 0
    assert not saved.denoiser.training and complete(saved.hyper_parameters) == complete(dict(model.hparams))
    theirs = model.denoiser.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in saved.denoiser.state_dict().items())
    C, H, W = model.pipeline.shape
    x, level = torch.randn(2, C, H, W), model.denoiser.schedule.level(torch.tensor(0.5).double())
    image = torch.randn(2, model.denoiser.image_channels, H, W) if model.denoiser.image_channels else None
    with torch.no_grad():
        mine, right = (d(x, level, Condition(image=image)) for d in (saved.denoiser, model.denoiser))
    assert torch.equal(mine.x0, right.x0)


def test_averaged_and_raw_weights_differ():
    ema, raw = (load_denoiser(OLD, w).denoiser.state_dict() for w in ("ema", "raw"))
    assert any(not torch.equal(ema[k], raw[k]) for k in ema)


@pytest.mark.slow
def test_a_denoiser_and_its_guides_load_without_lightning():
    code = (
        "import sys; from diffusion.denoiser import load_denoiser; import diffusion.guidance, diffusion.samplers; "
        f"load_denoiser({str(OLD)!r}); "
        "print([m for m in sys.modules if m.split('.')[0] in ('pytorch_lightning', 'lightning', 'argparse')][:3])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lightning" not in done.stdout


def test_old_names_of_classes_and_arguments_are_mapped():
    old = {"class_path": "diffusion.objective.Objective", "init_args": {"guess": 0.25, "drop": 0.0}}
    assert today(old) == {
        "class_path": "diffusion.loss.objective.Objective", "init_args": {"self_condition": 0.25, "drop": 0.0}
    }  # fmt: skip
    assert build(old).self_condition == 0.25
    for package in ("diffusion.systems.guides", "diffusion.training.systems.guides"):
        guide = {"class_path": f"{package}.AutoGuidance", "init_args": {"guess": 1}}
        assert today(guide) == guide | {"class_path": "diffusion.guidance.guides.AutoGuidance"}
    system = "diffusion.training.systems.Diffusion"
    assert today({"class_path": "diffusion.systems.Diffusion"}) == {"class_path": system}
