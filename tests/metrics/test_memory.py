"""A model trained on 32 digits triggers the memorisation alert; the same model trained on all digits does not."""

import pytest
import torch

from diffusion import Diffusion
from diffusion.data import Digits
from diffusion.denoiser.targets import V
from diffusion.guidance import Plain
from diffusion.metrics.evaluator import Evaluator
from diffusion.metrics.extractor import Extractor
from diffusion.metrics.features import train_classifier
from diffusion.metrics.memory import Memory
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.samplers import UniPC
from diffusion.support.scaling import Scaling


def trained(images, y, steps, batch=32):
    """A small model after a number of steps on images and labels."""
    torch.manual_seed(0)
    net = AttentionUNet(1, widths=(16, 32, 32), heads=2, num_classes=10, ones=True)
    model = Diffusion(net, Cosine(), V(), guidance=Plain(), shape=(1, 8, 8)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.99))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(images), (batch,))
        x0 = images[index].float() / 127.5 - 1
        optimizer.zero_grad()
        model.objective(model.denoiser, x0, model.pipeline.condition(y[index])).loss.backward()
        optimizer.step()
        fall.step()
    return model.eval().pipeline


@pytest.mark.slow
@pytest.mark.parametrize("limit, alarm", [(32, True), (0, False)])
def test_memorising_the_training_set_raises_the_alert(limit, alarm):
    data = Digits(limit=limit)
    images, y = data.arrays("train")
    model = trained(images, y, 2000)
    extractor = Extractor.of(
        train_classifier(*(lambda x, y: (x.float() / 127.5 - 1, y))(*Digits().arrays("train"))), ""
    )
    judge = Evaluator(extractor, "Digits", (images, y), data.arrays("test"))
    asked = judge.labels(200)
    samples = judge.describe(Scaling().decode(model.sample(200, asked, seed=1, sampler=UniPC(20))), asked)
    found = {f.name: f for f in judge.figures(samples, [Memory()])}
    print({k: f.value for k, f in found.items()})
    assert any(f.alert for f in found.values()) == alarm
    assert (found["near_pixels"].value > 0.6) == alarm and (found["nearest_pixels"].value < 0.6) == alarm
