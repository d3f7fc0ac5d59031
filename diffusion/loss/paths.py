"""The paths from x_t to x_s to x_r that a flow map learns from: who predicts each of the two legs."""

from abc import ABC, abstractmethod
from typing import Any, Literal

from torch import Tensor

from diffusion.denoiser import Condition, Denoiser, load_denoiser
from diffusion.guidance.guides import same, settle
from diffusion.loss.objective import Noised
from diffusion.noise.level import Level


class Path(ABC):
    """The first leg, from t to s, as (x_0, eps) with x_t = alpha_t x_0 + sigma_t eps; and who makes the second.

    Attributes:
        second_clock: whether the network must receive the level s.
    """

    second_clock = False

    @abstractmethod
    def first(self, live: Denoiser, batch: Noised, s: Level) -> tuple[Tensor, Tensor]:
        """(x_0, eps) whose recombination at level s is x_s."""

    def second(self, live: Denoiser) -> Denoiser:
        """The denoiser whose map leads from s to the end: by default the one in training."""
        return live


class FromData(Path):
    """x_s of the same image and noise as x_t: consistency training and tuning, discrete MeanFlow. No teacher."""

    def first(self, live: Denoiser, batch: Noised, s: Level) -> tuple[Tensor, Tensor]:
        return batch.x0, batch.eps


class FromSelf(Path):
    """x_s by the network's own map from t to s: shortcut models. Source: Frans et al. 2024, arXiv:2410.12557, eq. 4."""

    second_clock = True

    def first(self, live: Denoiser, batch: Noised, s: Level) -> tuple[Tensor, Tensor]:
        return live(batch.x, batch.t, batch.cond, s)[:2]


class FromTeacher(Path):
    """x_s by a step of a trained denoiser: consistency distillation; with both legs its, progressive distillation.

    Source: Song et al. 2023, arXiv:2303.01469, alg. 2; Salimans & Ho 2022, arXiv:2202.00512, alg. 2.

    Args:
        teacher: run directory or checkpoint of a denoiser with the same schedule; by default the run of `fit --init`.
            A Denoiser works too, but cannot be saved.
        both: whether it makes the second leg, too.
        weights: which weights of the teacher.
        hash: of the teacher's file, filled in automatically; a different file is then rejected.
    Raises:
        FileNotFoundError: no checkpoint at this path.
        ValueError: no teacher, or its file is not a diffusion model, or has changed.
    """

    def __init__(
        self,
        teacher: str | Denoiser = "",
        both: bool = False,
        weights: Literal["ema", "raw"] = "ema",
        hash: str = "",
    ) -> None:
        self.both = both
        learn_from(self, teacher, weights, hash)

    def first(self, live: Denoiser, batch: Noised, s: Level) -> tuple[Tensor, Tensor]:
        settle(self._teacher, batch.x)
        return self._teacher(batch.x, batch.t, known(self._teacher, batch.cond), s)[:2]

    def second(self, live: Denoiser) -> Any:
        return self._teacher if self.both else live


def learn_from(part: Any, teacher: str | Denoiser, weights: Literal["ema", "raw"], hash: str) -> None:
    """Give a part its teacher, which is not trained, with its path, choice of weights and hash; see `FromTeacher`."""
    part.weights, part.hash = weights, hash
    if isinstance(teacher, Denoiser):
        part._teacher = teacher  # part.teacher stays unset, see AutoGuidance
        return
    if not teacher:
        raise ValueError(
            "teacher: wanted a run directory or a checkpoint, got none; fit --init RUN makes RUN the teacher"
        )
    part.teacher, part.hash = str(teacher), same(teacher, hash)
    part._teacher = load_denoiser(teacher, weights).denoiser.requires_grad_(False)


def known(denoiser: Denoiser, cond: Condition) -> Condition:
    """A condition without the labels, if the denoiser has none."""
    return cond if denoiser.conditional else cond._replace(y=None, keep=None)
