"""The LightningModule: rebuilding from one file, sampling per image, exact resumption."""

import copy
import json
import math

import pytest
import pytorch_lightning as pl
import torch

from diffusion import Diffusion
from diffusion.data import Batches, Digits
from diffusion.denoiser.targets import V
from diffusion.guidance import ClassifierFree
from diffusion.loss.objective import Objective
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine, Linear
from diffusion.noise.draws import StepDraws
from diffusion.samplers import DDIM, DDPM
from diffusion.training.callbacks import EMA, Checkpoint, DurableIO, Guard
from diffusion.training.systems.base import lr_factor


def tiny(num_classes=10, **kwargs):
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=num_classes, dropout=0.1)
    options = {"schedule": Cosine(50), "target": V(), "sampler": DDIM(5), "lr": 1e-3, "shape": (1, 8, 8)} | kwargs
    return Diffusion(net, **options)


def trainer(tmp_path, **kwargs):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="x", version=0, default_hp_metric=False)
    callbacks = [EMA(0.9), Checkpoint(every_n_steps=kwargs.pop("save", 4), keep=99)]
    callbacks += [Guard()] * kwargs.pop("guard", False)
    options = {"max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False, "logger": logger}
    return pl.Trainer(
        accelerator="cpu", callbacks=callbacks, num_sanity_val_steps=0, plugins=[DurableIO()], log_every_n_steps=1,
        **({"gradient_clip_val": 1.0} | options | kwargs),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An uninterrupted run of 2 epochs of 7 steps, with a checkpoint at each step."""
    path = tmp_path_factory.mktemp("run")
    t = trainer(path, save=1)
    t.fit(tiny(), Digits(batch_size=48, limit=350))
    assert t.global_step == 14
    return path / "x" / "version_0"


def test_hyper_parameters_are_plain_and_rebuild_the_model(run):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    hparams = checkpoint["hyper_parameters"]
    assert json.loads(json.dumps(hparams))["net"]["init_args"]["widths"] == [8, 16]
    model = Diffusion.load(run, "raw")
    assert isinstance(model.denoiser.schedule, Cosine) and model.denoiser.schedule.T == 50
    assert isinstance(model.denoiser.target, V)
    assert model.pipeline.sampler.steps == 5 and model.pipeline.shape == (1, 8, 8)
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(model.state_dict()[name], value), name
    assert isinstance(Diffusion.load_from_checkpoint(run / "checkpoints" / "last.ckpt"), Diffusion)  # Lightning's way


def test_raw_and_averaged_weights_are_both_saved(run):
    raw, ema = Diffusion.load(run, "raw").state_dict(), Diffusion.load(run, "ema").state_dict()
    assert raw.keys() == ema.keys()
    assert any(not torch.equal(raw[k], ema[k]) for k in raw)


@pytest.mark.parametrize("step", [3, 7, 10])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, step):
    """From mid-epoch, the end (7) and the second epoch: data, noise, labels and units dropped, learning rates."""

    def model():
        torch.manual_seed(0)
        net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=10, dropout=0.1)
        return Diffusion(net, Cosine(50), V(), lr=1e-3, shape=(1, 8, 8), warmup=5, decay="cosine")

    whole, rest = trainer(tmp_path / "a", save=1), trainer(tmp_path / "b", save=1)
    whole.fit(model(), Digits(batch_size=48, limit=350))
    folder = tmp_path / "a" / "x" / "version_0" / "checkpoints"
    rest.fit(model(), Digits(batch_size=48, limit=350), ckpt_path=folder / f"step{step:08d}.ckpt", weights_only=True)
    a = torch.load(folder / "last.ckpt", weights_only=True)
    b = torch.load(tmp_path / "b" / "x" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.equal(b["state_dict"][k], v) for k, v in a["state_dict"].items())
    assert all(torch.equal(b["callbacks"]["EMA"]["shadow"][k], v) for k, v in a["callbacks"]["EMA"]["shadow"].items())


def test_pictures_do_not_depend_on_the_batch(float64):
    model = tiny(sampler=DDPM(10))
    whole = model.pipeline.sample(10, seed=3)
    for size in (1, 4, 7):
        torch.testing.assert_close(model.pipeline.sample(10, seed=3, batch_size=size), whole, rtol=0, atol=1e-6)
    assert (model.pipeline.sample(10, seed=4) - whole).abs().max() > 0.1
    assert (whole[0] - whole[1]).abs().max() > 0.1


def test_sampling_leaves_the_mode_as_it_was_and_ignores_dropout():
    model = tiny()
    model.train()
    assert torch.equal(model.pipeline.sample(2), model.pipeline.sample(2)) and model.training
    model.eval()
    model.pipeline.sample(2)
    assert not model.training


def test_guidance_and_labels_reach_the_network():
    model = tiny()
    three, four = (model.pipeline.sample(2, torch.full((2,), k)) for k in (3, 4))
    assert (three - four).abs().max() > 1e-3
    guided = model.pipeline.sample(2, torch.full((2,), 3), guidance=ClassifierFree(4))
    assert (guided - three).abs().max() > 1e-3


def test_in_turn_gives_classes_by_number_and_name():
    assert tiny().pipeline.in_turn(12).tolist() == [*range(10), 0, 1]
    assert tiny().pipeline.in_turn(3, 7).tolist() == [7] * 3
    assert tiny(num_classes=0).pipeline.in_turn(5) is None
    net = AttentionUNet(3, (8, 16), attention=9, context_dim=5)
    context = Diffusion(net, Linear(), shape=(3, 8, 8), class_names=("hero", "side", "food", "spell", "3"))
    assert torch.equal(context.pipeline.in_turn(6), torch.eye(5)[[0, 1, 2, 3, 4, 0]])
    for model, label in ((tiny(), 10), (tiny(), -1), (context, 5)):
        with pytest.raises(ValueError, match="labels are 0"):
            model.pipeline.in_turn(1, label)
    in_turn = context.pipeline.in_turn
    assert in_turn(1, "food").tolist() == [[0, 0, 1, 0, 0]] == in_turn(1, 2).tolist()
    assert in_turn(1, "3").argmax() == 4 and in_turn(1, 3).argmax() == 3  # a name takes precedence over a number
    with pytest.raises(ValueError, match="label herp: labels are 0 .. 4 .*; did you mean 'hero'"):
        context.pipeline.in_turn(1, "herp")
    nameless = Diffusion(net, Linear(), shape=(3, 8, 8))  # vectors, such as text embeddings: a one-hot means nothing
    assert nameless.pipeline.in_turn(4) is None and nameless.pipeline.in_turn(1, 1).tolist() == [[0, 1, 0, 0, 0]]
    with pytest.raises(ValueError, match="trained without labels"):
        tiny(num_classes=0).pipeline.in_turn(1, 0)


def test_validation_loss_is_the_same_every_time_and_for_every_batch_size(tmp_path):
    model, losses = tiny(), []
    for size in (50, 50, 36, 360):
        torch.manual_seed(size)
        (result,) = trainer(tmp_path).validate(model, Digits(batch_size=size), verbose=False)
        losses.append(result["val/loss"])
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-4) and losses[3] == pytest.approx(losses[0], rel=1e-4)


def test_validation_loss_is_an_unbiased_estimate():
    """Against the Monte Carlo mean of 20 passes with random noise."""
    model, (images, y) = tiny().eval(), Digits().arrays("test")
    x0 = images.float() / 127.5 - 1
    with torch.no_grad():
        free = torch.stack([Objective(drop=0)(model.denoiser, x0, model.pipeline.condition(y)).loss for _ in range(20)])
        from diffusion.noise.draws import FixedDraws

        draws = FixedDraws(0, torch.arange(len(x0)))
        fixed = Objective(drop=0)(model.denoiser, x0, model.pipeline.condition(y), draws.normal, draws.uniform).loss
    assert float(fixed) == pytest.approx(float(free.mean()), abs=4 * float(free.std()))


def test_learning_rate_warms_up_then_decays():
    assert lr_factor(0, 100, 9, "cosine") == pytest.approx(0.1)
    assert lr_factor(9, 100, 9, "cosine") == pytest.approx(1)
    assert lr_factor(100, 100, 9, "cosine") == pytest.approx(0, abs=1e-12)
    middle = 9 + (100 - 9) / 2
    assert lr_factor(middle, 100, 9, "cosine") == pytest.approx(0.5)
    assert [lr_factor(s, 10, 0, "linear") for s in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    assert lr_factor(1e6, math.inf, 3) == 1


@pytest.mark.parametrize("bad", [{"lr": 0}, {"warmup": -1}, {"weight_decay": -1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="Diffusion"):
        tiny(**bad)


def test_clipping_equals_torchs(tmp_path):
    """Two steps through `fit`, with gradients far over the limit, against torch's own clipping and AdamW."""
    torch.manual_seed(0)
    ours = tiny(lr=0.01, objective=Objective(drop=0.0))
    ours.denoiser.net.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, torch.nn.Dropout) else None)
    theirs = copy.deepcopy(ours)
    t = trainer(tmp_path, max_steps=2, max_epochs=1, guard=True, gradient_clip_val=0.05)
    t.fit(ours, Digits(batch_size=16, limit=32))
    optimizer = torch.optim.AdamW(theirs.parameters(), 0.01, (0.9, 0.999), weight_decay=0.0)
    loader = Batches(*Digits(limit=32).arrays("train"), 16, shuffle=True, drop_last=True)
    for step, (x0, y) in enumerate(loader):
        draws = StepDraws(0, step, 0)
        theirs.objective(theirs.denoiser, x0, theirs.pipeline.condition(y), draws.normal, draws.uniform).loss.backward()
        assert torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05) > 0.1  # so clipping takes effect
        optimizer.step()
        optimizer.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("precision", [pytest.param("bf16-mixed", marks=pytest.mark.slow), "32-true"])
def test_training_lowers_the_loss_in_either_precision(tmp_path, precision):
    model, data = tiny(), Digits(batch_size=64)
    first = trainer(tmp_path).validate(model, data, verbose=False)[0]["val/loss"]
    t = trainer(tmp_path, max_epochs=6, precision=precision)
    t.fit(model, data)
    assert float(t.callback_metrics["val/loss"]) < 0.75 * first
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_learned_variance_and_self_conditioning_sample(float64):
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, learn_variance=True, self_condition=True, num_classes=10)
    model = Diffusion(
        net, Linear(50), objective=Objective(vlb=0.001), sampler=DDPM(8, "learned"), shape=(1, 8, 8),
        guidance=ClassifierFree(1.5),
    )  # fmt: skip
    x = model.pipeline.sample(4, seed=3, batch_size=4)
    assert x.shape == (4, 1, 8, 8) and x.isfinite().all()
    torch.testing.assert_close(model.pipeline.sample(4, seed=3, batch_size=3), x, rtol=0, atol=1e-6)
    fixed = model.pipeline.sample(4, seed=3, sampler=DDPM(8, "small"))
    assert not torch.allclose(fixed, x, atol=1e-3)


@pytest.mark.parametrize("learn, vlb", [(True, 0.0), (False, 0.001)])
def test_learned_variance_and_vlb_require_each_other(learn, vlb):
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, learn_variance=learn)
    with pytest.raises(ValueError, match="learn_variance: true and objective.vlb"):
        Diffusion(net, objective=Objective(vlb=vlb))
