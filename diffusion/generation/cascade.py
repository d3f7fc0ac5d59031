"""Cascades: a model of small images, and models that enlarge its images one after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.denoiser.hints import LowResolution
from diffusion.generation.conditioning import HINTS
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Guidance
from diffusion.noise.draws import ImageDraws, seed_of
from diffusion.samplers import Frame, Sampler
from diffusion.support.specs import spec
from diffusion.support.tokens import Tokens

STAGE = 4  # key of the random streams of later stages


@dataclass(eq=False, repr=False)
class Cascade(Pipeline):
    """A super-resolution model whose input images are those of another pipeline, with noise added.

    Its own parts (denoiser, sampler, shape, ...) are those of the last stage; conditions are those of the base, whose
    images are the same as without the cascade. The base is sampled to the end and noise of strength `augment` is added
    (Ho et al. 2021, arXiv:2106.15282, non-truncated conditioning augmentation), which hides artefacts of the base and
    shifts of its distribution. Of Gaussian pixels of variance s^2 and a base that is too wide by a factor kappa, what
    remains is

        Var = s^2 + w^2 (kappa^2 - 1) s^2,    w = s^2 / (s^2 + augment^2)

    Args:
        base: the pipeline of the small images, itself a cascade for three stages and more.
        augment: standard deviation of the noise for pixels in [-1, 1], from 0 to the hint's `noise`.
    Raises:
        ValueError: the model is not one of super-resolution, its sizes or classes are not those of the base, or
            `augment` is out of range.
    """

    base: Pipeline | None = None
    augment: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.hint, LowResolution):
            kind = type(self.hint).__name__ if self.hint else "none"
            raise ValueError(f"cascade: a later stage enlarges images: train it with hint LowResolution, not {kind}")
        C, H, W = self.shape
        wanted = C, *self.hint.shape(self.shape)[1:]
        if self.base.shape != wanted:
            ours, its = ("x".join(map(str, shape)) for shape in (wanted, self.base.shape))
            raise ValueError(f"cascade: the stage to {C}x{H}x{W} enlarges images of {ours}, but gets {its}")
        if self.denoiser.conditional and (theirs := facts(self.base.first)) != (mine := facts(self.last)):
            raise ValueError(
                f"cascade: the base has {theirs}, the stage to {C}x{H}x{W} {mine}; train both on the same classes, or "
                "the later one without (data.labels false)"
            )
        if self.base.scaling.dtype != self.scaling.dtype:
            raise ValueError(
                f"cascade: the base makes images of {self.base.scaling.dtype}, the next stage enlarges "
                f"{self.scaling.dtype}; train both on the same data"
            )
        if not 0 <= self.augment <= self.hint.noise:
            more = "" if self.hint.noise else "; train it with model.hint.noise, e.g. 0.5, to add noise"
            raise ValueError(
                f"augment: the stage to {C}x{H}x{W} was trained with noise of 0 .. {self.hint.noise:g}, "
                f"got {self.augment:g}{more}"
            )
        self.class_names = self.base.class_names

    def __repr__(self) -> str:
        return f"Cascade({self.base!r}, {self.last!r}, augment {self.augment:g})"

    @classmethod
    def of(cls, base: Pipeline, *stages: Pipeline, augment: float | Sequence[float] = 0.0) -> Pipeline:
        """A base followed by super-resolution models, with one strength of noise or one for each of them."""
        for stage, strength in zip(stages, strengths(augment, len(stages)), strict=True):
            base = cls(**parts(stage), base=base, augment=strength)
        return base

    def with_augment(self, augment: float | Sequence[float]) -> "Cascade":
        """This cascade with other noise, of one strength or one for each stage after the base."""
        *before, mine = strengths(augment, self.depth)
        base = self.base.with_augment(before) if before else self.base
        return replace(self, base=base, augment=mine)

    @property
    def first(self) -> Pipeline:
        return self.base.first

    @property
    def last(self) -> Pipeline:
        return Pipeline(**parts(self))

    @property
    def stages(self) -> list[Pipeline]:
        return [*self.base.stages, self.last]

    @property
    def depth(self) -> int:
        """The number of stages after the base."""
        return len(self.stages) - 1

    @property
    def walk(self) -> str:
        return f"{self.base.walk}, then {super().walk} (augment {self.augment:g})"

    @property
    def num_classes(self) -> int:
        return self.base.num_classes

    @property
    def context_dim(self) -> int:
        return self.base.context_dim

    @property
    def tokens(self) -> Tokens | None:
        return self.base.tokens

    def prompts(self, texts: str | Sequence[str], between: int = 0) -> Tensor:
        return self.base.prompts(texts, between)

    @property
    def setting(self) -> dict[str, Any]:
        """The noise and the sampling of the stages after the base, in plain types."""
        mine = {name: spec(getattr(self, name)) for name in ("sampler", "guidance")} | {"augment": self.augment}
        return mine | ({"before": self.base.setting} if isinstance(self.base, Cascade) else {})

    def stream(self, seed: int) -> int:
        return seed_of(seed, STAGE, self.depth)

    def start(self, n: int, seed: int = 0) -> Tensor:
        return super().start(n, self.stream(seed))

    def enlarging(self, small: Tensor, seed: int = 0, first: int = 0, noise: Tensor | None = None) -> Tensor:
        """The last stage's input (n, K, h, w) for images (n, C, h, w) of the base, numbers first, first + 1, ...

        Args:
            noise: (n, C, h, w) instead of that of the seed, see `hint_noise`.
        """
        if self.base.scaling != self.scaling:
            small = self.scaling.encode(self.base.scaling.decode(small))
        noise = self.hint_noise(small, seed, first) if noise is None else noise
        return self.hint.augmented(small, self.augment, lambda like: noise.to(like))

    def hint_noise(self, small: Tensor, seed: int = 0, first: int = 0) -> Tensor:
        """The noise z ~ N(0, I) on the input of the last stage, (n, C, h, w) as the images of the base."""
        return ImageDraws(seed_of(self.stream(seed), HINTS), range(first, first + len(small)))(small)

    def reduced(self, x0: Tensor) -> Tensor:
        """The images (n, C, h, w) of the base that images x0 (n, C, H, W) are enlargements of: the means of blocks."""
        small = F.avg_pool2d(x0, self.hint.factor)
        if self.base.scaling == self.scaling:
            return small
        return self.base.scaling.encode(self.scaling.decode(small))

    def reduced_mask(self, mask: Tensor) -> Tensor:
        """The pixels (n, C, h, w) bool of the base of which any pixel is marked in a mask (n, C, H, W) bool."""
        return F.max_pool2d(mask.float(), self.hint.factor).bool()

    def frames(
        self,
        n: int,
        y: Tensor | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        first: int = 0,
        image: Tensor | None = None,
        same: bool = False,
    ) -> Iterator[Frame]:
        """The walk of the last stage, after complete walks of the others; see `Pipeline.frames`.

        Args:
            sampler, guidance: of the last stage.
            image: the input of the base, if it has a hint.
        """
        y = self.in_turn(n) if y is None and image is None else y
        small = self.base.sample(n, y, seed, batch_size=n, first=first, image=image, same=same)
        return self._enlarged(small, y, seed, sampler, guidance, first, same)

    def walks(
        self,
        n: int,
        y: Tensor | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        first: int = 0,
        image: Tensor | None = None,
        same: bool = False,
    ) -> Iterator[Frame]:
        y = self.in_turn(n) if y is None and image is None else y
        for frame in self.base.walks(n, y, seed, first=first, image=image, same=same):
            small = frame  # of latents: only the last one is decoded
            yield frame
        yield from self._enlarged(small.x.cpu(), y, seed, sampler, guidance, first, same)

    @torch.no_grad()
    def _enlarged(
        self,
        small: Tensor,
        y: Tensor | None,
        seed: int,
        sampler: Sampler | None,
        guidance: Guidance | None,
        first: int,
        same: bool,
    ) -> Iterator[Frame]:
        """The walk of the last stage from images of the base."""
        heard = self.denoiser.conditional or (guidance or self.guidance).num_classes
        its = self.enlarging(small, seed, first)
        y, seed = y if heard else None, self.stream(seed)
        yield from super().frames(len(small), y, seed, sampler, guidance, first, its, same)


def parts(pipeline: Pipeline) -> dict[str, Any]:
    """The fields of a pipeline, without those of a cascade."""
    return {f.name: getattr(pipeline, f.name) for f in fields(Pipeline)}


def facts(pipeline: Pipeline) -> str:
    """The conditions of a model in words."""
    if pipeline.tokens:
        return f"text of {pipeline.tokens.length} tokens, {pipeline.tokens.size} different ones"
    width = f"contexts of {pipeline.context_dim}" if pipeline.context_dim else f"{pipeline.num_classes or 'no'} classes"
    names = ", ".join(pipeline.class_names)
    return f"{width} ({names[:60]}{'...' if len(names) > 60 else ''})" if names else width


def strengths(augment: float | str | Sequence[float], stages: int) -> list[float]:
    """The strengths of the noise of each stage after the base, from one number, several, or their text.

    Raises:
        ValueError: not numbers, or neither one nor one per stage.
    """
    several = augment.split(",") if isinstance(augment, str) else augment
    several = [several] if isinstance(several, (int, float)) else list(several)
    try:
        found = [float(value) for value in several]
    except ValueError:
        found = []
    if len(found) not in (1, stages):
        raise ValueError(f"augment: wanted one number or one per later stage ({stages}), e.g. 0.3; got {augment!r}")
    return found * stages if len(found) == 1 else found
