"""A folder in the layout of diffusers: model_index.json, scheduler/ and unet/."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffusion.exchange.exporting.facts import Source, floats
from diffusion.exchange.exporting.native import DTYPES
from diffusion.exchange.exporting.schedulers import scale_of, scheduler_of
from diffusion.exchange.exporting.templates import (
    CONDITIONAL,
    NETWORK,
    NETWORK_CLASS,
    PIPELINE,
    PIPELINE_CLASS,
    WRAPPER,
)
from diffusion.exchange.exporting.unet2d import options, unmapped, weights
from diffusion.generation.pipeline import Pipeline
from diffusion.samplers import DDIM
from diffusion.support.extras import extra
from diffusion.support.specs import spec


def write_folder(source: Source, to: Path) -> tuple[str, ...]:
    """Write the folder, or nothing; return what its user should know, a sentence each.

    A `UNet` that is one of diffusers' becomes its `UNet2DModel`; another network comes with a file that wraps it. A
    conditional model comes with a pipeline of its own, since those of diffusers pass no condition.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: diffusers has no scheduler that does the same, or no pipeline that gives the network its input; the
            guidance is not classifier-free.
    """
    pipeline = source.pipeline
    net, sampler = pipeline.denoiser.net, pipeline.sampler
    diffusers = extra("diffusers", "diffusers", "--format diffusers")
    if pipeline.denoiser.second_clock:
        raise ValueError("DDIMPipeline does not tell a network the level of a step's end; export to .safetensors")
    if pipeline.denoiser.tokens is not None:
        raise ValueError("DDPMPipeline and DDIMPipeline give a network no text; export to .safetensors")
    if source.pipeline.denoiser.self_condition or pipeline.denoiser.image_channels:
        raise ValueError("DDPMPipeline and DDIMPipeline give a network neither images nor previous predictions")
    kind, arguments = scheduler_of(pipeline)
    told = settings(pipeline)
    variance = getattr(sampler, "variance", "") == "learned"
    why = unmapped(net)
    library, name = (NETWORK, NETWORK_CLASS) if why else ("diffusers", "UNet2DModel")
    base, conditional = kind.replace("Scheduler", "Pipeline"), pipeline.denoiser.conditional
    index = {
        "_class_name": [PIPELINE, PIPELINE_CLASS] if conditional else base,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", kind],
        "unet": [library, name],
    } | {key if conditional else f"_{key}": value for key, value in told.items()}  # diffusers ignores names with _
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}.tmp-"))
    try:
        getattr(diffusers, kind)(**arguments).save_config(temporary / "scheduler")
        (wrap if why else map_unet)(source, temporary / "unet", variance)
        if conditional:
            (temporary / f"{PIPELINE}.py").write_text(CONDITIONAL.format(base=base))
        (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        temporary.chmod(0o755)
        temporary.replace(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tuple(notes(source, base, why))


def settings(pipeline: Pipeline) -> dict[str, Any]:
    """The model's settings that no scheduler has: arguments of the conditional pipeline."""
    denoiser, sampler = pipeline.denoiser, pipeline.sampler
    found = {"num_classes": denoiser.num_classes, "context_dim": denoiser.context_dim}
    found |= {"class_names": list(pipeline.class_names), "guidance_scale": scale_of(pipeline)}
    return found | {"num_inference_steps": sampler.steps, "eta": float(getattr(sampler, "eta", 0))}


def size_of(source: Source) -> int | list[int]:
    """The images' side, or height and width if they differ."""
    H, W = source.pipeline.shape[1:]
    return H if H == W else [H, W]


def map_unet(source: Source, folder: Path, variance: bool) -> None:
    """Write a `UNet2DModel`."""
    from diffusers import UNet2DModel

    net, T = source.pipeline.denoiser.net, source.pipeline.denoiser.schedule.T
    model = UNet2DModel(**options(net, T, size_of(source), variance))
    model.load_state_dict(weights(net, T, variance))
    model.save_pretrained(folder, safe_serialization=True)
    if net.num_classes:  # for our import: the embedding has one more row
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_num_classes": net.num_classes}, indent=2) + "\n")


def wrap(source: Source, folder: Path, variance: bool) -> None:
    """Write a network of any kind, with the file that diffusers opens it by."""
    net, C = source.pipeline.denoiser.net, source.pipeline.shape[0]
    doubled = variance and source.pipeline.denoiser.learn_variance
    config: dict[str, Any] = {
        "_class_name": NETWORK_CLASS, "network": spec(net), "sample_size": size_of(source), "in_channels": C,
        "out_channels": C * (1 + doubled),
    }  # fmt: skip
    folder.mkdir()
    state = {f"net.{key}": floats(value, DTYPES["32"]).clone() for key, value in sorted(net.state_dict().items())}
    data = extra("safetensors.torch", "export").save(state, {"format": "pt"})
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(data)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / f"{NETWORK}.py").write_text(WRAPPER)


def notes(source: Source, base: str, why: str) -> list[str]:
    """What a user of the folder should know."""
    pipeline = source.pipeline
    sampler, conditional = pipeline.sampler, pipeline.denoiser.conditional
    found, call = [], f"num_inference_steps={sampler.steps}"
    if type(sampler) is DDIM:
        call += f", eta={sampler.eta:g}, use_clipped_model_output=True"
    if conditional:
        base, call = "DiffusionPipeline", f"class_labels=..., guidance_scale={scale_of(pipeline):g}, {call}"
    trust = ", trust_remote_code=True" if why or conditional else ""
    found.append(f"our pictures are those of {base}.from_pretrained(FOLDER{trust})({call})")
    if why:
        found.append(f"{why}, so unet/{NETWORK}.py wraps the network and needs litdiffusion installed")
    if conditional:
        empty = "none" if why else str(pipeline.denoiser.num_classes)
        found.append(
            f"{PIPELINE}.py passes labels and guidance on, and guidance_scale 1 is off; called alone, unet receives "
            f"them as class_labels, and no condition is class_labels {empty}"
        )
    if pipeline.scaling.dtype != "uint8":
        found.append(f"its pictures are x_0 / 2 + 0.5, not the data's {pipeline.scaling.dtype}; see output_type")
    return found
