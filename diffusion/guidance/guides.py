"""Guidance by another trained run: a worse model, or a classifier of noisy images. Does not import Lightning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion.denoiser import Condition, Conditioned, Denoise, Denoiser, Prediction, load_denoiser
from diffusion.denoiser.codecs.base import Codec
from diffusion.denoiser.codecs.saved import load_codec
from diffusion.guidance.base import Guidance
from diffusion.guidance.classifier import NoisyImageClassifier
from diffusion.guidance.contrast import Contrast
from diffusion.guidance.steer import differentiable, shifted
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.support.files import digest
from diffusion.support.runs import find_checkpoint
from diffusion.support.specs import spec


class AutoGuidance(Contrast):
    """Guidance away from a worse version of the model: an earlier checkpoint, or a smaller, less trained network.

        x0 = lerp(x0_guide, x0_own, scale)

    Quality without loss of variety, for unconditional models too. One evaluation of each network per step.
    Source: Karras et al. 2024, arXiv:2406.02507, sec. 3.

    Args:
        guide: run directory or checkpoint of the worse model. A Denoiser works too, but cannot be saved.
        scale: 1 is off, 2 by default.
        w: scale = 1 + w; give either.
        rescale: in [0, 1], how far the contrast is restored to that of the model's own prediction.
        weights: which weights of the guide; its averaged weights are not necessarily the worse ones.
        hash: of the guide's file, filled in automatically; a different file is then rejected.
    Raises:
        FileNotFoundError: no checkpoint at this path.
        ValueError: the file is not a diffusion model, or has changed.
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
            self._guide, self._shape, self._names, self._mark = guide, None, (), None
            return  # self.guide stays unset: a spec cannot keep its weights, so saving fails
        self.guide, self.hash = str(guide), same(guide, hash)
        saved = load_denoiser(guide, weights)
        self._guide = saved.denoiser.requires_grad_(False)
        self._shape = saved.hyper_parameters.get("shape")
        self._names = tuple(saved.hyper_parameters.get("class_names", ()))
        self._mark = load_codec(saved).mark

    def refuse(self, schedule: Schedule, shape: Sequence[int], class_names: Sequence[str], codec: Codec) -> str:
        if self._mark is not None and self._mark != codec.mark:
            return f"this guide has {called(self._mark)}, the model {called(codec.mark)}; choose a guide on the same"
        names = self._names if self._guide.conditional else ()
        return mismatch("guide", self._guide.schedule, self._shape, names, schedule, shape, class_names)

    def pair(self, denoiser: Denoiser, cond: Condition) -> "OwnAndWorse":
        known = cond if self._guide.conditional else cond._replace(y=None, keep=None)
        if self._guide.tokens is not None and known.y is not None:
            if known.y.is_floating_point() or self._guide.tokens != denoiser.tokens:
                raise ValueError("guide: it reads text in its own way; use a run on the same captions, without between")
        return OwnAndWorse(denoiser.bind(cond), self._guide.walk().bind(known), self._guide)


@dataclass(eq=False)
class OwnAndWorse:
    """The model's own prediction and the guide's x_0, one network call each."""

    own: Denoise
    worse: Conditioned
    guide: Denoiser

    def __call__(self, x: Tensor, t: Level) -> tuple[Prediction, Tensor]:
        settle(self.guide, x)
        return self.own(x, t), self.worse(x, t).x0

    def __repr__(self) -> str:
        return f"OwnAndWorse({self.own!r}, {self.worse!r})"


class ClassifierGuidance(Guidance):
    """Guidance by the gradient of a classifier of noisy images: score += strength grad_x log p(y | x_t), so that

        x0 += sigma^2 / alpha strength grad_x log p(y | x_t),        eps = (x - alpha x0) / sigma

    strength = scale for an unconditional network and scale - 1 for a conditional one: p(x) p(y | x)^scale at each
    level either way, as in ClassifierFree. The paper's s is `strength`. One forward and backward pass through the
    classifier per evaluation; contexts count as class weights.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, eq. 10-14 and alg. 2.

    Args:
        classifier: run directory or checkpoint of a NoisyClassifier. A module (x, t) -> logits with `schedule`,
            `shape` and `class_names` works too, but cannot be saved in a checkpoint.
        scale: 0 ignores the label, 1 is off for a conditional model.
        hash: of the classifier's file, filled in automatically; a different file is then rejected.
    Raises:
        FileNotFoundError: no checkpoint at this path.
        ValueError: the file is not a NoisyClassifier, or has changed.
    """

    def __init__(self, classifier: str | nn.Module, scale: float = 2.0, hash: str = "") -> None:
        self.scale, self.hash = float(scale), hash
        if isinstance(classifier, nn.Module):
            self._classifier = classifier  # self.classifier stays unset, see AutoGuidance
        else:
            self.classifier, self.hash = str(classifier), same(classifier, hash)
            self._classifier = NoisyImageClassifier.load(classifier).requires_grad_(False)

    @property
    def num_classes(self) -> int:
        return len(self._classifier.class_names)

    def off(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        return denoiser.bind(cond if denoiser.conditional else cond._replace(y=None, keep=None))

    def refuse(self, schedule: Schedule, shape: Sequence[int], class_names: Sequence[str], codec: Codec) -> str:
        c = self._classifier
        if codec.latent:
            return "this classifier sees noisy images, the model noisy latents; steer by one of clean images (Steer)"
        return mismatch("classifier", c.schedule, c.shape, c.class_names, schedule, shape, class_names)

    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        strength = self.scale - denoiser.conditional
        base = self.off(denoiser, cond)
        if cond.y is None:
            raise ValueError("ClassifierGuidance: no labels to steer to; pass y, or set it as model.guidance")
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
        y = self.cond.y.clone()  # a copy: y may be an inference-mode tensor
        chosen = (y * logs).sum(1) if y.ndim > 1 else logs.gather(1, y[:, None])[:, 0]
        return chosen if self.cond.keep is None else chosen * self.cond.keep.clone()

    def __repr__(self) -> str:
        return f"SteeredByClassifier({self.base!r}, {type(self.classifier).__name__}, strength {self.strength:g})"


def same(path: str, hash: str) -> str:
    """The hash of a checkpoint's file.

    Raises:
        ValueError: it differs from the recorded hash.
    """
    file = find_checkpoint(path)
    now = digest(file)[:12]
    if hash and hash != now:
        raise ValueError(f"{file}: has changed since it was chosen as a guide: expected hash {hash}, got {now}")
    return now


def called(mark: str) -> str:
    """A codec by its mark, in words."""
    return f"the codec {mark}" if mark else "no codec"


def settle(module: nn.Module, x: Tensor) -> None:
    """Move a module to the device of the images."""
    if next((p.device for p in module.parameters()), x.device) != x.device:
        module.to(x.device)


def mismatch(what: str, its: Schedule, its_shape: Sequence[int] | None, its_names: Sequence[str], schedule: Schedule,
             shape: Sequence[int], names: Sequence[str]) -> str:  # fmt: skip
    """Why a guide does not fit a model; "" if it does."""
    if spec(its) != spec(schedule):
        ours, theirs = (f"{type(s).__name__}{spec(s)['init_args']}" for s in (its, schedule))
        return f"this {what} was trained on the schedule {ours}, the model on {theirs}"
    if its_shape is not None and tuple(its_shape) != tuple(shape):
        ours, theirs = ("x".join(map(str, s)) for s in (its_shape, shape))
        return f"this {what} was trained on images of {ours}, the model on {theirs}"
    if its_names and names and tuple(its_names) != tuple(names):
        ours, theirs = (", ".join(n[:5]) + (", ..." if len(n) > 5 else "") for n in (its_names, names))
        return f"this {what} was trained on the classes {ours}, the model on {theirs}"
    return ""
