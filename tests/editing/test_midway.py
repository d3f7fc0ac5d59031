"""Walks that start or stop at an intermediate level: `img2img` and `stop`."""

import pytest
import torch

from diffusion.bench.analytic import Gaussian
from diffusion.generation.editing import img2img, stop
from diffusion.noise import Cosine
from diffusion.samplers import DDIM, DDPM, UniPC

from . import ideal

pytestmark = pytest.mark.usefixtures("float64")  # walks in both directions amplify rounding


def test_img2img_with_strength_0_is_the_input_and_1_is_sampling():
    x0, y = ideal.data(5), torch.tensor([0, 1, 2, 0, 1])
    for sampler in (DDPM(10), DDIM(10), UniPC(5)):
        model = ideal.model(sampler)
        assert torch.equal(img2img(model, x0, 0.0, y), x0)
        assert torch.equal(img2img(model, x0, 1.0, y, seed=7), model.sample(5, y, seed=7))


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.6])
def test_img2img_moves_as_far_as_the_flow(strength):
    """x_0' = mean + std (alpha (x_0 - mean) + sigma z) / v, v^2 = (alpha std)^2 + sigma^2: exact for Gaussian data."""
    model, x0 = ideal.model(DDIM(500)), ideal.data(200)
    t = Cosine().level(torch.tensor(strength).double())
    ratio = ideal.STD / (t.alpha**2 * ideal.STD**2 + t.sigma**2).sqrt()
    away = x0 - ideal.MEANS[1]
    predicted = ((t.alpha * ratio - 1) ** 2 * away.square().mean() + (ratio * t.sigma) ** 2).sqrt()
    moved = (img2img(model, x0, strength) - x0).square().mean().sqrt()
    assert float(moved) == pytest.approx(float(predicted), rel=0.03)  # 3,200 pixels


def test_img2img_with_another_label_changes_the_image():
    model, x0 = ideal.model(DDIM(20)), ideal.data(50, label=0)
    made = img2img(model, x0, 0.9, torch.full((50,), 2))
    kept = img2img(model, x0, 0.9, torch.full((50,), 0))
    assert float(made.mean()) > 0.3 and float(kept.mean()) == pytest.approx(-0.5, abs=0.05)


def test_img2img_does_not_depend_on_the_batch():
    model, x0 = ideal.model(DDPM(10)), ideal.data(5)
    made = img2img(model, x0, 0.5, seed=2)
    torch.testing.assert_close(img2img(model, x0, 0.5, seed=2, batch_size=2), made, rtol=0, atol=1e-5)
    torch.testing.assert_close(img2img(model, x0[:1], 0.5, seed=2), made[:1], rtol=0, atol=1e-5)


def test_stop_gives_frames_at_the_requested_times():
    model, y = ideal.model(DDIM(10)), torch.tensor([0, 2])
    frames = stop(model, [0.0, 0.52, 1.0], 2, y, seed=3)
    assert [round(float(f.t.t), 3) for f in frames] == [1.0, 0.5, 0.0]
    mean = torch.tensor([ideal.MEANS[0], ideal.MEANS[2]])[:, None, None, None]
    for frame in frames[:2]:
        torch.testing.assert_close(frame.x0, Gaussian(mean, ideal.STD)(frame.x, frame.t).x0, rtol=0, atol=1e-5)
    assert torch.equal(frames[0].x, model.start(2, 3))
    assert torch.equal(frames[1].x, list(model.frames(2, y, 3))[4].x)
    assert torch.equal(frames[2].x, model.sample(2, y, 3)) and torch.equal(frames[2].x, frames[2].x0)


def test_stop_ends_the_walk_early():
    model = ideal.model(DDIM(10))
    net = model.denoiser.net
    net.calls = 0
    stop(model, [0.4], 1)
    assert net.calls == 7  # six steps from 1 to 0.4, and the prediction there


def test_img2img_and_stop_refuse_times_out_of_range():
    for strength in (-0.1, 1.1):
        with pytest.raises(ValueError, match="0 is the image, 1 is pure noise"):
            img2img(ideal.model(), ideal.data(1), strength)
    for at in ([], [0.5, 2.0]):
        with pytest.raises(ValueError, match="times in"):
            stop(ideal.model(), at)
