"""Conditions from end to end: an image beside x, hints, null, guidance, resumption, errors."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from diffusion import Condition, Denoiser, Diffusion, Pipeline
from diffusion.data import Digits
from diffusion.denoiser.hints import LowResolution, Masked
from diffusion.denoiser.targets import X0, V
from diffusion.guidance import ClassifierFree
from diffusion.loss.objective import Objective
from diffusion.nets import AttentionUNet, ResidualMLP
from diffusion.noise import Cosine, Linear
from diffusion.samplers import DDIM


def tiny(hint=LowResolution(2), num_classes=0, image_channels=1, width=16, **kwargs):
    torch.manual_seed(0)
    net = ResidualMLP(1, (8, 8), width=width, depth=1, num_classes=num_classes, image_channels=image_channels)
    nn.init.normal_(net.outc.weight, std=0.1)  # initially 0
    return Diffusion(net, Cosine(50), V(), sampler=DDIM(3), hint=hint, shape=(1, 8, 8), **kwargs)


class Shown(nn.Module):
    """Outputs the image that it receives beside x, and records its inputs."""

    image_channels = 1

    def forward(self, x, clock, y=None, keep=None):
        self.asked = x, y, keep
        return x[:, -1:]


def test_the_image_is_resized_to_x_and_reaches_the_network():
    net, t = Shown(), Linear().level(torch.tensor(0.5, dtype=torch.float64))
    denoiser, x, image = Denoiser(net, Linear(), X0()), torch.randn(3, 1, 4, 4), torch.randn(3, 1, 2, 2)
    pred = denoiser(x, t, Condition(image=image))
    assert net.asked[0].shape == (3, 2, 4, 4) and torch.equal(net.asked[0][:, :1], x)
    assert torch.equal(pred.x0, image.repeat_interleave(2, 2).repeat_interleave(2, 3))  # nearest
    assert torch.equal(denoiser(x, t, Condition(image=pred.x0)).x0, pred.x0)  # of x's size: unchanged


def test_the_order_of_channels_is_x_previous_image():
    net, t = Shown(), Linear().level(torch.tensor(0.5, dtype=torch.float64))
    net.self_condition = True
    x, guess, image = torch.randn(3, 2, 1, 4, 4)
    Denoiser(net, Linear(), X0())(x, t, Condition(previous=guess, image=image))
    assert torch.equal(net.asked[0], torch.cat([x, guess, image], dim=1))


def test_training_drops_labels_and_never_the_image():
    net, x0 = Shown(), torch.zeros(2000, 1, 2, 2)
    image = torch.randn(2000, 1, 2, 2)
    Objective(drop=0.3)(Denoiser(net, Linear(), X0()), x0, Condition(torch.arange(2000) % 10, image=image))
    x, _, keep = net.asked
    assert 0.25 < 1 - keep.float().mean() < 0.35 and torch.equal(x[:, 1:], image)


def test_guidance_keeps_the_image():
    """Both halves of a guided batch receive it: guidance has no effect on a network that outputs the image."""
    net, t = Shown(), Linear().level(torch.tensor(0.5, dtype=torch.float64))
    denoiser, x, image = Denoiser(net, Linear(), X0()), torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    cond = Condition(torch.arange(3), image=image)
    assert torch.allclose(ClassifierFree(3.0)(denoiser, cond)(x, t).x0, image, atol=1e-6)
    assert len(net.asked[0]) == 6


def test_null_is_a_learned_row_and_not_a_context_of_zeros(float64):
    net = AttentionUNet(1, (8, 16), attention=9, context_dim=4)
    nn.init.normal_(net.condition.null)
    x, clock = torch.randn(2, 1, 8, 8), torch.zeros(2)
    dropped = net(x, clock, torch.zeros(2, 4), torch.tensor([True, False]))
    zeros, null = net(x, clock, torch.zeros(2, 4)), net(x, clock)
    torch.testing.assert_close(dropped[0], zeros[0])
    torch.testing.assert_close(dropped[1], null[1])
    assert (zeros - null).abs().max() > 1e-3
    null.sum().backward()
    assert net.condition.null.grad.abs().max() > 0


def test_the_image_reaches_the_samples(float64):
    model = tiny()
    image = torch.rand(4, 1, 4, 4) * 2 - 1
    x = model.pipeline.sample(4, image=image)
    assert (model.pipeline.sample(4, image=-image) - x).abs().max() > 0.05
    assert torch.equal(model.pipeline.sample(4, image=image), x)
    torch.testing.assert_close(model.pipeline.sample(4, image=image, batch_size=3), x)
    assert (model.pipeline.sample(4, image=image[[0, 1, 2, 0]])[:3] - x[:3]).abs().max() == 0  # one per image


def test_conditions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image of 1 channels, but none was given; pass image="):
        tiny().pipeline.sample(2)
    with pytest.raises(ValueError, match="got an image as a condition, but .* image_channels 0"):
        tiny(None, image_channels=0).pipeline.sample(2, image=torch.zeros(2, 1, 4, 4))
    for wrong in (torch.zeros(2, 2, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(2, 8, 8)):
        with pytest.raises(ValueError, match=r"expected a condition image \(2, 1, H, W\)"):
            tiny().pipeline.sample(2, image=wrong)
    with pytest.raises(ValueError, match="make the network with image_channels 2, not 1"):
        tiny(Masked())
    with pytest.raises(ValueError, match="factor 3 does not divide"):
        tiny(LowResolution(3))


def trainer(path, epochs):
    return pl.Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=path, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_train_batches=4,
    )  # fmt: skip


def test_validation_is_reproducible_and_uses_the_hint(tmp_path):
    """The loss is the same for every batch size, differs with the seed of the masks, and depends on the hint."""
    losses = []
    for size, seed in ((50, 0), (50, 0), (36, 0), (50, 1)):
        found = trainer(tmp_path, 1).validate(tiny(Masked(), 10, 2, seed=seed), Digits(batch_size=size), verbose=False)
        losses.append(found[0]["val/loss"])
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-5) and losses[0] != losses[3]


def test_training_masks_are_redrawn_and_independent_of_the_noise():
    """Masks depend on step and image, and are independent of the noise of the same seed."""
    model = tiny(Masked(), 10, 2)
    x0 = torch.ones(8, 1, 8, 8)
    masks = model.pipeline.shown(x0, range(8))[:, 1]
    assert torch.equal(masks, model.pipeline.shown(x0, range(8))[:, 1])
    assert torch.equal(masks[3:], model.pipeline.shown(x0[3:], range(3, 8))[:, 1])
    assert len({m.numpy().tobytes() for m in masks}) > 4
    assert not torch.equal(masks, model.pipeline.shown(x0, range(8), seed=1)[:, 1])
    from diffusion.noise.draws import ImageDraws

    assert not torch.equal(masks, model.pipeline.hint(x0, ImageDraws(model.seed, range(8)))[:, 1])


def test_a_run_with_a_hint_resumes_to_the_bit_and_rebuilds(tmp_path):
    """Masks are a function of the step: two epochs equal one epoch and one resumed."""

    def fit(epochs, **kwargs):
        model = tiny(Masked(0.2, 0.9, 2), 10, 2, lr=1e-2)
        t = trainer(tmp_path, epochs)
        t.fit(model, Digits(batch_size=32), **kwargs)
        return model, t

    whole, _ = fit(2)
    _, t = fit(1)
    t.save_checkpoint(tmp_path / "one.ckpt")
    resumed, t = fit(2, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    t.save_checkpoint(tmp_path / "two.ckpt")
    again = Pipeline.load(tmp_path / "two.ckpt", "raw")
    assert vars(again.hint) == {"low": 0.2, "high": 0.9, "holes": 2} and again.denoiser.image_channels == 2
    image = torch.zeros(2, 2, 8, 8)
    resumed.eval()
    torch.testing.assert_close(again.sample(2, image=image), resumed.pipeline.sample(2, image=image))


def test_a_network_learns_from_its_hint():
    """Digits from their 4x4 means: after 150 steps the loss is well below that of a network without the hint."""
    images = Digits().arrays("train")[0].float() / 127.5 - 1
    losses = {}
    for hint in (LowResolution(2), None):
        model = tiny(hint, image_channels=int(hint is not None), width=64)
        optimizer, seen = torch.optim.Adam(model.parameters(), 5e-3), []
        torch.manual_seed(0)
        for _ in range(150):
            x0 = images[torch.randint(len(images), (64,))]
            cond = Condition(image=hint(x0) if hint else None)
            terms = Objective()(model.denoiser, x0, cond)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            seen.append(float(terms.error.mean()))
        losses[hint is not None] = sum(seen[-50:]) / 50
    assert losses[True] < 0.75 * losses[False], losses
