"""Imported folders of diffusers: the network's output, its parts, and what is refused."""

import json

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from diffusion.cli import main
from diffusion.denoiser.targets import V
from diffusion.exchange.importing.run import import_run, load
from diffusion.exchange.rows import write
from diffusion.exchange.unet2d import renamed, table
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance.bounds import Clamp, Unbounded
from diffusion.noise import Cosine, Linear
from diffusion.samplers import DDIM, DDPM
from diffusion.support.runs import read_checkpoint

diffusers = pytest.importorskip("diffusers", reason="pip install -e '.[test]'")

CIFAR = {  # the layout of google/ddpm-cifar10-32, narrower
    "sample_size": 8, "block_out_channels": [32, 64, 64, 64], "layers_per_block": 2, "attention_head_dim": None,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0,
}  # fmt: skip
ADM = {
    "sample_size": [8, 16], "in_channels": 1, "out_channels": 2, "block_out_channels": [32, 48],
    "layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 16, "attn_norm_num_groups": 16,
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet",
    "num_class_embeds": 3,
}  # fmt: skip
SWAPPED = {
    "sample_size": 8, "block_out_channels": [32, 32], "layers_per_block": 1, "freq_shift": 1,
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
}  # fmt: skip


def randomise(net):
    """Random values for all parameters, also norms and biases."""
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.05) if p.ndim > 1 else nn.init.uniform_(p, -0.5, 1.0)
    return net.eval()


def published(folder, config, scheduler, safe=True):
    """A pipeline's folder with random weights, and its network."""
    net = randomise(diffusers.UNet2DModel(**config))
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(folder, safe_serialization=safe)
    return net


@pytest.fixture
def folder(tmp_path):
    published(tmp_path / "cifar", CIFAR, diffusers.DDPMScheduler(variance_type="fixed_large"))
    return tmp_path / "cifar"


def equals(run, net, y=None):
    ours, (C, H, W) = Pipeline.load(run).denoiser.net, Pipeline.load(run).shape
    x, t = torch.randn(2, C, H, W), torch.tensor([3.0, 977.0])
    with torch.no_grad():
        a, b = ours(x, t, y), net(x, t, y).sample
    assert a.shape == b.shape and (a - b).norm() / b.norm() < 1e-5


@pytest.mark.parametrize("config", [CIFAR, ADM, SWAPPED], ids=["cifar", "adm", "swapped"])
@pytest.mark.parametrize("safe", [True, False])
def test_an_imported_network_outputs_the_same(config, safe, tmp_path):
    net = published(tmp_path / "theirs", config, diffusers.DDPMScheduler(), safe)
    run = import_run(tmp_path / "theirs", tmp_path / "run", tell=lambda note: None)
    equals(run, net, torch.tensor([2, 0]) if config is ADM else None)


def test_pictures_of_an_imported_folder_equal_the_pipelines(folder, tmp_path):
    """DDIM with 10 leading steps, clamped, from the same noise."""
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    net = published(tmp_path / "ddim", CIFAR, scheduler)
    pipeline = Pipeline.load(import_run(tmp_path / "ddim", tmp_path / "run"))
    assert isinstance(pipeline.sampler, DDIM) and pipeline.sampler.grid == "leading"
    x = pipeline.start(2, seed=5)
    ours = pipeline.sample(2, seed=5, sampler=DDIM(10, grid="leading"))
    scheduler.set_timesteps(10)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    assert (ours - x).abs().max() < 1e-3  # float32 tables over ten steps


def test_the_weight_table_gives_their_state_back(folder):
    model = load(folder)
    theirs = diffusers.UNet2DModel.from_pretrained(folder / "unet").state_dict()
    state = write(table(model.net), model.weights)
    assert state.keys() == theirs.keys() and all(torch.equal(state[k], theirs[k]) for k in state)


def test_attention_weights_of_older_versions_are_renamed():
    old = {"mid_block.attentions.0.query.weight": torch.zeros(2, 2, 1, 1), "mid_block.attentions.0.proj_attn.bias": 1}
    old["mid_block.attentions.0.proj_attn.bias"] = torch.zeros(2)
    new = renamed(old)
    assert new["mid_block.attentions.0.to_q.weight"].shape == (2, 2)
    assert set(new) == {"mid_block.attentions.0.to_q.weight", "mid_block.attentions.0.to_out.0.bias"}


def test_a_scheduler_becomes_schedule_target_sampler_and_limit(folder, tmp_path):
    model = load(folder)
    assert isinstance(model.schedule, Linear) and (model.sampler.variance, model.sampler.steps) == ("large", 1000)
    assert isinstance(model.clamp, Clamp) and (model.clamp.low, model.clamp.high) == (-1, 1)
    scheduler = diffusers.DDPMScheduler(
        200, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    published(tmp_path / "other", CIFAR, scheduler)
    model = load(tmp_path / "other")
    assert isinstance(model.schedule, Cosine) and isinstance(model.target, V) and isinstance(model.clamp, Unbounded)
    assert isinstance(model.sampler, DDPM) and model.sampler.grid == "trailing"
    # Their last beta, .999 in float32, leaves 1 - beta with an error of 1e-5.
    np.testing.assert_allclose(model.schedule.betas(), scheduler.betas.double(), rtol=1e-5, atol=1e-7)


def test_a_linear_schedule_of_other_length_keeps_its_betas(tmp_path):
    scheduler = diffusers.DDPMScheduler(250, beta_start=1e-3, beta_end=0.05)
    published(tmp_path / "other", CIFAR, scheduler)
    np.testing.assert_allclose(load(tmp_path / "other").schedule.betas(), scheduler.betas.double(), rtol=1e-5)


def refused(path, capsys, *words, at):
    """The one line with which the command refuses; nothing is left behind."""
    before = sorted(path.parent.iterdir())
    assert main(["import", str(path), "--out", str(path.parent / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and at in error, error
    assert sorted(path.parent.iterdir()) == before


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("file, values, at", [
    ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
    ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type 'fourier'"),
    ("unet/config.json", {"down_block_types": ["SkipDownBlock2D"] * 4}, "SkipDownBlock2D"),
    ("unet/config.json", {"sample_size": None}, "--sample_size 32"),
    ("unet/config.json", {"layers_per_block": 1}, "expected"),
    ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
    ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "learned_range"),
    ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding"),
    ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "latent"),
])  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(file, values, at, folder, capsys):
    changed(folder / file, **values)
    refused(folder, capsys, at=at)


def test_damaged_and_missing_files_are_refused_in_one_line(folder, capsys):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(folder, capsys, at="truncated")
    weights.unlink()
    refused(folder, capsys, at="neither")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(whole[:100])
    refused(folder, capsys, at="truncated, damaged")
    torch.save({"x": nn.Linear(1, 1)}, folder / "unet" / "diffusion_pytorch_model.bin")
    refused(folder, capsys, at="could run code")
    (folder / "unet" / "config.json").write_text("{")
    refused(folder, capsys, at="not JSON")
    refused(folder.parent / "none", capsys, at="no such")


def test_a_wrong_source_and_flag_are_refused(folder, capsys):
    refused(folder, capsys, "--from", "origin", at="use --from diffusers")
    refused(folder, capsys, "--from", "difusers", at="did you mean 'diffusers'")
    refused(folder, capsys, "--image_size", "8", at="not a flag of diffusers")
    refused(folder, capsys, "--data", "CIFAR10", at="3x32x32")


def test_an_imported_run_is_sampled_described_evaluated_and_fine_tuned(tmp_path, capsys):
    """As a new user would: digits-shaped weights from a folder of diffusers."""
    config = CIFAR | {"in_channels": 1, "out_channels": 1, "num_class_embeds": 10, "layers_per_block": 1}
    published(tmp_path / "theirs", config, diffusers.DDPMScheduler(10, beta_start=0.1, beta_end=0.9))
    run, out = tmp_path / "mine" / "version_0", tmp_path / "x.npz"
    assert main(["import", str(tmp_path / "theirs"), "--data", "Digits", "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "UNet, Linear, Eps, DDPM" in said and "without a null class" in said
    assert main(["sample", str(run), "--n", "2", "--steps", "2", "--out", str(out), "--device", "cpu"]) == 0
    assert main(["describe", str(run)]) == 0
    with np.load(out) as file:
        assert file["images"].shape == (2, 8, 8, 1)
    words = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--samples.n", "1", "--gif.n", "1"]
    config = str(run / "config.yaml")
    assert main(["validate", str(run), "--data.limit", "64"]) == 0
    fine = ["fit", "-c", config, "--resume", str(run / "checkpoints" / "imported.ckpt"), "--data.limit", "256"]
    assert main([*fine, "--out", str(tmp_path), "--experiment", "fine", *words]) == 0
    assert "changed: model" not in capsys.readouterr().out
    tuned = read_checkpoint(tmp_path / "fine" / "version_0" / "checkpoints" / "last.ckpt")
    before = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert tuned["global_step"] == 2
    moved = [(tuned["state_dict"][k] - before["state_dict"][k]).abs().max() for k in before["state_dict"]]
    assert 0 < max(moved) < 1e-2  # it began with the imported weights
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["class_path"].endswith("Digits")
