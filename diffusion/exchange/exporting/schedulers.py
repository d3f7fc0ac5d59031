"""The scheduler of diffusers that a model's schedule, target, limit and sampler are."""

from typing import Any

import torch

from diffusion.denoiser.targets import X0, Eps, V
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Clamp, ClassifierFree, Plain, Unbounded
from diffusion.noise.discrete import Discrete
from diffusion.noise.schedule import Schedule
from diffusion.noise.shifted import Shifted
from diffusion.samplers import DDIM, DDPM

TARGETS = {Eps: "epsilon", X0: "sample", V: "v_prediction"}
VARIANCES = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}
NAMED = {  # of DDPMScheduler and DDIMScheduler
    "linear": lambda T: torch.linspace(1e-4, 0.02, T),
    "scaled_linear": lambda T: torch.linspace(1e-4**0.5, 0.02**0.5, T) ** 2,
}


def scheduler_of(pipeline: Pipeline) -> tuple[str, dict[str, Any]]:
    """The class of the scheduler and its arguments.

    Raises:
        ValueError: no scheduler does the same as this model; the message says which part is the reason.
    """
    schedule, target, sampler = pipeline.denoiser.schedule, pipeline.denoiser.target, pipeline.sampler
    what = f"{type(schedule).__name__}: diffusers' pipelines for images alone, DDPMPipeline and DDIMPipeline, walk a"
    if not isinstance(plain(schedule), Discrete):
        raise ValueError(f"{what} table of betas, and this schedule is continuous; export to .onnx instead")
    if type(target) not in TARGETS:
        raise ValueError(
            f"{type(target).__name__}: the targets of diffusers' schedulers are "
            f"{', '.join(k.__name__ for k in TARGETS)}; export to .onnx instead"
        )
    found = {"num_train_timesteps": schedule.T, "prediction_type": TARGETS[type(target)]}
    found |= betas_of(schedule) | limit(pipeline) | {"timestep_spacing": spacing(pipeline)}
    if type(sampler) is DDIM:
        return "DDIMScheduler", found | {"set_alpha_to_one": True}
    if sampler.variance != "small" and sampler.grid == "trailing" and sampler.steps < schedule.T:
        raise ValueError(
            f"DDPM: with the variance {sampler.variance} and {sampler.steps} of {schedule.T} steps, diffusers adds "
            "noise in the last step of a trailing grid; export with --grid leading, or --sampler DDIM"
        )
    return "DDPMScheduler", found | {"variance_type": VARIANCES[sampler.variance]}


def plain(schedule: Schedule) -> Schedule:
    """The schedule that was shifted."""
    return plain(schedule.schedule) if isinstance(schedule, Shifted) else schedule


def betas_of(schedule: Schedule) -> dict[str, Any]:
    """The betas of a table, shifted or not: by name where it is one of diffusers', else as numbers."""
    alphas, _ = schedule.scales(torch.arange(1, schedule.T + 1, dtype=torch.float64) / schedule.T)
    bar = torch.cat([torch.ones(1, dtype=torch.float64), alphas**2])
    betas = 1 - bar[1:] / bar[:-1]
    for name, table in NAMED.items():
        if torch.allclose(table(schedule.T).double(), betas, rtol=1e-5, atol=0):
            return {"beta_schedule": name, "beta_start": 1e-4, "beta_end": 0.02}
    return {"trained_betas": [float(beta) for beta in betas]}


def limit(pipeline: Pipeline) -> dict[str, Any]:
    """The limit on x_0."""
    clamp = pipeline.clamp
    if type(clamp) is Unbounded:
        return {"clip_sample": False}
    if type(clamp) is Clamp and clamp.low == -clamp.high:
        return {"clip_sample": True, "clip_sample_range": clamp.high}
    raise ValueError(f"{type(clamp).__name__}: diffusers limits x_0 to [-a, a] or not at all; export to .onnx instead")


def spacing(pipeline: Pipeline) -> str:
    """The grid of the sampler.

    Raises:
        ValueError: diffusers has neither the sampler nor the grid in the same form.
    """
    sampler, T = pipeline.sampler, pipeline.denoiser.schedule.T
    if type(sampler) not in (DDIM, DDPM):
        raise ValueError(f"{type(sampler).__name__}: the folder has DDIM or DDPM; export with --sampler DDIM")
    if sampler.grid not in ("trailing", "leading"):
        raise ValueError(f"{sampler.grid}: diffusers spaces levels otherwise; export with --grid trailing or leading")
    if T % sampler.steps:
        near = max(n for n in range(1, sampler.steps + 1) if T % n == 0)
        raise ValueError(
            f"diffusers takes other levels where {sampler.steps} steps do not divide {T}; export with --steps {near}"
        )
    return sampler.grid


def scale_of(pipeline: Pipeline) -> float:
    """The scale of classifier-free guidance; 1 without guidance.

    Raises:
        ValueError: another guidance, or one that is rescaled.
    """
    guidance = pipeline.guidance
    if type(guidance) is Plain or type(guidance) is ClassifierFree and not pipeline.denoiser.conditional:
        return 1.0
    if type(guidance) is not ClassifierFree:
        raise ValueError(
            f"{type(guidance).__name__}: the folder's pipeline has classifier-free guidance alone; export with "
            "--guidance ClassifierFree or Plain"
        )
    if guidance.rescale:
        raise ValueError(
            f"ClassifierFree: the folder's pipeline does not rescale guidance, got rescale {guidance.rescale:g}; "
            "export with --rescale 0"
        )
    return guidance.scale
