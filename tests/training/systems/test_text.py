"""Training with captions from end to end: the data's words reach the network, and a resumed run is the unbroken one."""

import shlex

import pytest
import pytorch_lightning as pl
import torch

from diffusion import Diffusion, Pipeline
from diffusion.data import Sprites
from diffusion.denoiser.targets import V
from diffusion.guidance import ClassifierFree
from diffusion.nets.unet import UNet
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.training.report import conditions, given


@pytest.mark.slow
def test_a_run_with_captions_resumes_to_the_bit_and_rebuilds(tmp_path):
    """Two epochs equal one epoch and one resumed; the checkpoint holds the vocabulary."""
    data = Sprites(captions=True, batch_size=8, limit=16)

    def fit(epochs, **options):
        torch.manual_seed(0)
        net = UNet(3, width=8, mults=[1, 2], blocks=1, attention=[1], head_width=8, text_width=8, text_depth=1,
                   tokens=data.tokens)  # fmt: skip
        model = Diffusion(net, Cosine(), V(), sampler=DDIM(2), guidance=ClassifierFree(2.0), shape=(3, 16, 16), lr=1e-2)
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, Sprites(captions=True, batch_size=8, limit=16), **options)
        return model, trainer

    whole, _ = fit(2)
    _, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed, trainer = fit(2, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    again = Pipeline.load(tmp_path / "two.ckpt", weights="raw")
    assert again.tokens == data.vocabulary and again.conditional
    resumed.eval()
    torch.testing.assert_close(again.sample(2, prompt="a red cat"), resumed.pipeline.sample(2, prompt="a red cat"))
    assert (
        conditions(resumed, data)
        == f", conditioned on text ({len(data.tokens['words'])} words, {again.tokens.length} tokens)"
    )
    text = data.texts("test")[0]
    assert shlex.split(given(resumed, data)) == ["--prompt", text] and " " in text
