"""Every guidance with every sampler, and every guidance through its spec."""

import json

import pytest
import torch

from diffusion import samplers
from diffusion.denoiser import Condition
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
from diffusion.support.specs import build, concrete, spec

from .conftest import SHAPE, WEIGHTS


class Near(Likelihood):
    """A Gaussian log-likelihood around a point."""

    def __init__(self, x: float = 0.6, y: float = -0.1) -> None:
        self.x, self.y = x, y

    def log_p(self, x0, t):
        away = x0 - torch.tensor([self.x, self.y], dtype=x0.dtype)
        return -5 * away.square().flatten(1).sum(1)


MADE = {
    "Plain": lambda s: Plain(), "ClassifierFree": lambda s: ClassifierFree(2),
    "rescaled": lambda s: ClassifierFree(2, rescale=0.7), "APG": lambda s: APG(2),
    "Interval": lambda s: Interval(ClassifierFree(3), 0.1, 3), "AutoGuidance": lambda s: AutoGuidance(s.worse(), 1.5),
    "ClassifierGuidance": lambda s: ClassifierGuidance(s.classifier, 3), "Steer": lambda s: Steer(Near()),
    "Steer through": lambda s: Interval(Steer(Near(), through="network"), 0, 20),
}  # fmt: skip
SAMPLERS = sorted(concrete(samplers.Sampler, "diffusion"), key=lambda k: k.__name__)
STEPS = {samplers.AnnealedLangevin: 40, samplers.EulerMaruyama: 40, samplers.PredictorCorrector: 40}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", MADE)
def test_every_guidance_works_with_every_sampler(setting, name, sampler):
    """Sampling the rarest of three classes, with a conditional or an unconditional network."""
    guidance = MADE[name](setting)
    denoiser = setting.unconditional if name.startswith(("ClassifierGuidance", "Steer")) else setting.denoiser
    cond = Condition(None if name.startswith("Steer") else torch.full((60,), 1))
    torch.manual_seed(0)
    z = torch.randn(60, *SHAPE, dtype=torch.float64)
    options = {"inner": 4, "epsilon": 0.5} if sampler is samplers.AnnealedLangevin else {}
    walk = sampler(STEPS.get(sampler, 20), **options)
    x = walk.sample(guidance(denoiser.walk(), cond), z, setting.world.schedule)
    share = float((setting.world.log_joint(x, setting.level(1e-3)).argmax(1) == 1).double().mean())
    assert x.isfinite().all()
    assert share > (0.7 if name.startswith("Steer") else 0.8) > 3 * WEIGHTS[1]


@pytest.mark.parametrize("guidance", [
    Plain(), ClassifierFree(3, rescale=0.5), ClassifierFree(w=1), APG(4, parallel=0.2, threshold=3, momentum=-0.3),
    Interval(APG(w=3), 0.2, 5), Interval(ClassifierFree(3)), Steer(Near(0.1), 2, "network", guidance=ClassifierFree(2)),
], ids=lambda g: type(g).__name__)  # fmt: skip
def test_guidance_survives_its_spec(guidance):
    plain = spec(guidance)
    again = build(json.loads(json.dumps(plain)))
    assert type(again) is type(guidance) and spec(again) == plain and again.scale == guidance.scale


def test_in_memory_guides_have_no_spec(setting):
    """Their weights would be lost: a checkpoint can only name a file."""
    for guidance in (AutoGuidance(setting.worse()), ClassifierGuidance(setting.classifier)):
        with pytest.raises(ValueError, match="must keep its argument"):
            spec(guidance)


def test_every_guidance_is_covered():
    named = {"Plain", "ClassifierFree", "APG", "Interval", "AutoGuidance", "ClassifierGuidance", "Steer"}
    assert {k.__name__ for k in concrete(Guidance, "diffusion")} - {"Counted", "Wrapper"} == named
    assert Contrast not in concrete(Guidance, "diffusion") and issubclass(Interval, Wrapper)
