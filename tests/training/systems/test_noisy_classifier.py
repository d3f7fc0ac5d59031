"""The classifier of noisy images, and guidance by checkpoint files."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from diffusion import Pipeline
from diffusion.bench.analytic import Gaussian
from diffusion.denoiser.targets import V
from diffusion.guidance import AutoGuidance, ClassifierGuidance, Interval
from diffusion.metrics.extractor import load_extractor
from diffusion.nets import UNet
from diffusion.nets.half_unet import HalfUNet
from diffusion.noise import VE, VP, Cosine, Flow, Karras, Linear, SubVP
from diffusion.support.specs import build, spec
from diffusion.training.systems import Classifier, Diffusion, NoisyClassifier

SMALL = {"width": 16, "mults": (1, 2), "attention": (1,), "head_width": 16}
TOY = {"width": 8, "mults": (1,), "attention": (), "dropout": 0.0, "num_classes": 2}
NAMES = ("a", "b", "c")


def saved(model, path):
    """Write a checkpoint of a model as Lightning does."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("channels, size", [(1, (8, 8)), (3, (8, 12)), (4, (6, 4))])
def test_half_unet_shapes_gradients_and_clock(channels, size):
    """Any channels and size, gradients everywhere, dependence on the clock, and no randomness in evaluation."""
    torch.manual_seed(0)
    net = HalfUNet(channels, **SMALL, num_classes=5)
    x, clock = torch.randn(3, channels, *size), torch.tensor([0.0, 400.0, 999.0])
    out = net(x, clock)
    assert out.shape == (3, 5)
    for p in net.parameters():  # branches that are initially 0 block gradients: randomise all weights
        p.data += 0.02 * torch.randn_like(p)
    net(x, clock).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    net.eval()
    assert torch.equal(net(x, clock), net(x, clock))
    assert float((net(x, clock) - net(x, clock + 300)).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("options, x, words", [
    ({}, (1, 3, 8, 8), "expected 1 channels"), ({}, (1, 1, 7, 8), "pad to 8x8"),
    ({"attention": [5]}, (1, 1, 8, 8), "attention at levels 0 .. 1"),
])  # fmt: skip
def test_half_unet_refuses(options, x, words):
    with pytest.raises(ValueError, match=words):
        HalfUNet(1, **SMALL | options)(torch.randn(x), torch.zeros(1))


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VP(), SubVP(), VE(), Karras(), Flow()],
                         ids=lambda s: type(s).__name__)  # fmt: skip
def test_gradient_vanishes_with_the_signal_on_every_schedule(schedule):
    """Sampling divides by alpha: with c_in the gradient stays below that of the best linear prediction."""
    torch.manual_seed(0)
    model = NoisyClassifier(HalfUNet(**SMALL), schedule, shape=(1, 8, 8)).eval()
    x = torch.randn(4, 1, 8, 8, requires_grad=True)
    for t in (schedule.t_min, 0.5, 1.0):
        level = schedule.level(torch.full((4,), t).double())
        logits = model(x * schedule.prior_std, level)
        (g,) = torch.autograd.grad(logits.log_softmax(1)[:, 0].sum(), x)
        c_in = float(level.alpha[0] / (level.alpha[0] ** 2 + level.sigma[0] ** 2))
        assert logits.isfinite().all()
        assert float(g.norm()) <= 20 * schedule.prior_std * c_in
    half = torch.full((4,), 0.5).double()
    torch.testing.assert_close(model(x, schedule.level(half[0])), model(x, schedule.level(half)))


def test_noisy_classifier_learns_the_posterior():
    """For two known distributions the cross-entropy approaches the ideal one, and accuracy falls with noise."""
    pl.seed_everything(0)
    y = torch.arange(2000) % 2
    x = 0.4 * (2.0 * y[:, None, None, None] - 1) + 0.3 * torch.randn(2000, 1, 4, 4)
    model = NoisyClassifier(HalfUNet(**TOY), VP(), lr=0.01, degrees=0, shift=0, scale=0, shape=(1, 4, 4))
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    train, test = (DataLoader(TensorDataset(x[part], y[part]), 50) for part in (slice(1600), slice(1600, None)))
    trainer.fit(model, train, test)
    found = {k: float(v) for k, v in trainer.callback_metrics.items()}
    model.eval()
    t = VP().level((torch.arange(400).double() + 0.5) / 400)
    at = t.like(x[1600:])
    noisy = at.alpha * x[1600:] + at.sigma * torch.randn(400, 1, 4, 4)
    logs = torch.stack([Gaussian(m, 0.3).log_density(noisy, t) for m in (-0.4, 0.4)], 1).float()
    ideal = float(torch.nn.functional.cross_entropy(logs, y[1600:]))
    with torch.no_grad():
        mine = float(torch.nn.functional.cross_entropy(model(noisy, t), y[1600:]))
    assert 0.1 < ideal < mine + 0.02 < ideal + 0.1 < 0.69
    curve = [v for k, v in sorted(found.items()) if k.startswith("accuracy_by_log_snr/")]
    assert len(curve) >= 8 and 0.6 < found["val/accuracy"] < 0.9
    assert found["accuracy_by_log_snr/-8_to_-6"] < 0.75
    assert found["accuracy_by_log_snr/2_to_4"] > 0.97


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of a model, an unconditional one, and classifiers that match and that do not."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    net = {"width": 8, "mults": (1, 2), "attention": (), "blocks": 1}
    common = {"schedule": Cosine(), "target": V(), "shape": (1, 8, 8), "class_names": NAMES}
    head = HalfUNet(**SMALL, num_classes=3)
    models = {
        "labelled": Diffusion(UNet(1, **net, num_classes=3), **common), "free": Diffusion(UNet(1, **net), **common),
        "classifier": NoisyClassifier(head, Cosine(), shape=(1, 8, 8), class_names=NAMES),
        "schedule": NoisyClassifier(head, Linear(), shape=(1, 8, 8), class_names=NAMES),
        "shape": NoisyClassifier(head, Cosine(), shape=(1, 16, 16), class_names=NAMES),
        "classes": NoisyClassifier(head, Cosine(), shape=(1, 8, 8), class_names=("x", "y", "z")),
        "clean": Classifier(shape=(1, 8, 8), class_names=NAMES),
    }  # fmt: skip
    return {name: saved(model, folder / f"{name}.ckpt") for name, model in models.items()}


def test_noisy_classifier_is_rebuilt_from_its_file(files):
    one, two = NoisyClassifier.load(files["classifier"]), NoisyClassifier.load(files["classifier"])
    x, t = torch.randn(2, 1, 8, 8), Cosine().level(torch.tensor(0.4).double())
    assert torch.equal(one(x, t), two(x, t)) and one.class_names == NAMES and type(one.schedule) is Cosine


def test_each_file_is_opened_as_its_own_system(files):
    for load, name, words in (
        (NoisyClassifier.load, "clean", "expected a classifier of noisy images"),
        (NoisyClassifier.load, "labelled", "expected a classifier of noisy images"),
        (load_extractor, "classifier", "not a classifier"),
        (Diffusion.load, "classifier", "sample RUN --classifier"),
        (Diffusion.load, "clean", "evaluate --features"),
    ):
        with pytest.raises(ValueError, match=words):
            load(files[name])


@pytest.mark.parametrize("name, words", [("schedule", "schedule Linear.*the model on Cosine"),
                                         ("shape", "images of 1x16x16, the model on 1x8x8"),
                                         ("classes", "classes x, y, z, the model on a, b, c")])  # fmt: skip
def test_a_classifier_of_other_data_is_refused(files, name, words):
    model = Pipeline.load(files["labelled"])
    for guidance in (ClassifierGuidance(files[name]), Interval(ClassifierGuidance(files[name]), 0.1, 5)):
        with pytest.raises(ValueError, match=words):
            model.sample(3, guidance=guidance)


def test_a_classifier_gives_classes_to_an_unconditional_model(files):
    """Labels change the pictures; with the guidance as its own, the model samples all classes in turn."""
    model = Pipeline.load(files["free"])
    assert model.num_classes == 0 and model.in_turn(4) is None
    guidance = ClassifierGuidance(files["classifier"], 500)  # an untrained classifier has small gradients
    a, b = (model.sample(4, torch.full((4,), k), guidance=guidance) for k in (0, 1))
    assert float((a - b).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="no labels to steer to"):
        model.sample(4, guidance=guidance)
    model = replace(model, guidance=guidance)
    assert model.num_classes == 3 and model.in_turn(4).tolist() == [0, 1, 2, 0]
    assert torch.equal(model.sample(4)[1], b[1])


@pytest.mark.parametrize("make", [lambda f: ClassifierGuidance(f["classifier"], 3),
                                  lambda f: AutoGuidance(f["free"], 1.5, rescale=0.2)])  # fmt: skip
def test_guides_by_file_survive_their_spec(files, make, tmp_path):
    """Guides survive their spec, and a file that has changed since is refused."""
    guidance, model = make(files), Pipeline.load(files["labelled"])
    plain = spec(Interval(guidance, 0.1, 9))
    again = build(plain)
    assert spec(again) == plain and len(plain["init_args"]["guidance"]["init_args"]["hash"]) == 12
    y = torch.tensor([0, 1, 2])
    assert torch.equal(model.sample(3, y, guidance=again), model.sample(3, y, guidance=Interval(guidance, 0.1, 9)))
    plain["init_args"]["guidance"]["init_args"]["hash"] = "0" * 12
    with pytest.raises(ValueError, match="has changed since it was chosen as a guide"):
        build(plain)


def test_a_checkpoint_keeps_its_guide(files, tmp_path):
    """The checkpoint of a model names its guide by path and hash."""
    model = Diffusion(UNet(1, width=8, mults=(1,), attention=(), blocks=1), Cosine(), V(), shape=(1, 8, 8),
                      guidance=ClassifierGuidance(files["classifier"], 4), class_names=NAMES)  # fmt: skip
    again = Pipeline.load(saved(model, tmp_path / "a.ckpt"))
    assert again.guidance.scale == 4 and again.num_classes == 3 and again.sample(2).shape == (2, 1, 8, 8)
