"""A model as plain numbers, for the page's samplers; and which models the page cannot sample, and why."""

import json
from typing import Any

import torch

from diffusion.denoiser import Denoiser
from diffusion.exchange.exporting.facts import alone
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Clamp, ClassifierFree, Guidance, Interval, Plain, Unbounded
from diffusion.noise.level import Level
from diffusion.pictures.bands import colours
from diffusion.samplers import DDIM, DDPM, DPMSolver, Euler, EulerAncestral, Heun, Sampler
from diffusion.support.pretrained import Pretrained

STEPS = (5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 250, 500, 1000)
FEATURES = 64  # of a context vector; each has a slider
FEW = 9  # pictures by default, if the classes do not give a number
LEAST = 16  # numbers of a picture: torch draws fewer in another way
PLAIN = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def described(pipeline: Pipeline) -> dict[str, Any]:
    """What the page's programs know of a model, in plain types; None stands for no limit.

    Raises:
        ValueError: the page cannot sample this model; the message gives the reason and, if there is one, the remedy.
    """
    denoiser, sampler = pipeline.denoiser, pipeline.sampler
    if reason := refusal(pipeline):
        raise ValueError(f"a page cannot sample this model: {reason}")
    kinds = denoiser.num_classes or denoiser.context_dim
    names = list(pipeline.class_names)
    named = len(names) == kinds > 0
    what = "feature" if denoiser.context_dim else "class"
    levels, walks = tables(denoiser, sampler)
    bands, palette = shown(pipeline)
    return {
        "shape": list(pipeline.shape),
        "kinds": kinds,
        "context": bool(denoiser.context_dim),
        "text": None if denoiser.tokens is None else denoiser.tokens.plain,
        "named": named,
        "names": names if named else [f"{what} {k}" if denoiser.context_dim else str(k) for k in range(kinds)],
        "keys": [name if named and set(name) <= PLAIN else str(k) for k, name in enumerate(names or range(kinds))],
        "number": kinds if 2 <= kinds <= 16 and (named or not denoiser.context_dim) else FEW,
        "selfCondition": denoiser.self_condition,
        "priorStd": float(denoiser.schedule.prior_std),
        "clamp": [pipeline.clamp.low, pipeline.clamp.high] if type(pipeline.clamp) is Clamp else [None, None],
        "guidance": guidance_of(pipeline.guidance),
        "samplers": samplers_of(sampler),
        "sampler": "DDIM" if type(sampler) in (Euler, EulerAncestral) else type(sampler).__name__,
        "steps": sampler.steps,
        "bands": bands,
        "colours": palette,
        "levels": levels,
        "walks": walks,
    }


def as_json(value: Any) -> str:
    """JSON that may stand in a script element and in HTML: without <, >, & and the separators of lines."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# --- what does not fit ------------------------------------------------------------------------------------


def refusal(pipeline: Pipeline) -> str:
    """Why the page cannot sample a model; "" if it can."""
    denoiser, guidance, sampler = pipeline.denoiser, pipeline.guidance, pipeline.sampler
    if denoiser.image_channels or pipeline.hint is not None:
        return "its network is conditioned on an image, and the page has no place to give one; export to .onnx"
    if isinstance(denoiser.tokens, Pretrained):
        return "its text encoder is a pretrained model in another folder, which is not exported; use diffusion serve"
    if denoiser.context_dim > FEATURES:
        return f"the page has a slider per feature, for at most {FEATURES}; its context has {denoiser.context_dim}"
    if reason := alone(guidance):
        return reason
    inner = guidance.guidance if type(guidance) is Interval else guidance
    if type(inner) not in (Plain, ClassifierFree):
        return f"{type(inner).__name__}: the page has classifier-free guidance; export with --guidance ClassifierFree"
    if type(pipeline.clamp) not in (Clamp, Unbounded):
        return f"{type(pipeline.clamp).__name__}: the page limits x_0 to an interval or not at all"
    if torch.Size(pipeline.shape).numel() < LEAST:
        return f"a picture has {torch.Size(pipeline.shape).numel()} numbers, and the page's noise needs {LEAST}"
    return sampler_refusal(sampler, denoiser)


def sampler_refusal(sampler: Sampler, denoiser: Denoiser) -> str:
    """Why the page has no such sampler; "" if it has."""
    name = type(sampler).__name__
    if type(sampler) not in (DDIM, Euler, EulerAncestral, DDPM, Heun, DPMSolver):
        return f"{name}: the page has DDIM, Euler, EulerAncestral, DDPM, Heun and DPMSolver; export with --sampler DDIM"
    if type(sampler) is Heun and sampler.churn:
        return "Heun with churn: the page's has none; export with --sampler Heun --churn 0"
    if type(sampler) is DPMSolver and sampler.order > 2:
        return "DPMSolver of order 3: the page's has order 2; export with --sampler DPMSolver --order 2"
    if type(sampler) is DDPM and sampler.variance == "learned" and not denoiser.learn_variance:
        return "DDPM: its network outputs no variance; export with --sampler DDPM --variance small"
    return ""


# --- numbers ----------------------------------------------------------------------------------------------


def tables(denoiser: Denoiser, sampler: Sampler) -> tuple[list[list[float]], dict[str, list[int]]]:
    """The levels [clock, alpha, sigma, c_in, p, q], x_0 = p x + q net(c_in x, clock); and walks by number of steps.

    A walk is the numbers of its levels, noisiest first; the last one is clean.

    Raises:
        ValueError: the target is not linear in the network's output, or a number is not finite.
    """
    numbers: dict[tuple[float, ...], int] = {}
    walks = {}
    most = denoiser.schedule.T or max(STEPS)
    for n in sorted({*(n for n in STEPS if n <= most), sampler.steps}):
        levels = DDIM(n, grid=sampler.grid).levels(denoiser.schedule)
        rows = [*(row(denoiser, t) for t in levels[:-1]), (0.0, 1.0, 0.0, 1.0, 1.0, 0.0)]
        walks[str(n)] = [numbers.setdefault(r, len(numbers)) for r in rows]
    return [list(r) for r in numbers], walks


def row(denoiser: Denoiser, t: Level) -> tuple[float, ...]:
    """A level as the page knows it."""
    target, one = denoiser.target, torch.ones((), dtype=torch.float64)
    p, q = target.x0(one, 0 * one, t), target.x0(0 * one, one, t)
    found = tuple(float(v) for v in (denoiser.schedule.clock(t.t), t.alpha, t.sigma, target.c_in(t), p, q))
    if not torch.tensor(found).isfinite().all() or not torch.isclose(target.x0(2 * one, 3 * one, t), 2 * p + 3 * q):
        raise ValueError(
            f"a page cannot sample this model: {type(target).__name__} at the level {float(t.t):g} is not linear in "
            "the network's output"
        )
    return found


def guidance_of(guidance: Guidance) -> dict[str, Any]:
    """The guidance: scale, rescale, negative prompt, and the interval of sigma / alpha; words are its other options."""
    within = type(guidance) is Interval
    inner = guidance.guidance if within else guidance
    rescale = getattr(inner, "rescale", 0.0)
    words = [f"--rescale {rescale:g}"] if rescale else []
    low, high = (guidance.low, guidance.high) if within else (-1.0, None)
    if within:
        words.append(f"--interval {low:g},{high:g}")
    high = None if high in (None, float("inf")) else high
    negative = getattr(inner, "negative", "")
    return {"scale": inner.scale, "rescale": rescale, "negative": negative, "low": low, "high": high, "words": words}


def samplers_of(sampler: Sampler) -> dict[str, dict[str, Any]]:
    """The page's samplers: label, options of its step, and words, its options on the command line.

    The arguments are those of the exported sampler where it is of that kind, else the defaults.
    """
    eta = sampler.eta if type(sampler) in (DDIM, EulerAncestral) else 0.0
    ddpm, heun, solver = (sampler if type(sampler) is kind else kind() for kind in (DDPM, Heun, DPMSolver))
    ratio = None if heun.max_ratio == float("inf") else heun.max_ratio
    found = {
        "DDIM": ("DDIM (Euler)", {"eta": eta}, []),
        "DPMSolver": (
            "DPM-Solver++" + (" SDE" if solver.sde else " 2M" if solver.order == 2 else ""),
            {"order": solver.order, "sde": solver.sde},
            changed(solver, "order", "sde"),
        ),
        "Heun": ("Heun", {"maxRatio": ratio}, changed(heun, "max_ratio")),
        "DDPM": ("DDPM (many steps)", {"variance": ddpm.variance}, changed(ddpm, "variance")),
    }
    grid = [] if sampler.grid == "trailing" else [f"--grid {sampler.grid}"]
    return {
        k: {"label": label, "options": options, "words": words + grid} for k, (label, options, words) in found.items()
    }


def changed(sampler: Sampler, *names: str) -> list[str]:
    """The options of a sampler's arguments that are not its class's defaults."""
    usual = type(sampler)()
    values = {name: getattr(sampler, name) for name in names if getattr(sampler, name) != getattr(usual, name)}
    return [f"--{name} {str(v).lower() if isinstance(v, bool) else v}" for name, v in values.items()]


def shown(pipeline: Pipeline) -> tuple[list[int], list[list[int]] | None]:
    """The channels that pictures show, from 0, and the colours of a single one that is not grey; as `visible`."""
    C, grey, bands = pipeline.shape[0], pipeline.scaling.dtype != "float32", pipeline.bands
    if not bands and grey and C in (1, 3, 4):
        return list(range(C)), None
    bands = bands or ((1, 2, 3) if C >= 3 else (1,))
    return [band - 1 for band in bands], None if grey or len(bands) == 3 else colours().tolist()
