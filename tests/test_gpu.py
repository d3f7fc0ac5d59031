"""On a GPU: the same answers, and a training step that never waits for the device."""

import pytest
import torch

from diffusion import Condition, Diffusion
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.noise.draws import StepDraws
from diffusion.samplers import DDIM
from diffusion.targets import V

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = AttentionUNet(1, (32, 64, 64), heads=2, num_classes=10, ones=True)
    return Diffusion(net, Cosine(), V(), sampler=DDIM(10), shape=(1, 8, 8))


def test_a_seed_gives_the_same_pictures_as_on_the_cpu(model):
    torch.testing.assert_close(model.cuda().sample(10), model.cpu().sample(10), rtol=0, atol=0.02)


def test_the_loss_and_its_gradient_never_wait_for_the_device(model):
    model = model.cuda()
    x0, y = torch.randn(64, 1, 8, 8, device="cuda"), torch.arange(64, device="cuda") % 10
    draws = StepDraws(0, 0, 0, "cuda")
    model.objective(model.denoiser, x0, Condition(y), draws.normal, draws.uniform).loss.backward()  # warm-up
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = model.objective(model.denoiser, x0, Condition(y), draws.normal, draws.uniform).loss
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
