"""Folders of diffusers: UNet2DModel with the scheduler DDPM or DDIM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.denoiser.targets import X0, Eps, Target, V
from diffusion.exchange.importing.found import Imported, Unsupported, null_as_mean
from diffusion.exchange.importing.reading import read_json, read_state
from diffusion.exchange.rows import read
from diffusion.exchange.unet2d import options_of, renamed, swapped, table
from diffusion.guidance import Bound, Clamp
from diffusion.guidance.bounds import Unbounded
from diffusion.nets.unet import UNet
from diffusion.noise import Cosine, Linear, Quadratic, Schedule, Sigmoid
from diffusion.samplers import DDIM, DDPM, Sampler

NAME, FLAGS = "diffusers", {"sample_size": "pixels of an image, if the configuration lacks it"}
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
LATENT = ("vae", "vqvae", "movq", "text_encoder")
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
    notes, unet, scheduler = [], path, {}
    if (path / "model_index.json").is_file():
        index = read_json(path / "model_index.json")
        if latent := [name for name in LATENT if name in index]:
            raise Unsupported(f"{path}: {index.get('_class_name')} is a latent model ({latent[0]}), not supported yet")
        unet, scheduler = path / "unet", read_json(path / "scheduler" / "scheduler_config.json")
    else:
        notes.append("no scheduler beside the network: DDPM's linear schedule of 1,000 steps is assumed")
    config = read_json(unet / "config.json")
    if (kind := config.get("_class_name", "UNet2DModel")) != "UNet2DModel":
        raise Unsupported(f"{unet}: the network {kind} is not supported, only UNet2DModel")
    try:
        options, swap = options_of(config, str(unet))
    except ValueError as error:
        raise Unsupported(str(error)) from error
    size = config.get("sample_size") or flags.get("sample_size")
    if not size:
        raise ValueError(f"{unet}/config.json: no sample_size; give the pixels of an image: --sample_size 32")
    H, W = (size, size) if isinstance(size, (int, str)) else size
    net = UNet(**options)
    state = weights_of(unet)
    weights = read(net, table(net), swapped(state) if swap else state, str(unet))
    if net.num_classes:
        notes += null_as_mean(weights)
    schedule, target, sampler, clamp, more = parts_of(scheduler, path, net.learn_variance)
    shape = (options["channels"], int(H), int(W))
    return Imported(NAME, net, weights, schedule, target, sampler, clamp, shape, notes=notes + more)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a network's folder under today's names.

    Raises:
        FileNotFoundError: there are none.
    """
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder}: neither {' nor '.join(WEIGHTS)} in it; a model of diffusers has one")
    return renamed(read_state(files[0]))


def parts_of(
    config: Mapping[str, Any], path: Path, learned: bool
) -> tuple[Schedule, Target, Sampler, Bound, list[str]]:
    """Schedule, target, sampler, limit and notes of a scheduler's configuration.

    Raises:
        Unsupported: another scheduler, or a detail that ours do not have.
    """
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise Unsupported(f"{path}: the scheduler {kind} is not supported, only DDPMScheduler and DDIMScheduler")
    for name in ("trained_betas", "thresholding"):
        if config.get(name):
            raise Unsupported(f"{path}: {kind} with {name} is not supported")
    T, name = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    zero = bool(config.get("rescale_betas_zero_snr"))
    if name in RAMPS:
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
    if kind == "DDPMScheduler":
        variance = config.get("variance_type", "fixed_small")
        if variance not in VARIANCES or (VARIANCES[variance] == "learned") > learned:
            raise Unsupported(f"{path}: the variance_type {variance!r} is not supported for this network")
        sampler = DDPM(T, VARIANCES[variance], spacing)
    else:
        sampler = DDIM(min(50, T), grid=spacing)
        if not config.get("set_alpha_to_one", True):
            notes.append("set_alpha_to_one false: our DDIM ends at the clean image, not at the first noise level")
    if config.get("steps_offset"):
        notes.append(f"steps_offset {config['steps_offset']} is left out; our leading grid ends at index 0")
    limit = float(config.get("clip_sample_range", 1.0))
    clamp = Clamp(-limit, limit) if config.get("clip_sample", True) else Unbounded()
    return schedule, TARGETS[predicts](), sampler, clamp, notes
