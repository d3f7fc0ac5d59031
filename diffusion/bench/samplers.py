"""Measurements of a sampler on a schedule: its order, its errors and its faults."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from diffusion.bench.walks import bias, error, whole_walk
from diffusion.noise.schedule import Schedule
from diffusion.samplers.base import Sampler

STEPS = (10, 20, 50)  # of the whole walks
SLOPE = {False: (48, 144), True: (24, 72)}  # levels between which a slope is measured, by randomness
NEAR = 0.25  # tolerance of a measured order; the largest deviation of ours is 0.15
FAR = {False: 0.1, True: 0.25}  # largest error at 50 steps, by randomness; Langevin's is 0.17
EXACT = 1e-12  # an error below this is rounding and has no order
SMALL = 0.005  # a bias below this need not decrease: Langevin steps of a fixed size keep some
SETTINGS: dict[str, tuple[Any, ...]] = {
    "order": (1, 2, 3, 4), "eta": (0.0, 1.0), "sde": (True,), "variance": ("large",), "churn": (10.0,),
}  # fmt: skip


class Result(NamedTuple):
    """The measurements of one sampler on one schedule.

    Attributes:
        random: whether it draws noise.
        expected: its `convergence`.
        order: measured: of the error if deterministic, else the weak order, of the bias; None if not measured.
        errors, excess, last, means, stds: of the whole walk at STEPS, see Walk.
        problem: description of a fault, or "".
    """

    sampler: str
    schedule: str
    random: bool = False
    expected: int | None = None
    order: float | None = None
    errors: Sequence[float] = ()
    excess: Sequence[float] = ()
    last: Sequence[float] = ()
    means: Sequence[float] = ()
    stds: Sequence[float] = ()
    problem: str = ""


@torch.no_grad()
def check_sampler(kind: type[Sampler], options: dict[str, Any], schedule: Schedule) -> Result:
    """Order and errors of a sampler class with some of its arguments set, on a schedule, and its fault if any."""
    said = f"({', '.join(f'{k}={v}' for k, v in options.items())})" if options else ""
    result = Result(kind.__name__ + said, type(schedule).__name__)
    try:
        walks = [whole_walk(make(kind, min(n, schedule.T or n), options), schedule) for n in STEPS]
        result = result._replace(
            random=walks[-1].random,
            expected=make(kind, STEPS[0], options).convergence,
            errors=[w.error for w in walks],
            excess=[w.excess for w in walks],
            last=[w.last for w in walks],
            means=[w.mean for w in walks],
            stds=[w.std for w in walks],
        )
        last = math.nan
        if result.random or result.expected:
            few, many = SLOPE[result.random]
            measure = bias if result.random else error
            first, last = (measure(make(kind, n, options), schedule) for n in (few, many))
            if last > EXACT:
                result = result._replace(order=math.log(first / last) / math.log(many / few))
        return result._replace(problem=fault(result, last, (schedule.T or STEPS[-1]) >= STEPS[-1]))
    except Exception as failure:  # user-defined classes may raise anything; their row reports it
        return result._replace(problem=f"{type(failure).__name__}: {failure}".splitlines()[0])


def fault(result: Result, last: float, long: bool) -> str:
    """The fault of a result, or "".

    Args:
        last: the error at the end of its slope; nan where none is measured.
        long: whether the schedule has enough levels for the longest walk.
    """
    order, expected = result.order, result.expected
    if not all(map(math.isfinite, result.errors)) or (order is not None and not math.isfinite(last)):
        return "the walk is not finite"
    if result.random and expected:
        return f"draws noise, but declares convergence {expected}"
    if result.random and last > SMALL and order is not None and order < 1 - NEAR:
        return f"weak order {order:.1f}, expected 1: mean or std stay wrong at any number of steps"
    if not result.random and expected and (order is None or abs(order - expected) > NEAR):
        return f"order {order or 0:.1f}, expected {expected}"
    if long and result.excess[-1] > FAR[result.random]:
        return f"{result.excess[-1]:.0%} of the data's spread away after {STEPS[-1]} steps"
    return ""


def settings(kind: type) -> list[dict[str, Any]]:
    """The default of a sampler class, and each value of SETTINGS that it accepts, one at a time."""
    parameters, found = inspect.signature(kind).parameters, [{}]
    for name, values in SETTINGS.items():
        for value in values:
            if name not in parameters or parameters[name].default == value:
                continue
            try:
                kind(**{name: value})
            except ValueError:  # an unsupported order
                continue
            found.append({name: value})
    return found


def make(kind: type[Sampler], steps: int, options: dict[str, Any]) -> Sampler:
    """A sampler with the given number of steps, if its class has such an argument."""
    own = {"steps": steps} if "steps" in inspect.signature(kind).parameters else {}
    return kind(**own, **options)
