"""Guidance by another trained run: a worse model, or a classifier of noisy images. No Lightning."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion.denoiser import Condition, Conditioned, Denoise, Denoiser, Prediction, load_denoiser
from diffusion.guidance.base import Guidance
from diffusion.guidance.classifier import NoisyImageClassifier
from diffusion.guidance.contrast import Contrast
from diffusion.guidance.steer import differentiable, shifted
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.support.runs import find_checkpoint
from diffusion.support.specs import spec


class AutoGuidance(Contrast):
    """Away from a worse version of the model: an earlier checkpoint, or a smaller network trained less.

        x0 = lerp(x0_guide, x0_own, scale)

    Quality without the loss of variety, and for unconditional models too. One evaluation of each network.
    Source: Karras et al. 2024, arXiv:2406.02507, sec. 3.

    Args:
        guide: run directory or checkpoint of the worse model. A Denoiser can be given too; no checkpoint can keep it.
        scale: 1 is off, 2 by default.
        w: scale = 1 + w; give one of the two.
        rescale: share, in [0, 1], of the contrast that is brought back to that of the model's own prediction.
        weights: of the guide; its averaged weights need not be the worse ones.
        hash: of the guide's file, filled in; another file is then refused.
    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: not a diffusion model, or a changed file.
    """

    def __init__(
        self,
        guide: str | Denoiser,
        scale: float | None = None,
        w: float | None = None,
        rescale: float = 0.0,
        weights: Literal["ema", "raw"] = "ema",
        hash: str = "",
    ) -> None:
        super().__init__(scale, w, rescale)
        self.weights, self.hash = weights, hash
        if isinstance(guide, Denoiser):
            self._guide, self._shape, self._names = guide, None, ()
            return  # and no self.guide: a spec of it would come back with other weights, so it is refused
        self.guide, self.hash = str(guide), same(guide, hash)
        saved = load_denoiser(guide, weights)
        self._guide = saved.denoiser.requires_grad_(False)
        self._shape = saved.hyper_parameters.get("shape")
        self._names = tuple(saved.hyper_parameters.get("class_names", ()))

    def refuse(self, schedule: Schedule, shape: Sequence[int], class_names: Sequence[str]) -> str:
        names = self._names if self._guide.conditional else ()
        return mismatch("guide", self._guide.schedule, self._shape, names, schedule, shape, class_names)

    def pair(self, denoiser: Denoiser, cond: Condition) -> "OwnAndWorse":
        known = cond if self._guide.conditional else cond._replace(y=None, keep=None)
        return OwnAndWorse(denoiser.bind(cond), self._guide.walk().bind(known), self._guide)


@dataclass(eq=False)
class OwnAndWorse:
    """The model's own prediction and a guide's x_0, from one network call each."""

    own: Denoise
    worse: Conditioned
    guide: Denoiser

    def __call__(self, x: Tensor, t: Level) -> tuple[Prediction, Tensor]:
        settle(self.guide, x)
        return self.own(x, t), self.worse(x, t).x0

    def __repr__(self) -> str:
        return f"OwnAndWorse({self.own!r}, {self.worse!r})"


class ClassifierGuidance(Guidance):
    """Up the gradient of a classifier that knows noisy images: score += strength grad_x log p(y | x_t), so that

        x0 += sigma^2 / alpha strength grad_x log p(y | x_t),        eps = (x - alpha x0) / sigma

    strength = scale where the network knows no labels, which the classifier then gives to it, and scale - 1 where it
    does: p(x) p(y | x)^scale at each level either way, as in ClassifierFree. The paper's s is `strength`.
    A pass through the classifier and back at each evaluation; contexts count as shares of classes.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, eq. 10-14 and alg. 2.

    Args:
        classifier: run directory or checkpoint of a NoisyClassifier. A module (x, t) -> logits with `schedule`,
            `shape` and `class_names` can be given too; no checkpoint can keep it.
        scale: 0 ignores the label, 1 is off for a conditional model.
        hash: of the classifier's file, filled in; another file is then refused.
    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: not a NoisyClassifier, or a changed file.
    """

    def __init__(self, classifier: str | nn.Module, scale: float = 2.0, hash: str = "") -> None:
        self.scale, self.hash = float(scale), hash
        if isinstance(classifier, nn.Module):
            self._classifier = classifier  # and no self.classifier, see AutoGuidance
        else:
            self.classifier, self.hash = str(classifier), same(classifier, hash)
            self._classifier = NoisyImageClassifier.load(classifier).requires_grad_(False)

    @property
    def num_classes(self) -> int:
        return len(self._classifier.class_names)

    def off(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        return denoiser.bind(cond if denoiser.conditional else cond._replace(y=None, keep=None))

    def refuse(self, schedule: Schedule, shape: Sequence[int], class_names: Sequence[str]) -> str:
        c = self._classifier
        return mismatch("classifier", c.schedule, c.shape, c.class_names, schedule, shape, class_names)

    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        strength = self.scale - denoiser.conditional
        base = self.off(denoiser, cond)
        if cond.y is None:
            raise ValueError("ClassifierGuidance: no labels to steer to; give y, or set model.guidance to it")
        return base if strength == 0 else SteeredByClassifier(base, self._classifier, cond, strength)


@dataclass(eq=False)
class SteeredByClassifier:
    """A prediction moved up the gradient of log p(y | x_t); see ClassifierGuidance."""

    base: Denoise
    classifier: nn.Module
    cond: Condition
    strength: float

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        settle(self.classifier, x)
        with differentiable(x, t) as (z, level):
            (score,) = torch.autograd.grad(self.log_p(z, level).sum(), z)
        return shifted(x, self.base(x, t), self.strength * score, t)

    def log_p(self, x: Tensor, t: Level) -> Tensor:
        """log p(y | x_t) of each image (B,), 0 where the condition is not kept."""
        logs = self.classifier(x, t).log_softmax(1)
        y = self.cond.y.clone()  # a copy, as it may be of inference mode
        chosen = (y * logs).sum(1) if y.ndim > 1 else logs.gather(1, y[:, None])[:, 0]
        return chosen if self.cond.keep is None else chosen * self.cond.keep.clone()

    def __repr__(self) -> str:
        return f"SteeredByClassifier({self.base!r}, {type(self.classifier).__name__}, strength {self.strength:g})"


def same(path: str, hash: str) -> str:
    """The hash of a checkpoint's file.

    Raises:
        ValueError: it is not the one that was noted down.
    """
    file = find_checkpoint(path)
    now = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    if hash and hash != now:
        raise ValueError(f"{file}: this file has changed since it was chosen as a guide ({hash}, now {now})")
    return now


def settle(module: nn.Module, x: Tensor) -> None:
    """Bring a module to where the images are."""
    if next((p.device for p in module.parameters()), x.device) != x.device:
        module.to(x.device)


def mismatch(what: str, its: Schedule, its_shape: Sequence[int] | None, its_names: Sequence[str], schedule: Schedule,
             shape: Sequence[int], names: Sequence[str]) -> str:  # fmt: skip
    """Why a guide was made for other models than this one, or nothing."""
    if spec(its) != spec(schedule):
        ours, theirs = (f"{type(s).__name__}{spec(s)['init_args']}" for s in (its, schedule))
        return f"this {what} was trained on the schedule {ours}, the model on {theirs}"
    if its_shape is not None and tuple(its_shape) != tuple(shape):
        ours, theirs = ("x".join(map(str, s)) for s in (its_shape, shape))
        return f"this {what} was trained on images of {ours}, the model on {theirs}"
    if its_names and names and tuple(its_names) != tuple(names):
        ours, theirs = (", ".join(n[:5]) + (", ..." if len(n) > 5 else "") for n in (its_names, names))
        return f"this {what} knows the classes {ours}, the model {theirs}"
    return ""
