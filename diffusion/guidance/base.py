"""The interface of guidance: Denoise -> Denoise, with the same meaning of `scale` throughout."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

from diffusion.denoiser import Condition, Denoise, Denoiser
from diffusion.denoiser.codecs.base import Codec
from diffusion.noise.schedule import Schedule


class Guidance(ABC):
    """The influence of a condition on sampling.

        p(x | c) p(c | x)^(scale - 1)  ~  p(x) p(c | x)^scale        at every noise level

    The two are equal by Bayes' rule, so `scale` means the same for conditional and unconditional networks: 0 is the
    unconditional model, 1 the conditional one (no guidance if the network is conditional), above 1 exaggerates.

    Attributes:
        num_classes: classes it can steer an unconditional network to; 0 for none.
    """

    scale: float = 1.0
    num_classes: int = 0

    @abstractmethod
    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        """The guided prediction."""

    def off(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        """The prediction without this guidance."""
        return denoiser.bind(cond)

    def refuse(self, schedule: Schedule, shape: Sequence[int], class_names: Sequence[str], codec: Codec) -> str:
        """Why it cannot guide a model of this schedule, image shape, classes and codec; "" if it can."""
        return ""

    def decoded(self, codec: Codec) -> "Guidance":
        """This guidance of a model of latents: whatever judges images receives decoded ones."""
        return self


class Plain(Guidance):
    """The conditional prediction, unchanged."""

    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        return denoiser.bind(cond)


class Wrapper(Guidance):
    """Guidance that wraps another and delegates to it."""

    def __init__(self, guidance: Guidance) -> None:
        self.guidance = guidance

    @property
    def scale(self) -> float:
        return self.guidance.scale

    @property
    def num_classes(self) -> int:
        return self.guidance.num_classes

    def off(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        return self.guidance.off(denoiser, cond)

    def refuse(self, schedule: Schedule, shape: Sequence[int], class_names: Sequence[str], codec: Codec) -> str:
        return self.guidance.refuse(schedule, shape, class_names, codec)

    def decoded(self, codec: Codec) -> "Wrapper":
        """A copy around the decoded guidance."""
        changed = copy.copy(self)
        changed.guidance = self.guidance.decoded(codec)
        return changed
