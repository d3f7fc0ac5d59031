"""The correctness bench: samplers and schedules against exact answers, without Monte Carlo error."""

from diffusion.bench.samplers import STEPS, Result, check_sampler, make, settings
from diffusion.bench.schedules import Facts, check_schedule
from diffusion.bench.walks import Law, bias, error, law, whole_walk

__all__ = [
    "STEPS", "Facts", "Law", "Result", "bias", "check_sampler", "check_schedule", "error", "law", "make", "settings",
    "whole_walk",
]  # fmt: skip
