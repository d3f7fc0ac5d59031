"""Every sampler, every guidance and every edit on a cascade whose stages have networks with random weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusion import Denoiser, Pipeline
from diffusion.denoiser.hints import LowResolution
from diffusion.denoiser.targets import V
from diffusion.generation import editing
from diffusion.generation.cascade import Cascade
from diffusion.generation.choices import Choices
from diffusion.guidance import (
    APG,
    AutoGuidance,
    ClassifierFree,
    ClassifierGuidance,
    Contrast,
    Guidance,
    Interval,
    Likelihood,
    Plain,
    Steer,
    Wrapper,
)
from diffusion.guidance.classifier import NoisyImageClassifier
from diffusion.nets import ResidualMLP
from diffusion.noise import Cosine
from diffusion.samplers import DDIM, DDPM, Sampler
from diffusion.support.specs import concrete

pytestmark = pytest.mark.usefixtures("float64")

NAMES, SMALL, LARGE = ("a", "b", "c"), (1, 4, 4), (1, 8, 8)
Y = torch.tensor([0, 1, 2])
SCHEDULE = Cosine(50)
MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[:, 3:] = True


def denoiser(shape, seed, classes=3, shown=0):
    torch.manual_seed(seed)
    net = ResidualMLP(shape[0], shape[1:], width=16, depth=1, num_classes=classes, image_channels=shown)
    for weight in net.parameters():  # some are initially 0
        nn.init.normal_(weight, std=0.2)
    return Denoiser(net.double(), SCHEDULE, V()).eval()


class Logits(nn.Module):
    """A classifier by three fixed patterns."""

    def forward(self, x, clock):
        return x.flatten(1) @ torch.linspace(-1, 1, 3 * x[0].numel(), dtype=x.dtype).view(-1, 3)


class Near(Likelihood):
    """A Gaussian log-likelihood around mid-grey."""

    def log_p(self, x0, t):
        return -x0.square().flatten(1).sum(1)


def cascade(classes=3, **options):
    base = Pipeline(denoiser(SMALL, 0), DDIM(4), shape=SMALL, class_names=NAMES)
    last = denoiser(LARGE, 1, classes, shown=2)
    stage = Pipeline(last, DDIM(4), hint=LowResolution(2, 0.5), shape=LARGE, class_names=NAMES if classes else ())
    return replace(Cascade.of(base, stage, augment=0.2), **options)


def guided(guidance):
    """A cascade whose base is guided, and its last stage, which has no classes, is not."""
    whole = cascade(0)
    return replace(whole, base=replace(whole.base, guidance=guidance))


SAMPLERS = {kind.__name__: kind for kind in concrete(Sampler, "diffusion")}
GUIDANCES = {
    "Plain": lambda: Plain(), "ClassifierFree": lambda: ClassifierFree(2), "APG": lambda: APG(2),
    "Interval": lambda: Interval(ClassifierFree(3), 0.1, 5),
    "AutoGuidance": lambda: AutoGuidance(denoiser(SMALL, 5), 2),
    "ClassifierGuidance": lambda: ClassifierGuidance(NoisyImageClassifier(Logits(), SCHEDULE, SMALL, NAMES), 3),
    "Steer": lambda: Steer(Near(), 3), "Steer through": lambda: Steer(Near(), 3, "network"),
}  # fmt: skip
EDITS = {
    "inpaint": lambda m, x, **how: editing.inpaint(m, x, MASK, Y, 3, jumps=1, length=2, **how),
    "img2img": lambda m, x, **how: editing.img2img(m, x, 0.6, Y, 3, **how),
    "reconstruct": lambda m, x, **how: editing.reconstruct(m, x, Y, iterations=2, **how)[0],
    "vary": lambda m, x, **how: editing.vary(m, x, 0.4, 1, Y, 3, iterations=2, **how)[:, 0],
    "interpolate": lambda m, x, **how: editing.interpolate(
        m, x, x.flip(-1), 2, Y, Y.roll(1), iterations=2, **how
    )[:, 1],
    "stop": lambda m, x, **how: editing.stop(m, [0.5], 3, Y, 3)[0].x,
}  # fmt: skip
WALKS = ("inpaint", "img2img")  # edits with any sampler; the others invert DDIM


def pictures(seed=9):
    return torch.randn(3, *LARGE, generator=torch.Generator().manual_seed(seed)).double().clamp(-1, 1)


def test_no_guidance_is_missing():
    made = {type(make()) for make in GUIDANCES.values()}
    assert {kind for kind in concrete(Guidance, "diffusion.guidance") if kind not in (Contrast, Wrapper)} <= made


@pytest.mark.parametrize("kind, name", [
    *(("sampler", name) for name in sorted(SAMPLERS)), *(("guidance", name) for name in GUIDANCES),
    *(("edit", name) for name in EDITS),
])  # fmt: skip
def test_everything_runs_on_a_cascade(kind, name):
    """Pictures, and edits of pictures: finite, of the last stage's size, and not those of another choice."""
    x0, plain = pictures(), cascade(0)
    if kind == "sampler":
        sampler = SAMPLERS[name]() if name == "ProbabilityFlow" else SAMPLERS[name](3)
        model = replace(Choices(sampler=sampler).apply(plain), sampler=sampler)
        assert model.base.sampler is not plain.base.sampler
        edits = WALKS
    elif kind == "guidance":
        model, edits = guided(GUIDANCES[name]()), tuple(EDITS)
    else:
        model, edits = cascade(3, sampler=DDPM(4) if name in WALKS else DDIM(4)), (name,)
    x = model.sample(3, Y, seed=3)
    assert x.shape == (3, *LARGE) and x.isfinite().all()
    assert name == "Plain" or not torch.equal(x, plain.sample(3, Y, seed=3)) or name == "DDIM"
    for edit in edits:
        how = {} if kind != "guidance" else {"guidance": model.guidance}  # else inversion is without any
        made = EDITS[edit](model, x0, **how)
        assert made.shape == x.shape and made.isfinite().all(), edit
        assert torch.equal(EDITS[edit](model, x0, **how), made), edit  # a function of the pictures and the seed
        if edit == "inpaint":
            assert torch.equal(made[..., :3], x0[..., :3])
        if kind == "edit" and edit != "stop":
            assert (EDITS[edit](model, pictures(8)) - made).abs().max() > 1e-3
