"""Folders of diffusers: UNet2DModel with the scheduler DDPM or DDIM, and those that `diffusion export` writes."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.denoiser.targets import X0, Eps, Target, V
from diffusion.exchange.importing.found import Imported, Unsupported, null_as_mean
from diffusion.exchange.importing.reading import read_json, read_state
from diffusion.exchange.rows import Row, read
from diffusion.exchange.unet2d import options_of, renamed, split_null, swapped, table, without_clocks
from diffusion.guidance import Bound, Clamp, ClassifierFree, Plain
from diffusion.guidance.bounds import Unbounded
from diffusion.nets.unet import UNet
from diffusion.noise import Cosine, Linear, Quadratic, Schedule, Sigmoid, SigmoidAlpha, Tabulated
from diffusion.samplers import DDIM, DDPM, Sampler
from diffusion.support.specs import build

NAME, FLAGS = "diffusers", {"sample_size": "pixels of an image, if the configuration lacks it"}
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
WRAPPED = "LitDiffusionUNet"  # our network by its spec, see exporting.templates
LATENT = ("vae", "vqvae", "movq", "text_encoder")
NAMED = (Cosine, Linear, Quadratic, Sigmoid, SigmoidAlpha)
RAMPS = {"linear": Linear, "scaled_linear": Quadratic, "sigmoid": Sigmoid}
TARGETS = {"epsilon": Eps, "sample": X0, "v_prediction": V}
VARIANCES = {
    "fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "fixed_large_log": "large",
    "learned_range": "learned",
}  # fmt: skip


def fits(path: Any) -> bool:
    """Whether a path is a model's folder of diffusers."""
    return (
        isinstance(path, Path)
        and path.is_dir()
        and any((path / name).is_file() for name in ("model_index.json", "config.json"))
    )


def load(path: Path, flags: Mapping[str, Any]) -> Imported:
    """The model of a pipeline's folder, or of a network's alone, whose scheduler is then DDPM's default.

    Raises:
        Unsupported: another network or scheduler, or a latent model.
        ValueError, FileNotFoundError: files are damaged or missing.
    """
    notes, unet, scheduler, told = [], path, {}, {}
    if (path / "model_index.json").is_file():
        index = read_json(path / "model_index.json")
        if latent := [name for name in LATENT if name in index]:
            raise Unsupported(f"{path}: {index.get('_class_name')} is a latent model ({latent[0]}), not supported yet")
        unet, scheduler = path / "unet", read_json(path / "scheduler" / "scheduler_config.json")
        told = {name.removeprefix("_"): value for name, value in index.items()}
    else:
        notes.append("no scheduler beside the network: DDPM's linear schedule of 1,000 steps is assumed")
    config = read_json(unet / "config.json")
    kind = config.get("_class_name", "UNet2DModel")
    if kind not in ("UNet2DModel", WRAPPED):
        raise Unsupported(f"{unet}: the network {kind} is not supported, only UNet2DModel")
    size = config.get("sample_size") or flags.get("sample_size")
    if not size:
        raise ValueError(f"{unet}/config.json: no sample_size; give the pixels of an image: --sample_size 32")
    H, W = (size, size) if isinstance(size, (int, str)) else size
    net, weights, more = wrapped(config, unet) if kind == WRAPPED else mapped(config, unet, told)
    notes += more
    schedule, target, sampler, clamp, more = parts_of(scheduler, path, getattr(net, "learn_variance", False), told)
    scale = float(told.get("guidance_scale", 1))
    return Imported(
        NAME, net, weights, schedule, target, sampler, clamp, (int(config.get("in_channels", 3)), int(H), int(W)),
        notes=notes + more, guidance=Plain() if scale == 1 else ClassifierFree(scale),
        class_names=tuple(map(str, told.get("class_names", ()))),
    )  # fmt: skip


def mapped(
    config: Mapping[str, Any], folder: Path, told: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """The network that a UNet2DModel is, its weights, and notes.

    Raises:
        Unsupported: a detail that our UNet does not have.
        ValueError: weights do not fit.
    """
    try:
        options, swap = options_of(config, str(folder))
    except ValueError as error:
        raise Unsupported(str(error)) from error
    state, rows = renamed(weights_of(folder)), options["num_classes"]
    if options["sinusoids"] == "any":
        state = without_clocks(state, options["width"], str(folder))
    classes = int(config.get("_num_classes") or told.get("num_classes") or rows)
    exported = rows == classes + 1  # its last class is "no condition"
    if exported:
        options["num_classes"] = classes
        state, null = split_null(state)
    net = UNet(**options)
    weights = read(net, table(net), swapped(state) if swap else state, str(folder))
    if exported:
        weights["condition.null"] = null.float().clone()
    return net, weights, null_as_mean(weights) if rows and not exported else []


def wrapped(config: Mapping[str, Any], folder: Path) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """The network whose spec the configuration holds, its weights, and no notes; the file beside it is not executed.

    Raises:
        ValueError: the spec is not one of a network, or weights do not fit.
    """
    try:
        net = build(config.get("network"))
    except ValueError as error:
        raise ValueError(f"{folder}/config.json: network: {error}") from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"{folder}/config.json: network: expected the spec of a network, got {type(net).__name__}")
    state = {name.removeprefix("net."): value for name, value in weights_of(folder).items()}
    return net, read(net, [Row(name, (name,)) for name in net.state_dict()], state, str(folder)), []


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a network's folder.

    Raises:
        FileNotFoundError: there are none.
    """
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder}: neither {' nor '.join(WEIGHTS)} in it; a model of diffusers has one")
    return read_state(files[0])


def schedule_of(betas: Sequence[float], zero_snr: bool) -> Schedule:
    """The schedule of a table of betas, by name where one of ours has the same levels to 1e-9."""
    table = Tabulated(betas, zero_snr or float(betas[-1]) == 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signal that is left at t = 1: told when the schedule is used
        for kind in NAMED:
            ours = kind(table.T, zero_snr=table.zero_snr)
            if torch.allclose(ours.alphas, table.alphas, rtol=1e-9, atol=0):
                return ours
    return table


def parts_of(
    config: Mapping[str, Any], path: Path, learned: bool, told: Mapping[str, Any]
) -> tuple[Schedule, Target, Sampler, Bound, list[str]]:
    """Schedule, target, sampler, limit and notes of a scheduler's configuration.

    Args:
        learned: whether the network outputs a variance.
        told: settings of an exported folder: num_inference_steps and eta.
    Raises:
        Unsupported: another scheduler, or a detail that ours do not have.
    """
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise Unsupported(f"{path}: the scheduler {kind} is not supported, only DDPMScheduler and DDIMScheduler")
    if config.get("thresholding"):
        raise Unsupported(f"{path}: {kind} with thresholding is not supported")
    T, name = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    zero = bool(config.get("rescale_betas_zero_snr"))
    if betas := config.get("trained_betas"):
        schedule = schedule_of(betas, zero)
        if schedule.T != T:
            raise ValueError(f"{path}: {schedule.T} trained_betas for num_train_timesteps {T}; expected as many")
    elif name in RAMPS:
        ends = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        schedule = RAMPS[name](T, *map(float, ends), rescale=T == 1000, zero_snr=zero)
    elif name == "squaredcos_cap_v2":
        schedule = Cosine(T, zero_snr=zero)
    else:
        raise Unsupported(f"{path}: the beta_schedule {name!r} is not supported, only {', '.join(RAMPS)} and "
                          "squaredcos_cap_v2")  # fmt: skip
    if (predicts := config.get("prediction_type", "epsilon")) not in TARGETS:
        raise Unsupported(f"{path}: the prediction_type {predicts!r} is not supported, only {', '.join(TARGETS)}")
    spacing, notes = config.get("timestep_spacing", "leading"), []
    steps = int(told.get("num_inference_steps", 0))
    if kind == "DDPMScheduler":
        variance = config.get("variance_type", "fixed_small")
        if variance not in VARIANCES or (VARIANCES[variance] == "learned") > learned:
            raise Unsupported(f"{path}: the variance_type {variance!r} is not supported for this network")
        sampler = DDPM(steps or T, VARIANCES[variance], spacing)
    else:
        sampler = DDIM(steps or min(50, T), float(told.get("eta", 0)), spacing)
        if not config.get("set_alpha_to_one", True):
            notes.append("set_alpha_to_one false: our DDIM ends at the clean image, not at the first noise level")
    if config.get("steps_offset"):
        notes.append(f"steps_offset {config['steps_offset']} is left out; our leading grid ends at index 0")
    limit = float(config.get("clip_sample_range", 1.0))
    clamp = Clamp(-limit, limit) if config.get("clip_sample", True) else Unbounded()
    return schedule, TARGETS[predicts](), sampler, clamp, notes
