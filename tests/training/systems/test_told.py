"""An augmentation that the network is told of, with the other parts of a model: all of them in one training."""

import pytest
import torch

from diffusion.cli import main
from diffusion.denoiser import load_denoiser
from diffusion.generation.pipeline import Pipeline
from diffusion.support.runs import read_checkpoint

WORDS = [
    "fit", "-c", "configs/digits.yaml", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2",
    "--data.limit", "16",
    "--data.batch_size", "8", "--trainer.limit_val_batches", "1", "--samples.every_n_epochs", "0",
    "--gif.n", "1", "--gif.frames", "2", "--model.sampler.steps", "2",
    "--model.net.widths", "[8,8]", "--model.net.attention", "1", "--model.net.heads", "2", "--model.codec", "PCA",
    "--model.codec.factor", "2", "--model.codec.latent", "2", "--model.augment", "NonLeaking",
    "--model.augment.changes", "[scale,shift]", "--model.augment.p", "1",
]  # fmt: skip
FLOW_MAP = [
    "--model.objective", "FlowMap", "--model.objective.path", "FromSelf", "--model.net.second_clock", "true",
    "--model.objective.dispersive", "Dispersive", "--model.objective.dispersive.layer", "inc", "--model.target", "V",
    "--model.optimizer", "Muon", "--lr_scale", "condition=10", "--freeze", "maps",
]  # fmt: skip


@pytest.mark.parametrize("more", [[], FLOW_MAP], ids=["Objective", "FlowMap"])
def test_hint_latents_and_numbers_are_trained_together_and_sampled_without_the_numbers(more, tmp_path, capsys):
    """The network's input has 2 latents, the hint's channels folded to their size, and 3 numbers, which it is told."""
    hint = ["--model.hint", "Masked"]
    assert main([*WORDS, *hint, *more, "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    run = tmp_path / "digits" / "version_0"
    read = read_checkpoint(next((run / "checkpoints").glob("last.ckpt")))
    trained = read["hyper_parameters"]["net"]["init_args"]["image_channels"]
    saved, pipeline = load_denoiser(run), Pipeline.load(run)
    assert saved.denoiser.told == 0 and saved.denoiser.image_channels == trained - 3
    raw = read["state_dict"]["denoiser.net.inc.body.0.weight"]
    own = load_denoiser(run, "raw").denoiser.net.inc.body[0].weight
    torch.testing.assert_close(own, torch.cat([raw[:, : 2 + trained - 3], raw[:, 2 + trained :]], 1))
    assert raw[:, 2 + trained - 3 : 2 + trained].any()  # they have been trained
    image = pipeline.hint.shape(pipeline.shape)
    assert pipeline.sample(2, torch.tensor([1, 2]), image=torch.zeros(2, *image)).shape == (2, 1, 8, 8)


def test_latents_that_are_encoded_once_are_refused(capsys, tmp_path):
    assert main([*WORDS, "--data.latents", "cache", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "NonLeaking changes the images in each epoch" in said and "leave model.augment out" in said
