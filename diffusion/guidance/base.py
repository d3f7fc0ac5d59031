"""What guidance is: Denoise -> Denoise, with one meaning of `scale` throughout."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from diffusion.denoiser import Condition, Denoise, Denoiser
from diffusion.noise.schedule import Schedule


class Guidance(ABC):
    """How a condition steers sampling.

        p(x | c) p(c | x)^(scale - 1)  ~  p(x) p(c | x)^scale        at every noise level

    The two are one by Bayes' rule, so `scale` means the same whether the network knows the condition or not: 1 takes
    it at its word and is off where the network knows it, 0 is the unconditional model, above 1 exaggerates.

    Attributes:
        num_classes: classes that it steers to by itself, though the network takes no labels; 0 for none.
    """

    scale: float = 1.0
    num_classes: int = 0

    @abstractmethod
    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        """The prediction that a sampler will follow."""

    def off(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        """The prediction without this guidance."""
        return denoiser.bind(cond)

    def refuse(self, schedule: Schedule, shape: Sequence[int], class_names: Sequence[str]) -> str:
        """Why it cannot guide a model of this schedule, image shape and classes, or nothing."""
        return ""


class Plain(Guidance):
    """The conditional prediction as it is."""

    def __call__(self, denoiser: Denoiser, cond: Condition) -> Denoise:
        return denoiser.bind(cond)


class Wrapper(Guidance):
    """Guidance around another, which it speaks for."""

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

    def refuse(self, schedule: Schedule, shape: Sequence[int], class_names: Sequence[str]) -> str:
        return self.guidance.refuse(schedule, shape, class_names)
