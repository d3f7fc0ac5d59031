"""Guidance on the command line: the run's own, changed by options, or another by name."""

import inspect
from argparse import Namespace
from importlib import import_module
from types import NoneType
from typing import Literal, get_args, get_origin

from diffusion.guidance import AutoGuidance, ClassifierFree, ClassifierGuidance, Guidance, Interval, Plain, Steer
from diffusion.support.specs import build, named
from diffusion.training.systems import Diffusion

OPTIONS = ("scale", "w", "rescale", "guide", "classifier")
BY = {"guide": AutoGuidance, "classifier": ClassifierGuidance}  # what these options mean by themselves


def guidance_options(parser, usual: str = "the run's") -> None:
    """The options of every command that samples, and what there is without them."""
    add = parser.add_argument
    add("--guidance", help=f"class name or import path, its arguments being options too (default: {usual})")
    add("--scale", type=float, help=f"guidance; 1 is off, 0 ignores the label (default: {usual})")
    add("--w", type=float, help="guidance as papers count it, 0 is off: scale = 1 + w")
    add("--interval", metavar="LOW,HIGH", help="guide only where LOW < sigma / alpha <= HIGH, e.g. 0.2,5")
    add("--rescale", type=float, help="share of the contrast to take back, 0 .. 1, e.g. 0.7")
    add("--guide", metavar="RUN", help="autoguidance by a worse model: run directory or checkpoint")
    add("--classifier", metavar="RUN", help="classifier guidance: a NoisyClassifier's run directory or checkpoint")


def choose_guidance(model: Diffusion, args: Namespace, rest: list[str]) -> tuple[Guidance, list[str]]:
    """The guidance that the options ask for, and the words that are not its own.

    Raises:
        ValueError: options that contradict each other, or that this model or this guidance cannot follow.
    """
    given = {k: v for k in OPTIONS if (v := getattr(args, k, None)) is not None}
    limits = interval(args.interval) if getattr(args, "interval", None) else {}
    run = model.hparams["guidance"]  # not model.guidance, which a classifier may have taken the place of
    name, within = getattr(args, "guidance", None), {}
    if run["class_path"].endswith(".Interval") and not (name or set(BY) & set(given)):
        within = {k: v for k, v in run["init_args"].items() if k != "guidance"}
        run = run["init_args"]["guidance"]
    kind, init = kind_of(given, name, run)
    own, rest = arguments(kind, rest)
    if repeated := sorted(set(own) & set(given)):
        raise ValueError(f"--{repeated[0]} is given twice")
    given |= own
    if not (given or limits or name):
        return model.guidance, rest
    guidance = with_options(kind, init, given, model)
    if limits and kind is Plain:
        raise ValueError("--interval: there is no guidance to limit; give --scale too")
    if limits or within:
        guidance = Interval(guidance, **(limits or within))
    if reason := guidance.refuse(model.denoiser.schedule, model.shape, model.class_names):
        option = next((f"--{k} {given[k]}" for k in BY if k in given), "--guidance")
        raise ValueError(f"{option}: {reason}")
    if guidance.num_classes and not model.denoiser.conditional:
        model.guidance = guidance  # which gives the model its labels
    return guidance, rest


def scaled(model: Diffusion, scale: float | None) -> Guidance:
    """The run's guidance, with a scale if one is given."""
    return choose_guidance(model, Namespace(scale=scale), [])[0]


def kind_of(given: dict, name: str | None, run: dict) -> tuple[type, dict]:
    """The class of guidance that is asked for, and the arguments that the run has for it."""
    if "guide" in given and "classifier" in given:
        raise ValueError("--guide and --classifier: give one of the two")
    if name:
        return find(name), {}
    for option, kind in BY.items():
        if option in given:
            return kind, {}
    kind = type(build(run))
    return (ClassifierFree, {}) if kind is Plain and {"scale", "w"} & set(given) else (kind, run["init_args"])


def find(name: str) -> type:
    """A Guidance by short name or import path, or a CondFn by import path."""
    module, _, last = name.rpartition(".")
    try:
        found = getattr(import_module(module), last) if module else None
    except (ImportError, AttributeError):
        found = None  # `named` says so
    if inspect.isclass(found) and not issubclass(found, Guidance) and "__call__" in dir(found):
        if inspect.isabstract(found):
            raise ValueError(f"{name} cannot be made: it has no {', '.join(sorted(found.__abstractmethods__))}")
        return found
    return named(name, Guidance, "diffusion.guidance")


def parameters(kind: type) -> dict[str, type]:
    """What can be said of a class on the command line, by name: a CondFn's own arguments and those of Steer."""
    taken = dict(inspect.signature(kind).parameters)
    if not issubclass(kind, Guidance):
        taken = {k: v for k, v in inspect.signature(Steer).parameters.items() if k != "fn"} | taken
    return {k: v.annotation for k, v in taken.items() if k not in ("guidance", "hash")}


def arguments(kind: type, words: list[str]) -> tuple[dict, list[str]]:
    """The options among the words that are arguments of a class, and the other words."""
    words = [w for word in words for w in (word.split("=", 1) if word.startswith("--") else [word])]
    taken, own, rest = parameters(kind), {}, []
    while words:
        word = words.pop(0)
        if word.startswith("--") and word[2:] in taken:
            if not words:
                raise ValueError(f"{word} needs a value")
            own[word[2:]] = convert(word, words.pop(0), taken[word[2:]])
        else:
            rest.append(word)
    return own, rest


def convert(option: str, text: str, kind: type) -> object:
    """A command-line word as an argument's annotated type; of a union, the first that a word can be."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(f"{option}: wanted one of {', '.join(get_args(kind))}, got {text!r}")
        return text
    if kinds := [k for k in get_args(kind) if k is not NoneType]:
        kind = str if str in kinds else kinds[0]
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{option}: wanted true or false, got {text!r}")
        return text.lower() in ("true", "1")
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError as error:
        raise ValueError(f"{option}: wanted {kind.__name__}, got {text!r}") from error


def with_options(kind: type, init: dict, given: dict, model: Diffusion) -> Guidance:
    """An object of the class, with the run's arguments changed by the options."""
    taken = parameters(kind)
    if "scale" in given and "w" in given:
        raise ValueError(f"--scale and --w: scale = 1 + w, so give one of the two; got {given['scale']}, {given['w']}")
    if "w" in given and "scale" in taken:
        given = {k: v for k, v in given.items() if k != "w"} | {"scale": 1 + given["w"]}
    if unknown := [k for k in given if k not in taken]:
        has = ", ".join(f"--{k}" for k in taken) or "none"
        raise ValueError(f"--{unknown[0]}: {kind.__name__} takes no such option; it takes {has}")
    if issubclass(kind, ClassifierFree) and not model.denoiser.conditional:
        raise ValueError("--scale: this model was trained without labels, so there is nothing to guide by; "
                         "a --classifier would know them")  # fmt: skip
    mine = inspect.signature(kind).parameters
    around = {"guidance": build(model.hparams["guidance"])}  # of a guidance of another one
    try:
        if issubclass(kind, Guidance):
            guidance = kind(**((around if "guidance" in mine else {}) | build(init) | given))
        else:
            fn = kind(**{k: v for k, v in given.items() if k in mine})
            guidance = Steer(fn, **around, **{k: v for k, v in given.items() if k not in mine})
    except TypeError as error:
        raise ValueError(f"--guidance {kind.__name__}: {error}") from error
    return Plain() if type(guidance) is ClassifierFree and guidance.scale == 1 else guidance


def interval(text: str) -> dict[str, float]:
    """ "0.2,5" as the ends of an interval."""
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise ValueError(f"--interval: wanted LOW,HIGH in sigma / alpha, as 0.2,5, got {text!r}") from error
    return {"low": low, "high": high}
