"""Sampling choices by name and value: the run's sampler and guidance, modified or replaced."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from diffusion.generation.cascade import Cascade
from diffusion.generation.conditioning import PromptWarning
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import (
    AutoGuidance,
    ClassifierFree,
    ClassifierGuidance,
    ClipPrompt,
    Guidance,
    Interval,
    Plain,
    Steer,
)
from diffusion.guidance.clip import CROPS
from diffusion.samplers import Sampler
from diffusion.support.specs import build, named, spec, suggest

BY = {"guide": AutoGuidance, "classifier": ClassifierGuidance}  # the guidance that each of these choices implies


class UnknownArgument(ValueError):
    """A name that is not an argument of the classes in question.

    Args:
        name: the unknown name.
        kinds: the classes in words, e.g. "sampler DDIM".
        known: the names that they accept.
    """

    def __init__(self, name: str, kinds: str, known: list[str]) -> None:
        super().__init__(f"unknown argument {name!r} ({kinds}){suggest(name, known) or f'; there are: {known}'}")
        self.name, self.kinds, self.known = name, kinds, known


@dataclass(frozen=True)
class Choices:
    """A sampler and a guidance, as changes to those of the run.

    Attributes:
        sampler: object, class name or import path; None is the run's.
        steps: sampling steps; None is the run's.
        guidance: object, class name or import path, of a `CondFn` too; None is the run's.
        scale: of the guidance; 1 is off, 0 ignores the label.
        w: the same in the convention of many papers, scale = 1 + w.
        rescale: fraction, in [0, 1], of the added contrast that is removed.
        negative: what pictures should not show, for classifier-free guidance of a model of text.
        interval: apply guidance only where low < sigma / alpha <= high; numbers or "low,high".
        guide: run or checkpoint of a worse model, for autoguidance.
        classifier: run or checkpoint of a classifier of noisy images, for classifier guidance.
        clip_prompt: what pictures show, by CLIP guidance of the predicted images, on top of the guidance.
        clip: folder of the CLIP model for it.
        clip_scale: of the CLIP guidance; 0 is off, 1 (default) is CLIP's own probability.
        augment: noise on the input of a cascade's later stages, one strength or one per stage; None is the cascade's.
            All other choices are of its base.
        arguments: further arguments of the sampler and the guidance by name; text is converted to their types.
    """

    sampler: str | Sampler | None = None
    steps: int | None = None
    guidance: str | Guidance | None = None
    scale: float | None = None
    w: float | None = None
    rescale: float | None = None
    negative: str | None = None
    interval: str | tuple[float, float] | None = None
    guide: str | None = None
    classifier: str | None = None
    clip_prompt: str | None = None
    clip: str | None = None
    clip_scale: float | None = None
    augment: float | str | Sequence[float] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline with the chosen sampler and guidance; see `resolve`."""
        if isinstance(pipeline, Cascade):
            chosen = replace(pipeline, base=replace(self, augment=None).apply(pipeline.base))
            return chosen if self.augment is None else chosen.with_augment(self.augment)
        if self.augment is not None:
            raise ValueError("augment: there is no later stage whose input it could change; add one with then")
        sampler, guidance = self.resolve(pipeline)
        return replace(pipeline, sampler=sampler, guidance=guidance)

    def resolve(self, pipeline: Pipeline) -> tuple[Sampler, Guidance]:
        """The sampler and the guidance for a model, which is not modified.

        Raises:
            UnknownArgument: neither class has an argument of that name.
            ValueError: choices that contradict each other, or that the model or the guidance does not support.
        """
        guidance, rest = self._guidance(pipeline)
        if self.negative and pipeline.tokens and (hint := pipeline.tokens.hint(self.negative)):
            warnings.warn(f"negative {hint}", PromptWarning, stacklevel=2)
        guidance, rest = self._clip(pipeline, guidance, rest)
        return self._sampler(pipeline, rest), guidance

    def _clip(self, pipeline: Pipeline, guidance: Guidance, rest: Mapping[str, Any]) -> tuple[Guidance, dict]:
        """The guidance, steered by CLIP if so chosen; and the arguments that this does not take."""
        if self.clip_prompt is None:
            if self.clip is not None or self.clip_scale is not None:
                raise ValueError("clip: say what the pictures show, with clip_prompt (--clip-prompt TEXT)")
            return guidance, dict(rest)
        if self.clip is None:
            raise ValueError("clip_prompt: give the folder of a CLIP model with clip (--clip FOLDER)")
        if not pipeline.scaling.bounded or pipeline.shape[0] not in (1, 3):
            raise ValueError("clip_prompt: CLIP sees grey or RGB images of 8 or 16 bits, and this model makes others")
        own, rest = taken(rest, {"crops": int, "through": annotations(Steer)["through"], "std": float})
        fn = ClipPrompt(self.clip_prompt, self.clip, own.pop("crops", CROPS))
        if fn.hint:
            warnings.warn(f"clip_{fn.hint}", PromptWarning, stacklevel=2)
        return Steer(fn, 1.0 if self.clip_scale is None else self.clip_scale, guidance=guidance, **own), rest

    # --- sampler ----------------------------------------------------------------------------------------

    def _sampler(self, pipeline: Pipeline, arguments: Mapping[str, Any]) -> Sampler:
        """The run's sampler or another one, with updated arguments."""
        wanted = {} if self.steps is None else {"steps": self.steps}
        if isinstance(self.sampler, Sampler):
            known = spec(self.sampler)
        elif self.sampler:
            kind = named(self.sampler, Sampler, "diffusion.samplers")
            known = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": {}}
        else:
            known = spec(pipeline.sampler)
        kind = type(self.sampler or pipeline.sampler) if not isinstance(self.sampler, str) else kind
        parameters = annotations(kind)
        own, unknown = taken(arguments, parameters)
        if unknown:
            raise UnknownArgument(next(iter(unknown)), f"sampler {kind.__name__}", list(parameters))
        return build(known | {"init_args": known["init_args"] | wanted | own})

    # --- guidance ---------------------------------------------------------------------------------------

    def _guidance(self, pipeline: Pipeline) -> tuple[Guidance, Mapping[str, Any]]:
        """The run's guidance or another one, with updated arguments; and the arguments that it does not take."""
        if isinstance(self.guidance, Guidance):
            return self.guidance, self.arguments
        names = ("scale", "w", "rescale", "negative", "guide", "classifier")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        limits = ends(self.interval) if self.interval else {}
        run, within = spec(pipeline.guidance), {}
        if run["class_path"].endswith(".Interval") and not (self.guidance or BY.keys() & given.keys()):
            within = {name: value for name, value in run["init_args"].items() if name != "guidance"}
            run = run["init_args"]["guidance"]
        kind, init = self._guidance_kind(given, run)
        own, rest = taken(self.arguments, parameters(kind))
        given |= own
        if not (given or limits or self.guidance):
            return pipeline.guidance, rest
        guidance = made(kind, init, given, pipeline)
        if limits and kind is Plain:
            raise ValueError("interval: there is no guidance to limit; give a scale as well")
        if limits or within:
            guidance = Interval(guidance, **(limits or within))
        return guidance, rest

    def _guidance_kind(self, given: Mapping[str, Any], run: dict) -> tuple[type, dict]:
        """The class of guidance, and the run's arguments for it."""
        if "guide" in given and "classifier" in given:
            raise ValueError("guide and classifier exclude each other; give one of them")
        if self.guidance:
            return find(self.guidance), {}
        for name, kind in BY.items():
            if name in given:
                return kind, {}
        kind = type(build(run))
        return (ClassifierFree, {}) if kind is Plain and {"scale", "w"} & given.keys() else (kind, run["init_args"])


def find(name: str) -> type:
    """A Guidance by short name or import path, or a CondFn by import path.

    Raises:
        ValueError: there is no such class, or it is abstract.
    """
    module, _, last = name.rpartition(".")
    try:
        found = getattr(import_module(module), last) if module else None
    except (ImportError, AttributeError):
        found = None  # `named` raises the error
    if inspect.isclass(found) and not issubclass(found, Guidance) and "__call__" in dir(found):
        if inspect.isabstract(found):
            raise ValueError(f"{name} is abstract: implement {', '.join(sorted(found.__abstractmethods__))}")
        return found
    return named(name, Guidance, "diffusion.guidance")


def parameters(kind: type) -> dict[str, Any]:
    """The arguments of a guidance that can be set by name; for a CondFn its own and those of Steer."""
    known = annotations(kind)
    if not issubclass(kind, Guidance):
        known = {name: a for name, a in annotations(Steer).items() if name != "fn"} | known
    return {name: a for name, a in known.items() if name not in ("guidance", "hash")}


def made(kind: type, init: dict, given: Mapping[str, Any], pipeline: Pipeline) -> Guidance:
    """An object of the class, with the run's arguments `init` overridden by the given ones."""
    known = parameters(kind)
    if "scale" in given and "w" in given:
        raise ValueError(f"scale and w: scale = 1 + w, so give one of the two; got {given['scale']} and {given['w']}")
    if "w" in given and "scale" in known:
        given = {name: value for name, value in given.items() if name != "w"} | {"scale": 1 + given["w"]}
    if unknown := [name for name in given if name not in known]:
        has = ", ".join(known) or "none"
        raise ValueError(f"{unknown[0]}: {kind.__name__} takes no such argument; it takes: {has}")
    if issubclass(kind, ClassifierFree) and not pipeline.denoiser.conditional:
        raise ValueError(
            "scale: this model was trained without labels, so there is no label to guide by; use a classifier"
        )
    own = annotations(kind)
    around = {"guidance": pipeline.guidance}  # for a guidance that wraps another one
    try:
        if issubclass(kind, Guidance):
            guidance = kind(**((around if "guidance" in own else {}) | build(init) | given))
        else:
            fn = kind(**{name: value for name, value in given.items() if name in own})
            guidance = Steer(fn, **around, **{name: value for name, value in given.items() if name not in own})
    except TypeError as error:
        raise ValueError(f"guidance {kind.__name__}: {error}") from error
    return Plain() if type(guidance) is ClassifierFree and guidance.scale == 1 else guidance


def ends(interval: str | tuple[float, float]) -> dict[str, float]:
    """The ends of an interval, numbers or text such as "0.2,5"."""
    try:
        low, high = interval.split(",") if isinstance(interval, str) else interval
        return {"low": converted("low", low, float), "high": converted("high", high, float)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"interval: wanted low,high in sigma / alpha, e.g. 0.2,5; got {interval!r}") from error


def annotations(kind: type) -> dict[str, Any]:
    """The constructor arguments of a class with their types."""
    return {name: p.annotation for name, p in inspect.signature(kind).parameters.items()}


def converted(name: str, value: Any, annotation: Any) -> Any:
    """A value as an argument's type: text is converted, for a union to its first type; other values are unchanged.

    Raises:
        ValueError: the text is not of that type.
    """
    if not isinstance(value, str):
        return value
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise ValueError(f"{name}: wanted one of {', '.join(get_args(annotation))}, got {value!r}")
        return value
    if kinds := [kind for kind in get_args(annotation) if kind is not NoneType]:
        annotation = str if str in kinds else kinds[0]
    if annotation is bool:
        if value.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name}: wanted true or false, got {value!r}")
        return value.lower() in ("true", "1")
    try:
        return annotation(value) if annotation in (int, float) else value
    except ValueError as error:
        raise ValueError(f"{name}: wanted {annotation.__name__}, got {value!r}") from error


def taken(given: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The given arguments that are among the known ones, converted to their types; and the others."""
    own = {name: converted(name, value, known[name]) for name, value in given.items() if name in known}
    return own, {name: value for name, value in given.items() if name not in known}
