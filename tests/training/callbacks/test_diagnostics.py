"""Diagnostics: figures against known values, no effect on training, and advice only when it applies."""

import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion import Diffusion
from diffusion.data import Digits
from diffusion.denoiser import predict
from diffusion.denoiser.targets import V, Velocity
from diffusion.loss.objective import Objective
from diffusion.nets import AttentionUNet
from diffusion.noise import VE, Cosine, Flow, Karras, Linear, ScaledLinear
from diffusion.noise.times import LogitNormal, LogNormal, Uniform
from diffusion.samplers import DDIM, Heun
from diffusion.training.callbacks import EMA, Checkpoint, Diagnostics, DurableIO, advice
from diffusion.training.callbacks.advice import Advice
from diffusion.training.callbacks.levels import NAMES, Spectrum, bins, ideal


def model(**options):
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=options.pop("num_classes", 10), dropout=0.1)
    return Diffusion(net, Cosine(50), V(), **({"sampler": DDIM(5), "lr": 1e-2, "shape": (1, 8, 8)} | options))


def trainer(path, callbacks, **options):
    logger = pl.loggers.TensorBoardLogger(path, name="x", version=0, default_hp_metric=False)
    return pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=callbacks, num_sanity_val_steps=0, plugins=[DurableIO()],
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        **({"max_epochs": 2, "log_every_n_steps": 2} | options),
    )  # fmt: skip


class Spy(pl.Callback):
    """Levels and errors of each step, gradient norms before the clip, and |EMA - raw| / |raw|."""

    def __init__(self, ema):
        self.ema, self.steps, self.norms, self.far = ema, [], [], []

    def on_before_optimizer_step(self, trainer, m, optimizer):
        self.norms.append(sum(float(p.grad.square().sum()) for p in m.parameters() if p.grad is not None) ** 0.5)

    def on_train_batch_end(self, trainer, m, outputs, *args):
        error, t = outputs["error"], outputs["level"]
        self.steps.append((error.double(), t.t.double().flatten()))
        flat = torch.cat([v.flatten() for v in self.ema.shadow.values()])
        raw = torch.cat([dict(m.named_parameters())[k].detach().flatten() for k in self.ema.shadow])
        self.far.append(float((flat - raw).norm() / raw.norm()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run of 10 steps with diagnostics and without advice: curves, callback, trainer, module and spy."""
    path = tmp_path_factory.mktemp("run")
    ema, diagnostics = EMA(0.9), Diagnostics(120)
    spy = Spy(ema)
    t, m = trainer(path, [ema, spy, diagnostics]), model()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        t.fit(m, Digits(batch_size=64, limit=320))
    t.logger.experiment.flush()
    curves = EventAccumulator(str(path / "x" / "version_0"), size_guidance={"tensors": 0}).Reload()
    return curves, diagnostics, t, m, spy


def test_train_errors_are_means_over_the_steps_since_the_last_log(run):
    curves, diagnostics, _, m, spy = run
    schedule, spectrum = m.denoiser.schedule, Spectrum(Digits(limit=320).arrays("train")[0].float() / 127.5 - 1)
    for log, steps in ((2, spy.steps[:2]), (8, spy.steps[6:8])):
        error, t = (torch.cat(v) for v in zip(*steps, strict=True))
        log_snr = schedule.level(t).log_snr
        k = bins(log_snr)
        relative = error / spectrum.error(log_snr)
        seen = 0
        for b, name in enumerate(NAMES):
            points = {e.step: e.value for e in curves.Scalars(f"train_error/{name}")} if (k == b).any() else {}
            if (k == b).any():
                assert points[log] == pytest.approx(float(relative[k == b].mean()), rel=1e-3), name
                seen += 1
        assert seen > 5


def test_gradient_norm_and_ema_distance_match_their_values(run):
    curves, *_, spy = run
    norms, far = ({e.step: e.value for e in curves.Scalars(n)} for n in ("train/grad_norm", "train/ema_distance"))
    assert list(norms) == list(far) == [2, 4, 6, 8, 10] and max(spy.norms) > 1  # measured before clipping
    assert list(norms.values()) == pytest.approx([spy.norms[s - 1] for s in norms], rel=1e-5)
    assert list(far.values()) == pytest.approx([spy.far[s - 1] for s in far], rel=1e-4)


def test_final_probe_writes_a_table(run):
    curves, diagnostics, t, m, _ = run
    (mean,) = curves.Scalars("val_error/mean")
    assert mean.step == 10 and 0.9 < mean.value < 4  # 10 steps: worse than linear
    levels = [curves.Scalars(n)[0].value for n in curves.Tags()["scalars"] if n.startswith("val_error/") and "log" in n]
    assert sum(levels) / len(levels) == pytest.approx(mean.value, rel=1e-5) and len(levels) > 7
    text = curves.Tensors("diagnostics/levels/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "floor (320 images)" in text and text.count("\n| ") == len(levels) + 1
    share = [float(row.split("|")[2].strip(" %")) for row in text.splitlines()[4:]]
    assert sum(share) == pytest.approx(100, abs=4)  # bins of too few images are omitted
    # A probe is reproducible: from the EMA weights at the end of training.
    ema = next(c for c in t.callbacks if isinstance(c, EMA))
    with ema.applied(m):
        again = diagnostics._ask(t, m, diagnostics._probes[1], diagnostics._probes[1].y)
    assert torch.equal(again, diagnostics._val)
    raw = diagnostics._ask(t, m, diagnostics._probes[1], diagnostics._probes[1].y)
    assert not torch.equal(raw, again) and m.training


def test_probes_are_spaced_by_their_cost(tmp_path):
    """Probes need 200 trained images per image: with 1 each validation (every 320), with 3 every second."""
    for n, steps in ((1, [5, 10, 15, 20]), (3, [10, 20])):
        probed = []

        class Count(Diagnostics):
            def probe(self, trainer, pl_module, probed=probed):
                probed.append(trainer.global_step)
                super().probe(trainer, pl_module)

        t = trainer(tmp_path / str(n), [Count(n)], max_epochs=4)
        t.fit(model(), Digits(batch_size=64, limit=320))
        assert probed == steps


def test_training_is_the_same_with_and_without_diagnostics_and_resumed(tmp_path):
    """14 steps without diagnostics, with them, and resumed from step 10 give equal weights to the bit."""

    def fit(name, callbacks, **options):
        t = trainer(tmp_path / name, [EMA(0.9), Checkpoint(1, keep=99), *callbacks], **options)
        m = model(lr=1e-3, warmup=5, decay="cosine")
        options = {"ckpt_path": tmp_path / "b" / FOLDER / "step00000010.ckpt"} if name == "c" else {}
        t.fit(m, Digits(batch_size=48, limit=350), weights_only=bool(options) or None, **options)
        return torch.load(tmp_path / name / FOLDER / "last.ckpt", weights_only=True)

    a = fit("a", [])
    for other in (fit("b", [Diagnostics(2)]), fit("c", [Diagnostics(2)])):  # 2 images: a probe at each validation
        assert other["global_step"] == 14
        assert all(torch.equal(other["state_dict"][k], v) for k, v in a["state_dict"].items())
        assert all(torch.equal(other["callbacks"]["EMA"]["shadow"][k], v)
                   for k, v in a["callbacks"]["EMA"]["shadow"].items())  # fmt: skip


FOLDER = Path("x") / "version_0" / "checkpoints"


def test_a_resumed_finished_run_is_not_probed(tmp_path):
    callbacks = [EMA(0.9), Checkpoint(1), Diagnostics(20)]
    trainer(tmp_path, callbacks, max_epochs=1).fit(model(), Digits(batch_size=160, limit=320))
    again = Diagnostics(20)
    t = trainer(tmp_path, [EMA(0.9), again], max_epochs=1)
    t.fit(model(), Digits(batch_size=160, limit=320), ckpt_path=tmp_path / FOLDER / "last.ckpt", weights_only=True)
    assert again._probed == -1 and again.best[0] == 2 and again.trained == 320  # saved after its validation


def test_checkpoint_has_the_advice_given_and_the_best_step():
    one, other = Diagnostics(), Diagnostics()
    one.said, one.trained, one.best = ["overfitting"], 7, (3, 0.5)
    other.load_state_dict(one.state_dict())
    assert (other.said, other.trained, other.best) == (["overfitting"], 7, (3, 0.5))


@pytest.mark.filterwarnings("ignore:step.0. Advice. labels never used")
@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}, {"fast_dev_run": 1},
                                     {"limit_val_batches": 0}, {"logger": False}])  # fmt: skip
def test_diagnostics_work_with_every_trainer_option(tmp_path, options):
    if "logger" in options:
        t = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, callbacks=[Diagnostics(10)],
                       enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    else:
        t = trainer(tmp_path, [EMA(), Diagnostics(10)], max_epochs=1, log_every_n_steps=1, **options)
    t.fit(model(num_classes=0), Digits(batch_size=64, limit=320))
    if next(iter(options)) in ("fast_dev_run", "logger"):
        assert t.global_step > 0 and not list(tmp_path.iterdir())
        return
    curves = EventAccumulator(str(tmp_path / "x" / "version_0")).Reload()
    steps = [1, 2, 3] if "accumulate_grad_batches" in options else [1, 2, 3, 4, 5]
    assert [e.step for e in curves.Scalars("train/grad_norm")] == steps
    assert "labels/gain" not in curves.Tags()["scalars"]


def test_other_loaders_get_the_curves_that_need_no_images(tmp_path):
    data = Digits(batch_size=64, limit=320)
    t = trainer(tmp_path, [EMA(), Diagnostics()], max_epochs=1)
    data.setup("fit")
    t.fit(model(), data.train_dataloader(), data.val_dataloader())
    tags = EventAccumulator(str(tmp_path / "x" / "version_0")).Reload().Tags()["scalars"]
    assert "train/grad_norm" in tags and not any("log_snr" in name for name in tags)


def test_diagnostics_refuses_impossible_settings():
    with pytest.raises(ValueError, match="at least 0"):
        Diagnostics(-1)


# --- advice: what triggers it, and that it is silent on a healthy run -----------------------------------------


def digits():
    return Digits().arrays("train")[0].float() / 127.5 - 1


class Starved(Cosine):
    """A schedule whose sampling starts from half the noise that training ends with."""

    prior_std = 0.5


@pytest.mark.parametrize("schedule", [VE(sigma_max=2.0), Starved()], ids=lambda s: type(s).__name__)
def test_prior_mismatch_is_reported(schedule):
    text = advice.prior_mismatch(Spectrum(digits()), schedule)
    assert text.startswith("prior mismatch: at t = 1 the training images are still visible")


def test_prior_mismatch_by_hand():
    """Constant images of value 1, 8x8: the mean brightness is 8 in an orthonormal basis; ScaledLinear leaves 6.8 %."""
    spectrum = Spectrum(torch.ones(4, 1, 8, 8))
    one = torch.ones((), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = ScaledLinear()
    a, s = schedule.scales(one)
    assert float(spectrum.std(schedule.level(one)).max()) == pytest.approx(float((64 * a**2 + s**2) ** 0.5), rel=1e-5)
    text = advice.prior_mismatch(Spectrum(torch.ones(4, 1, 32, 32)), schedule)  # 32 instead of 8
    assert "their mean brightness has 2.4" in text

    class Loud(Cosine):
        prior_std = 2.0

    assert "2.00 times that of training images" in advice.prior_mismatch(spectrum, Loud())


@pytest.mark.parametrize("schedule", [Linear(), Linear(500), Cosine(), Flow(), Karras(), VE()],
                         ids=lambda s: type(s).__name__)  # fmt: skip
def test_sound_priors_are_silent(schedule):
    assert advice.prior_mismatch(Spectrum(digits()), schedule) is None


@pytest.mark.parametrize("times, schedule, word", [
    (LogNormal(-1.2, 0.5), Karras(), "log-SNR of -8.8"),  # sampling starts from sigma 80, a log-SNR of -8.76
    (LogNormal(), VE(sigma_max=400.0), "-10.0"),
    (LogNormal(2.0, 0.5), Karras(), "sigma_min"),  # clean levels
])  # fmt: skip
def test_levels_that_are_never_trained_are_reported(times, schedule, word):
    text = advice.never_trained(times, schedule, Heun(18, grid="karras"))
    assert text.startswith("levels never trained") and word in text and "LogNormal" in text


@pytest.mark.parametrize("times, schedule", [(LogNormal(), Karras()), (LogitNormal(), Flow()), (Uniform(), Linear()),
                                             (Uniform(), Cosine(50)), (Uniform(), VE())])  # fmt: skip
def test_published_recipes_are_silent(times, schedule):
    assert advice.never_trained(times, schedule, DDIM(50)) is None
    assert advice.never_trained(times, schedule, Heun(18, grid="karras")) is None


class Ideal(torch.nn.Module):
    """The ideal denoiser of given images, or of those of the class if labels are given, in place of a network.

    Its images are a hundredth too grey, or errors at low noise would be exactly 0, whose ratios mean nothing.
    """

    def __init__(self, m, images, y=None):
        super().__init__()
        self.net, self.images, self.y = m.denoiser.net, images, y

    def forward(self, x, t, cond):
        t = t.like(x)
        if self.y is None:
            return predict(x, 0.99 * ideal(x, t, self.images), t)
        mine = (self.y == c for c in cond.y)
        rows = [ideal(x[[i]], type(t)(*(v[[i]] for v in t)), self.images[k]) for i, k in enumerate(mine)]
        return predict(x, 0.99 * torch.cat(rows), t)


def everything():
    """All digits of both splits, so that their ideal denoiser includes the validation images."""
    (a, ya), (b, yb) = Digits(limit=320).arrays("train"), Digits().arrays("test")
    return torch.cat([a, b]).float() / 127.5 - 1, torch.cat([ya, yb])


def advised(run, denoiser, monkeypatch):
    """The advice that a probe of this denoiser gives."""
    _, diagnostics, t, m, _ = run
    monkeypatch.setattr(diagnostics, "said", [])
    monkeypatch.setitem(m._modules, "denoiser", denoiser)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        diagnostics.probe(t, m)
        diagnostics.probe(t, m)  # each kind is given once
    return [str(w.message).partition(":")[0] for w in caught if w.category is Advice]


def test_a_denoiser_that_uses_labels_and_copies_nothing_gets_no_advice(run, monkeypatch):
    assert advised(run, Ideal(run[3], *everything()), monkeypatch) == []


def test_ignored_labels_are_reported(run, monkeypatch):
    assert advised(run, Ideal(run[3], everything()[0]), monkeypatch) == ["labels ignored"]


def test_overfitting_is_reported(run, monkeypatch):
    """The ideal denoiser of the training images, the result of complete memorisation."""
    images, y = everything()
    assert advised(run, Ideal(run[3], images[:320], y[:320]), monkeypatch) == ["overfitting"]


def test_an_untrained_network_gets_no_advice_about_labels(run, monkeypatch):
    assert advised(run, model(lr=1e-3).denoiser, monkeypatch) == []


class Late(EMA):
    """An EMA without warm-up of the decay, which keeps its first weights."""

    def on_fit_start(self, *args):
        super().on_fit_start(*args)
        self.updates = 10**6


def test_ema_that_is_not_warm_is_reported(tmp_path):
    t = trainer(tmp_path, [Late(0.999), Diagnostics(100)], max_epochs=6)
    with pytest.warns(Advice, match=r"EMA not warm: after 1,000,030 updates .* lower --ema.decay \(now 0.999\)"):
        t.fit(model(objective=Objective(drop=0)), Digits(batch_size=64, limit=320))


def test_a_short_flow_run_gets_no_advice(tmp_path):
    """6 epochs end to end, with the default EMA, under another schedule and target."""
    m = model()
    m = Diffusion(m.denoiser.net, Flow(), Velocity(), sampler=DDIM(5), lr=1e-2, shape=(1, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        trainer(tmp_path, [EMA(), Diagnostics(100)], max_epochs=6).fit(m, Digits(batch_size=64, limit=320))


@pytest.mark.slow
def test_memorising_32_images_is_reported(tmp_path):
    """End to end: training on 32 digits for 1,200 steps gives the advice."""
    t = trainer(tmp_path, [EMA(), Diagnostics()], max_epochs=1200, check_val_every_n_epoch=300, log_every_n_steps=100)
    with pytest.warns(Advice, match="overfitting: .* val/loss was lowest at step"):
        t.fit(model(lr=3e-3), Digits(batch_size=64, limit=32))


@pytest.mark.parametrize("kinds, takes, drop, word", [
    (10, 0, 0.1, "10 classes, but the network takes none"), (10, 10, 1.0, "objective.drop is 1"),
    (10, 10, 0.1, None), (0, 0, 0.1, None), (0, 0, 1.0, None),
])  # fmt: skip
def test_labels_that_are_never_used_are_reported(kinds, takes, drop, word):
    said = advice.labels_unused(kinds, takes, drop)
    assert said is None if word is None else word in said


def test_a_network_without_labels_on_data_with_labels_is_reported(tmp_path):
    with pytest.warns(Advice, match="labels never used: the data have 10 classes"):
        trainer(tmp_path, [Diagnostics(0)], max_epochs=1).fit(model(num_classes=0), Digits(batch_size=64, limit=64))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        data = Digits(batch_size=64, limit=64, labels=False)
        trainer(tmp_path, [Diagnostics(0)], max_epochs=1).fit(model(num_classes=0), data)
