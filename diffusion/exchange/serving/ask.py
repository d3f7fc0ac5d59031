"""A visitor's request: checked against limits and the model, then the keywords of `sample` and a command line."""

import inspect
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusion.samplers as all_samplers
from diffusion.denoiser.hints import Paired
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Interval
from diffusion.samplers import Sampler

SEEDS = 2**32 - 1
SCALES = 20.0  # largest guidance scale
AMOUNTS = 4.0  # largest amount of a class in a mix
LETTERS = 500  # of a prompt


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        pictures: of one request.
        film: pictures of a film.
        steps: of a sampler.
        edits: results of an edit.
        seconds: of sampling, after which a request is ended.
    """

    pictures: int = 64
    film: int = 16
    steps: int = 1000
    edits: int = 8
    seconds: float = 120.0

    @classmethod
    def of(cls, pictures: int, steps: int, seconds: float) -> "Limits":
        """Limits from those of pictures, steps and time.

        Raises:
            ValueError: one of them is below 1.
        """
        if min(pictures, steps, seconds) < 1:
            raise ValueError(
                f"limits: pictures, steps and seconds must be at least 1, got {pictures}, {steps}, {seconds}"
            )
        return cls(pictures, min(cls.film, pictures), steps, min(cls.edits, pictures), seconds)


def samplers() -> list[str]:
    """The names of all samplers."""
    kinds = (getattr(all_samplers, name) for name in all_samplers.__all__)
    return sorted(
        kind.__name__
        for kind in kinds
        if inspect.isclass(kind) and issubclass(kind, Sampler) and not inspect.isabstract(kind)
    )


def scale_of(pipeline: Pipeline) -> float | None:
    """The guidance scale of a model; None if its guidance has none, or if it has no condition to guide by."""
    if not pipeline.denoiser.conditional:
        return None
    guidance = pipeline.guidance.guidance if isinstance(pipeline.guidance, Interval) else pipeline.guidance
    return float(getattr(guidance, "scale", 1.0))


def takes_pictures(pipeline: Pipeline) -> str:
    """Why a model cannot edit uploaded pictures; empty if it can."""
    if pipeline.scaling.dtype != "uint8" or pipeline.shape[0] not in (1, 3, 4):
        return f"this model's images are {pipeline.shape[0]} channels of {pipeline.scaling.dtype}, not 8-bit pictures"
    return "this model needs an input image of its own; sample it instead" if pipeline.hint else ""


def brief(value: Any) -> str:
    """A value in an error message, in at most 40 characters."""
    large = isinstance(value, int) and value.bit_length() > 256  # Python refuses to write the largest ones
    text = value[:41] if isinstance(value, str) else "a huge number" if large else repr(value)[:41]
    return text if len(text) < 41 else f"{text[:37]}..."


def number(name: str, value: Any, low: float, high: float) -> float:
    """A number in [low, high].

    Raises:
        ValueError: it is something else.
    """
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not low <= value <= high:  # false for NaN
        raise ValueError(f"{name}: wanted a number from {low:,} to {high:,}, got {brief(value)}")
    return float(value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number in [low, high].

    Raises:
        ValueError: it is something else.
    """
    if number(name, value, low, high) != int(value):
        raise ValueError(f"{name}: wanted a whole number from {low:,} to {high:,}, got {brief(value)}")
    return int(value)


@dataclass(frozen=True)
class Ask:
    """A request as it came from a visitor, unchecked.

    Attributes:
        model: a name of the shelf.
        n: pictures.
        labels: classes by name or number, in turn; () is all of them.
        mix: amounts of classes by name, for a model that is conditioned on vectors; {} is none.
        sampler: name of a sampler; "" is the run's own.
        steps: of the sampler; None is the run's.
        scale: of the guidance; None is the run's.
        seed: picture k is a function of (seed, k) and its condition.
        image: file of the input image, for a model that takes one.
        prompt, negative: what pictures show and do not show, for a model that reads text; "" is none.
    """

    model: str
    n: int = 16
    labels: Sequence[str] = ()
    mix: Mapping[str, float] = field(default_factory=dict)
    sampler: str = ""
    steps: int | None = None
    scale: float | None = None
    seed: int = 0
    image: Path | None = None
    prompt: str = ""
    negative: str = ""

    def words(self, pipeline: Pipeline, limits: Limits, most: int) -> dict[str, Any]:
        """The keywords of `generation.sample`, only those that differ from the run's own, and always n and seed.

        Args:
            most: number of pictures allowed.
        Raises:
            ValueError: a value out of its range, or one that the model does not take.
        """
        found: dict[str, Any] = {"n": whole("pictures", self.n, 1, most)}
        if len(self.labels) > limits.pictures:
            raise ValueError(f"classes: at most {limits.pictures}, got {len(self.labels)}")
        if self.mix and self.labels:
            raise ValueError("classes and a mix exclude each other; choose one of the two")
        if self.labels:
            known = [pipeline.number(brief(label)) for label in self.labels]
            found["labels"] = ",".join(called(pipeline, k) for k in known)
        if self.mix:
            found["context"] = [self.mixed(pipeline)]
        for name, text in (("prompt", self.prompt), ("negative", self.negative)):
            if text:
                found[name] = prompted(pipeline, name, text)
        if self.sampler:
            if self.sampler not in samplers():
                raise ValueError(f"sampler: there is no {brief(self.sampler)}; choose one of the list")
            found["sampler"] = self.sampler
        if self.steps is not None:
            found["steps"] = whole("steps", self.steps, 1, limits.steps)
        if self.scale is not None and scale_of(pipeline) != number("guidance", self.scale, 0, SCALES):
            found["scale"] = float(self.scale)
        if pipeline.hint is not None:
            if isinstance(pipeline.hint, Paired) or pipeline.scaling.dtype != "uint8":
                raise ValueError("this model takes arrays as input images; use the command line: diffusion sample")
            if self.image is None:
                raise ValueError("this model makes pictures from an input image; upload one")
            found["image"] = str(self.image)
        return found | {"seed": whole("seed", self.seed, 0, SEEDS)}

    def mixed(self, pipeline: Pipeline) -> str:
        """The mix as text, "hero=1,food=0.6"; all amounts are zero in "hero=0"."""
        if not pipeline.context_dim:
            raise ValueError("mix: this model is conditioned on single classes; choose classes instead")
        if len(self.mix) > pipeline.context_dim:
            raise ValueError(f"mix: this model has {pipeline.context_dim} classes, got {len(self.mix)}")
        parts = {
            called(pipeline, pipeline.number(brief(name))): number(f"mix, {brief(name)}", amount, -AMOUNTS, AMOUNTS)
            for name, amount in self.mix.items()
        }
        kept = {name: amount for name, amount in parts.items() if amount} or {next(iter(parts)): 0.0}
        return ",".join(f"{name}={amount:.12g}" for name, amount in kept.items())


def prompted(pipeline: Pipeline, name: str, text: Any) -> str:
    """A prompt on one line.

    Raises:
        ValueError: it is no text or too long, or the model reads none.
    """
    if pipeline.tokens is None:
        raise ValueError(f"{name}: this model was trained without captions; choose classes instead")
    if not isinstance(text, str) or len(text) > LETTERS:
        raise ValueError(f"{name}: wanted a text of at most {LETTERS} characters, got {brief(text)}")
    return " ".join(text.encode(errors="replace").decode().split())


def called(pipeline: Pipeline, k: int) -> str:
    """Class k as it can be typed: its name if that is read as this class again, else its number."""
    name = pipeline.class_names[k] if k < len(pipeline.class_names) else ""
    plain = name and name == name.strip() and not set(name) & set(",=-") and not name.endswith(".npy")
    return name if plain and pipeline.number(name) == k else str(k)


def command(verb: str, model: str, words: Mapping[str, Any], out: str) -> str:
    """The command line with these keywords, to be typed in the shelf's base.

    Args:
        words: keywords of `generation.sample` and of the verb; files are given by their names alone.
    """
    typed = ["diffusion", *verb.split(), model if not model.startswith("-") else f"./{model}"]
    for name, value in words.items():
        for one in value if isinstance(value, list) else [value]:
            text = one.name if isinstance(one, Path) else Path(one).name if name == "image" else str(one)
            typed += [f"--{name}", text] if not text.startswith("-") else [f"--{name}={text}"]
    return shlex.join([*typed, "--out", out])
