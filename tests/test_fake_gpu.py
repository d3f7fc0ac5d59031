"""Errors that occur on GPUs, found without one: tensors of two devices in one operation, and waits of the host."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from diffusion.data import Batches, ImageData
from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.hints import Hint, LowResolution, Masked, Paired
from diffusion.denoiser.targets import Target, V
from diffusion.generation import editing
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import (
    APG,
    AutoGuidance,
    Bound,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    Interval,
    Likelihood,
    NoisyImageClassifier,
    Plain,
    Steer,
)
from diffusion.judging import nll
from diffusion.likelihood import vlb
from diffusion.likelihood.flow import bits_per_dim, dequantise, log_likelihood
from diffusion.loss.objective import Objective
from diffusion.loss.pairing import Pairing
from diffusion.loss.weights import Distance, Weight
from diffusion.metrics.evaluator import Evaluator
from diffusion.metrics.extractor import Extractor
from diffusion.metrics.features import DigitsNet, FeatureNet
from diffusion.metrics.inception import Inception
from diffusion.nets import ResidualMLP
from diffusion.nets.half_unet import HalfUNet
from diffusion.noise import Cosine, Linear
from diffusion.noise.draws import ImageDraws, StepDraws
from diffusion.noise.schedule import Schedule
from diffusion.noise.times import Times
from diffusion.samplers import DDIM, DDPM, DEIS, DPMSolver, Euler, Heun, ProbabilityFlow, Sampler, UniPC
from diffusion.support import watched as records
from diffusion.support.specs import PACKAGES, concrete, gather
from diffusion.training.callbacks import Checkpoint, Diagnostics, Evaluation, Gif, Samples, Watch
from diffusion.training.run import Run, assemble
from diffusion.training.systems import Diffusion
from tests.fake_gpu import DEVICE, Allowed, FakeGPU, Ledger, fake, supported
from tests.test_configs import LAYERED, NARROW

if not supported():
    pytest.skip(f"torch {torch.__version__} has no fake tensors on a device without a driver", allow_module_level=True)
pytestmark = pytest.mark.slow  # all of it: the last test wants each allowed wait to have happened in one of the others

# --- the waits that are allowed ---------------------------------------------------------------------------
#
# Parts of a training: "setup" before the first step, the "first" step of an epoch, a step that logs ("log"), a plain
# "step", "validation", "epoch" (its end, with a checkpoint) and "end". Others: "loss" (every part of the objective),
# "walk" (every sampler with every guidance), "edit", "likelihood", "metrics", "data".

ALLOWED = {
    name: Allowed.at(*entry)
    for name, entry in {
        # data
        "Batches.__init__": (1, "setup, data", "the labels are moved to the device once"),
        "InMemory.to": (1, "setup, data", "the images are moved to the device once"),
        "Batches.__iter__": (2, "setup, validation, data", "an epoch's order and flips are sent at its start"),
        # a step
        "pytorch_lightning": (2, "setup, validation, end", "moves the model, shows and writes figures"),
        "System.log_loss": (1, "first, log", "the loss, for the bar and the log"),
        "Checked.step": (1, "first, step, log", "the classifiers' optimizer is not the fused one"),
        "Guard.look": (1, "log, epoch, end", "whether a step was bad: at a log, before a checkpoint, at the end"),
        "Diagnostics.on_train_batch_end": (2, "log", "the gradient's norm and the distance of the averages"),
        "Diagnostics._recent": (2, "log", "the errors of all steps since the last log"),
        # parts of the objective, each a wait in every step
        "ELBO.__call__": (1, "loss", "the slope of the log-SNR is computed in float64 on the CPU"),
        "LossAware._bin": (1, "loss", "the losses are kept on the CPU, where the next times are drawn"),
        "LossAware.observe": (1, "loss", "the losses are kept on the CPU, where the next times are drawn"),
        "OptimalTransport.__call__": (2, "loss", "scipy solves the assignment on the CPU"),
        # validation, checkpoints, and the end of a training
        "Diagnostics.on_validation_end": (1, "validation", "whether val/loss is the lowest so far"),
        "NoisyClassifier.validation_step": (1, "validation", "correct answers by level are counted on the CPU"),
        "NoisyClassifier.on_validation_epoch_end": (2, "validation", "the counts of all processes, once"),
        "Diagnostics.state_dict": (1, "epoch", "a checkpoint is written"),
        "poisoned": (1, "epoch", "the contents of a checkpoint are checked before it is written"),
        "Probe.errors": (2, "end", "a probe's images are on the CPU"),
        "Probe.of": (1, "end", "a probe's errors are evaluated on the CPU"),
        "to_uint8": (1, "end", "the frames of a film"),
        "Reconstructions.draw": (2, "epoch, end", "the images of a grid are sent, and come back"),
        "Diagnostics.on_train_start": (1, "setup", "the latents of the images that advice looks at"),
        "Pixels.encode": (1, "setup", "images are sent to be encoded"),
        "prepare": (1, "setup", "whether the latents have been measured"),
        "Evaluation.measure": (1, "epoch", "the samples that are judged"),
        # sampling and editing
        "Pipeline.steered": (1, "walk, edit, epoch, end", "labels and hints are sent before a walk"),
        "Pipeline.batches": (1, "walk, epoch, end", "the images of a batch"),
        "settle": (1, "walk, first", "a guide or a teacher is moved to the images once"),
        "rk45": (5, "walk, likelihood", "an adaptive solver reads the error of its step"),
        "batches": (2, "edit", "the images and labels of a batch are sent"),
        "inpaint": (2, "edit", "the mask is sent, the images come back"),
        "img2img": (1, "edit", "the images come back"),
        "to_noise": (1, "edit", "the noise comes back"),
        "from_noise": (2, "edit", "a second condition is sent, the images come back"),
        # likelihood
        "batches_of": (2, "likelihood", "the images and labels of a batch are sent"),
        "bounds": (1, "likelihood", "a term of the bound, at each level"),
        "flows": (1, "likelihood", "the bits of a batch"),
        # metrics
        "Extractor.describe": (2, "metrics, setup, epoch", "images are sent, features come back"),
        "fingerprint": (1, "metrics, setup", "the hash of the weights"),
    }.items()
}
LEDGER = Ledger(ALLOWED)
ANSWERS = {
    "Guard.look": -1,  # the first bad step: none
    "rk45": 0,  # the error of a step: with ones it would never end
}

for package in PACKAGES:
    gather(f"diffusion.{package}")


def every(base: type) -> list[type]:
    """All classes of the project that are derived from a base."""
    return sorted(concrete(base, "diffusion"), key=lambda kind: kind.__name__)


@contextmanager
def watched(scope: str, free: int = 2**40) -> Iterator[FakeGPU]:
    """A simulated device; waits inside the block must be allowed in this part."""
    gpu = FakeGPU(ANSWERS)
    with gpu.on(free), gpu.counted() as found:
        yield gpu
    LEDGER.check(scope, found)


# --- training -----------------------------------------------------------------------------------------------

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
WHOLE = {  # with a step that logs, and with the end of a training
    *("digits", "digits_inpaint", "digits_superres", "digits_context"),  # labels, hints, contexts
    *("digits_classifier", "features_digits"),
}


class OnDevice(CPUAccelerator):
    """Lightning's accelerator for the simulated device, which needs no preparation."""

    def setup_device(self, device: torch.device) -> None:
        pass


class NoFile(TorchCheckpointIO):
    """Writes empty checkpoints, since fake tensors cannot be written."""

    def save_checkpoint(self, checkpoint: dict, path: str, storage_options=None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


class Scopes(pl.Callback):
    """Tracks the current part of the training; the first of the callbacks."""

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu, self.scope, self.first = gpu, "setup", 0

    def begin(self, scope: str) -> None:
        found = self.gpu.since(self.first)
        self.first = len(self.gpu.waits)
        ended, self.scope = self.scope, scope
        LEDGER.check(ended, found)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        due = (trainer.global_step + 1) % trainer.log_every_n_steps == 0
        self.begin("log" if due else "step" if batch_idx else "first")

    def on_validation_start(self, trainer, pl_module) -> None:
        self.begin("validation")

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.begin("epoch")

    def on_train_end(self, trainer, pl_module) -> None:
        self.begin("end")


def images_of(data: ImageData, n: int = 6) -> tuple[Tensor, Tensor]:
    """Random images of a data set's shape, and labels or contexts of all its kinds, or tokens of texts."""
    images = torch.randint(0, 256, (n, *data.whole), dtype=torch.uint8)
    if data.tokens:
        return images, data.vocabulary.encode(["a blue cat", "", "a knight in red"] * (n // 3))
    y = torch.arange(n) % len(data.class_names)
    return images, torch.eye(len(data.class_names))[y] if data.context else y


@pytest.fixture
def random_images(monkeypatch):
    """Give every data set random images, so that no files are needed."""
    for kind in every(ImageData):
        monkeypatch.setattr(kind, "load", lambda self, split: images_of(self))
        monkeypatch.setattr(kind, "prepare_data", lambda self: None)


def built(config: Path, folder: Path, *options: str) -> Run:
    """The parts of a training from a configuration, on the CPU."""
    fixed = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--layout", "channels_last"]
    return assemble(["-c", str(config), "--out", str(folder), "--data.batch_size", "2", *fixed, *options])


def trained(run: Run, folder: Path, whole: bool) -> pl.Trainer:
    """One training step on the device, in Lightning's own loop, with the callbacks of the run.

    Args:
        whole: three steps, of which the last logs, then a validation, and the final pictures and probes.
    """
    gpu, steps = FakeGPU(ANSWERS), 3 if whole else 1
    scopes, last = Scopes(gpu), (Samples, Gif, Evaluation)
    callbacks = [c for c in run.trainer.callbacks if type(c).__module__.startswith("diffusion.")]
    if isinstance(run.model, Diffusion):
        run.model.pipeline.sampler.steps = 2
    for callback in callbacks:
        if isinstance(callback, Diagnostics):
            callback.images = 4 if whole else 0
        if isinstance(callback, Watch):
            callback.every = 1e-6  # a row after every step
    with gpu.on(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about random images
        for callback in callbacks:
            if isinstance(callback, Evaluation) and callback.every_n_epochs:
                callback.evaluator = evaluator(run.data)
        trainer = pl.Trainer(
            strategy=SingleDeviceStrategy(DEVICE, accelerator=OnDevice()), plugins=[NoFile()],
            logger=TensorBoardLogger(folder, "run"),
            callbacks=[scopes, *(c for c in callbacks if whole or not isinstance(c, last))], max_steps=steps,
            log_every_n_steps=3, limit_train_batches=steps, limit_val_batches=int(whole), num_sanity_val_steps=0,
            gradient_clip_val=run.trainer.gradient_clip_val,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(run.model, run.data)
        scopes.begin("after")
    return trainer


def evaluator(data: ImageData) -> Evaluator:
    """An evaluator of samples whose classifier is on the device."""
    net = FeatureNet(data.channels, len(data.class_names)).to(DEVICE)
    return Evaluator(Extractor.of(net, "FeatureNet"), "random", data.arrays("train"), data.arrays("test"))


@pytest.mark.filterwarnings("ignore:LightningCLI's args")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_training_of_every_configuration(config, tmp_path, random_images):
    whole = config.stem in WHOLE
    drawn = whole and "classifier" not in config.stem and "features" not in config.stem
    pictures = ["--samples.n", "4", "--gif.n", "2", "--gif.frames", "2"] if drawn else []
    judged = ["--evaluation.every_n_epochs", "1", "--evaluation.n", "4"] if config.stem == "digits" else []
    narrow = NARROW.get(config.stem, []) + LAYERED.get(config.stem, [])
    if config.stem == "cifar10_best":
        narrow = [*narrow, "--posthoc.snapshots", "0"]  # the only step of this training would write one
    run = built(config, tmp_path, *pictures, *judged, *narrow)
    trainer = trained(run, tmp_path, whole)
    assert trainer.global_step == (3 if whole else 1)
    assert any(isinstance(c, Checkpoint) for c in trainer.callbacks)
    rows = records.read(Path(trainer.log_dir) / "watch.csv")
    assert [row["step"] for row in rows] == list(range(1, trainer.global_step + 1))


# --- the loss -----------------------------------------------------------------------------------------------

C, SIZE, B = 1, 4, 3
SHAPE = (C, SIZE, SIZE)


def network(**options) -> nn.Module:
    """A small network with labels."""
    return ResidualMLP(C, (SIZE, SIZE), width=8, depth=1, **{"num_classes": 10, **options})


def on_device(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor on the device."""
    return torch.zeros(*shape, dtype=dtype, device=DEVICE)


def labels() -> Tensor:
    return on_device(B, dtype=torch.long)


def loss_of(denoiser: Denoiser, objective: Objective, draws: StepDraws | None = None) -> Tensor:
    """Compute the loss of a batch on the device, with its backward pass."""
    draws = draws or StepDraws(0, 0, 0, DEVICE)
    x0 = on_device(B, *SHAPE)
    terms = objective(denoiser.to(DEVICE), x0, Condition(labels()), draws.normal, draws.uniform)
    terms.loss.backward()
    times = objective.times
    if times.watches:
        times.observe(terms.t.t.flatten(), terms.mse.detach(), denoiser.schedule)
    return terms.loss


def cases() -> Iterator[tuple[str, Callable[[], Denoiser], Callable[[], Objective]]]:
    """Every schedule, target, weight, distance, distribution of times and pairing, one at a time."""

    def denoiser(schedule: type = Cosine, target: type = V, **options) -> Callable[[], Denoiser]:
        return lambda: Denoiser(network(**options), schedule(), target())

    for kind in every(Schedule):
        yield kind.__name__, denoiser(kind), Objective
    for kind in every(Target):
        yield kind.__name__, denoiser(Linear, kind), Objective
    for word, base in (("weight", Weight), ("distance", Distance), ("times", Times), ("pairing", Pairing)):
        for kind in every(base):
            yield kind.__name__, denoiser(), lambda word=word, kind=kind: Objective(**{word: kind()})
    yield "offset", denoiser(), lambda: Objective(offset=0.1)
    yield "self_condition", denoiser(self_condition=True), lambda: Objective(self_condition=1.0)
    yield "vlb", denoiser(learn_variance=True), lambda: Objective(vlb=0.001)


CASES = {name: parts for name, *parts in cases()}


@pytest.mark.filterwarnings("ignore:ScaledLinear. alpha-bar")
@pytest.mark.parametrize("name", CASES)
def test_loss_with_every_part(name):
    if name == "OptimalTransport":
        pytest.importorskip("scipy")
    denoiser, objective = (make() for make in CASES[name])
    with watched("loss"):
        loss = loss_of(denoiser, objective)
        assert loss.device == DEVICE and loss.shape == ()


@pytest.mark.parametrize("hint", [LowResolution(2, 0.1, blur=True), Masked()], ids=lambda h: type(h).__name__)
def test_hints_are_made_on_the_device_of_the_images(hint):
    assert {type(hint)} <= set(every(Hint)) and set(every(Hint)) == {LowResolution, Masked, Paired}
    with watched("loss"):
        made = hint(on_device(B, *SHAPE), StepDraws(0, 0, 0, DEVICE).normal)
        assert made.device == DEVICE and tuple(made.shape[1:]) == hint.shape(SHAPE)
        assert hint(on_device(B, *SHAPE), ImageDraws(0, range(B))).device == DEVICE
        assert hint.show(made, SHAPE).device == DEVICE


# --- sampling -----------------------------------------------------------------------------------------------


class Dark(Likelihood):
    """A likelihood of dark images."""

    def log_p(self, x0, t):
        return -x0.flatten(1).mean(1)


def darker(x0: Tensor, t: object) -> Tensor:
    """The same as a plain CondFn."""
    return -torch.ones_like(x0)


def model(learn_variance: bool = False, **options) -> Pipeline:
    """A small model with labels."""
    denoiser = Denoiser(network(learn_variance=learn_variance), Cosine(100), V()).eval()
    return Pipeline(denoiser, DDIM(3), shape=SHAPE, class_names=tuple("0123456789"), **options)


def moved(it: Pipeline) -> Pipeline:
    """The model, moved to the device."""
    it.denoiser.to(DEVICE)
    return it


def classifier() -> NoisyImageClassifier:
    """A classifier that can guide the model."""
    net = HalfUNet(C, 8, (1,), attention=(), num_classes=10)
    return NoisyImageClassifier(net, Cosine(100), SHAPE, tuple("0123456789")).eval()


GUIDANCES = {
    "Plain": lambda: Plain(),
    "ClassifierFree": lambda: ClassifierFree(2.0, rescale=0.5),
    "APG": lambda: APG(3.0, threshold=1.0),
    "Interval": lambda: Interval(ClassifierFree(2.0), 0.1, 5.0),
    "Steer guess": lambda: Steer(Dark(), guidance=ClassifierFree(2.0)),
    "Steer network": lambda: Steer(darker, through="network"),
    "AutoGuidance": lambda: AutoGuidance(Denoiser(network(), Cosine(100), V()).eval(), 2.0),
    "ClassifierGuidance": lambda: ClassifierGuidance(classifier()),
}


def samplers() -> Iterator[Sampler]:
    """Every sampler, with three steps."""
    for kind in every(Sampler):
        few = {"inner": 2} if "inner" in inspect.signature(kind).parameters else {}
        yield kind(steps=3, **few)


SAMPLERS = list(samplers())
FEW = [DDPM(3), Heun(3, churn=10), ProbabilityFlow(3)]  # stochastic, off the grid, with one level per image
OTHER_WAYS = [
    *(DDIM(3, eta=0.5), DEIS(5, 4), DPMSolver(5, 3), DPMSolver(3, sde=True), Heun(3, churn=10), UniPC(5, 3)),
    *(DDPM(3, "large"), DDPM(3, "learned")),
]


def walked(it: Pipeline, samplers: list[Sampler], guidance: Guidance) -> list[tuple]:
    """The device and shape of each sampler's result."""
    ends = [list(it.frames(B, None, 0, sampler, guidance))[-1].x for sampler in samplers]
    return [(x.device, tuple(x.shape)) for x in ends]


def test_every_guidance_is_covered_on_the_device():
    assert {type(make()) for make in GUIDANCES.values()} == concrete(Guidance, "diffusion.guidance")


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_walk_with_every_guidance(guidance):
    it = model()
    with watched("walk"):
        assert walked(moved(it), FEW, GUIDANCES[guidance]()) == len(FEW) * [(DEVICE, (B, *SHAPE))]


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_walk_of_every_sampler_with(guidance):
    it = model()
    with watched("walk"):
        assert walked(moved(it), SAMPLERS, GUIDANCES[guidance]()) == len(SAMPLERS) * [(DEVICE, (B, *SHAPE))]


def test_walk_of_the_other_options_of_samplers():
    it = model(learn_variance=True)
    with watched("walk"):
        assert walked(moved(it), OTHER_WAYS, Plain()) == len(OTHER_WAYS) * [(DEVICE, (B, *SHAPE))]


@pytest.mark.parametrize("clamp", every(Bound), ids=lambda kind: kind.__name__)
def test_samples_are_copied_to_the_host_once_per_batch(clamp):
    with watched("walk") as gpu:
        x = moved(model(clamp=clamp())).sample(5, batch_size=2)
    assert not fake(x) and x.shape == (5, *SHAPE)
    assert [w.name for w in gpu.waits if w.kind == "read"] == 3 * ["Pipeline.batches"]


# --- editing ------------------------------------------------------------------------------------------------

EDITS = {
    "inpaint": lambda m, x, y: editing.inpaint(m, x, torch.ones(SIZE, SIZE, dtype=torch.bool), y, jumps=1, length=2),
    "img2img": lambda m, x, y: editing.img2img(m, x, 0.5, y),
    "interpolate": lambda m, x, y: editing.interpolate(m, x, x, 2, y, y + 1, iterations=1),
    "vary": lambda m, x, y: editing.vary(m, x, 0.3, 2, y, iterations=1),
    "reconstruct": lambda m, x, y: editing.reconstruct(m, x, y, iterations=1)[0],
    "stop": lambda m, x, y: editing.stop(m, [0.7, 0.2, 0.0], B, y)[0].x.cpu(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_of_images_on_the_host(edit):
    with watched("edit"):
        x = EDITS[edit](moved(model()), torch.zeros(B, *SHAPE), torch.arange(B))
    assert not fake(x) and x.shape[0] == B and tuple(x.shape[-3:]) == SHAPE


# --- likelihood ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_terms_of_the_bound_on_the_device(variance):
    with watched("likelihood"):
        it = moved(model(variance == "learned"))
        denoise = it.clamp(it.denoiser.bind(Condition(labels())))
        terms = list(vlb.terms(denoise, on_device(B, *SHAPE), Cosine(100), 4, variance, noise=ImageDraws(0, range(B))))
        assert [(v.device, v.shape) for v in terms] == 5 * [(DEVICE, (B,))]


@pytest.mark.parametrize("divergence", ["hutchinson", "exact"])
def test_likelihood_of_the_flow_on_the_device(divergence):
    with watched("likelihood"):
        it, noise = moved(model()), ImageDraws(0, range(B))
        x0 = dequantise(on_device(B, *SHAPE), noise)
        log_p = log_likelihood(it.denoiser.bind(Condition(labels())), x0, Cosine(100), divergence, noise=noise)
        assert bits_per_dim(log_p, C * SIZE * SIZE).device == DEVICE


def test_bits_of_images_on_the_host():
    it, images = model(), torch.zeros(B, *SHAPE, dtype=torch.uint8)
    with watched("likelihood"):
        found = nll.measure(nll.Request("run", steps=4), moved(it), images, torch.arange(B))
    assert not fake(found.vlb) and found.vlb.shape == (5, B) and not fake(found.ode) and found.ode.shape == (B,)


# --- metrics ------------------------------------------------------------------------------------------------

EXTRACTORS = {"FeatureNet": (FeatureNet, 8), "DigitsNet": (DigitsNet, 8), "Inception": (Inception, 8)}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_of_images_on_the_host(name):
    kind, size = EXTRACTORS[name]
    net = kind()
    with watched("metrics"):
        extractor = Extractor.of(net.to(DEVICE), name)
        images = torch.zeros(2, 1, size, size, dtype=torch.uint8)
        found = extractor.describe(images, torch.arange(2))
    assert not any(map(fake, (found.pixels, found.features, found.logits))) and len(found.features) == 2


# --- data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [2**40, 0], ids=["kept there", "sent"])
@pytest.mark.parametrize("context", [False, True], ids=["labels", "contexts"])
def test_batches_are_made_on_the_device(free, context):
    n = 7
    y = torch.rand(n, 4) if context else torch.arange(n)
    with watched("data", free) as gpu:
        batches = Batches(
            torch.zeros(n, *SHAPE, dtype=torch.uint8), y, 2, shuffle=True, flip=torch.ones(n) > 0, device=DEVICE
        )
        assert fake(batches.store.images) == (free > 0) and fake(batches.y)
        walk = iter(batches)
        next(walk)
        first = len(gpu.waits)
        assert all(v.device == DEVICE for batch in walk for v in batch)
        assert len(gpu.waits) == first  # an epoch waits only at its start


# --- the bench ----------------------------------------------------------------------------------------------


class Planted(Euler):
    """A sampler with a deliberate fault in each step."""

    def __init__(self, mistake) -> None:
        super().__init__(2)
        self.mistake = mistake

    def step(self, denoise, x, t, s, past, noise):
        self.mistake(x)
        return super().step(denoise, x, t, s, past, noise)


WAITS = {
    "item": lambda x: x.mean().item(),
    "float": lambda x: float(x.mean()),
    "bool": lambda x: bool((x > 0).any()),
    "if": lambda x: 1 if x.mean() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "copy": lambda x: torch.empty(x.shape).copy_(x),
    "to": lambda x: x.to("cpu", torch.float64),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x),
    "solve": lambda x: torch.linalg.solve(x, x),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "send": lambda x: torch.ones(2).to(x),
    "cuda": lambda x: torch.ones(2).cuda(),
    "index": lambda x: x[torch.tensor([1, 0])],
    "fill": lambda x: x.copy_(torch.ones(x.shape)),
}
FREE_OF_WAITS = {
    "sent without waiting": lambda x: torch.ones(2).to(x.device, non_blocking=True),
    "a number on the host": lambda x: torch.tensor(2.0, dtype=torch.float64) * x,
    "made there": lambda x: torch.full((2,), 3.0, device=x.device) + torch.arange(2, device=x.device),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "index there": lambda x: x[torch.arange(2, device=x.device)],
    "made on the host": lambda x: torch.zeros_like(x, device="cpu") + torch.ones(x.shape),
}
MIXED = {
    "a tensor on the host": lambda x: x + torch.ones(x.shape),
    "cat": lambda x: torch.cat([x, torch.ones(x.shape)]),
    "a generator of the host": lambda x: torch.randn(x.shape, generator=torch.Generator(), device=x.device),
    "a generator of the device": lambda x: torch.randn(x.shape, generator=torch.Generator("cuda")),
    "draws of the host": lambda x: StepDraws(0, 0, 0, "cpu").normal(x),
    "a network on the host": lambda x: network()(x, torch.ones(len(x), device=x.device)),
    "labels on the host": lambda x: network().to(x.device)(x, x[:, 0, 0, 0], torch.arange(len(x))),
    "numpy": lambda x: x.numpy(),
}


def planted(mistake) -> None:
    for _ in moved(model()).frames(B, None, 0, Planted(mistake)):
        pass


@pytest.mark.parametrize("mistake", WAITS)
def test_fake_gpu_finds_a_wait(mistake):
    with pytest.raises(AssertionError, match=r"^Sampler.iterate makes the host wait \((read|send|index) in line"):
        with watched("walk"):
            planted(WAITS[mistake])


@pytest.mark.parametrize("work", FREE_OF_WAITS)
def test_fake_gpu_finds_no_wait_where_there_is_none(work):
    with watched("walk"):
        planted(FREE_OF_WAITS[work])


@pytest.mark.parametrize("mistake", MIXED)
def test_fake_gpu_finds_two_devices_in_one_operation(mistake):
    with pytest.raises((RuntimeError, TypeError), match="device"), FakeGPU().on():
        planted(MIXED[mistake])


def test_fake_gpu_computes_on_the_host():
    with FakeGPU().on():
        x = torch.arange(6.0, requires_grad=True)
        (gradient,) = torch.autograd.grad(x.square().sum(), x)
        x.square().sum().backward()
        drawn = torch.randn(3, generator=torch.Generator().manual_seed(1))
    assert gradient.tolist() == x.grad.tolist() == [0, 2, 4, 6, 8, 10]
    assert torch.equal(drawn, torch.randn(3, generator=torch.Generator().manual_seed(1)))


def test_fake_gpu_gives_a_gradient_to_weights_that_the_loss_depends_on():
    with FakeGPU().on():
        used, unused = (nn.Linear(2, 2).to(DEVICE) for _ in range(2))
        used(on_device(3, 2)).sum().backward()
        assert used.weight.grad.device == DEVICE and used.weight.grad.shape == (2, 2) and unused.weight.grad is None
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.autograd.grad(on_device(3).sum(), used.weight)
        with pytest.raises(RuntimeError, match="not have been used in the graph"):
            torch.autograd.grad(used(on_device(3, 2)).sum(), unused.weight)


def test_fake_gpu_restores_everything_it_patches():
    before = torch.Generator, torch.cuda.mem_get_info, nn.Module._apply
    with FakeGPU().on():
        assert torch.Generator is not before[0]
    assert (torch.Generator, torch.cuda.mem_get_info, nn.Module._apply) == before
    assert type(torch.empty(2)) is Tensor


def test_ledger_names_allowed_waits_that_do_not_happen():
    ledger = Ledger({"a": Allowed.at(2, "walk, edit", "why"), "b": Allowed.at(1, "walk", "why")})
    ledger.check("walk", {"a": {("read", 1)}, "b": {("read", 9)}})
    assert ledger.idle() == [
        "a is allowed to wait in edit, and does not",
        "a is allowed to wait at 2 places, and does at 1",
    ]
    with pytest.raises(AssertionError, match="at 2 places in all, and 1 are allowed"):
        ledger.check("walk", {"b": {("read", 10)}})


def test_every_allowed_wait_happens(request):
    """The table lists no wait that no longer happens. Runs last."""
    mine = [item.nodeid for item in request.session.items if item.path == request.path]
    whole = {item.split("::")[1].split("[")[0] for item in mine} >= {n for n in globals() if n.startswith("test_")}
    if not whole or request.session.testsfailed:
        pytest.skip("only some of these tests ran")
    assert LEDGER.idle() == []
