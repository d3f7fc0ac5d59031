"""A folder in the layout of diffusers: model_index.json, scheduler/ and unet/."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffusion.exchange.exporting.facts import Source, floats
from diffusion.exchange.exporting.native import DTYPES
from diffusion.exchange.exporting.schedulers import scheduler_of
from diffusion.exchange.exporting.unet2d import options, unmapped, weights
from diffusion.samplers import DDIM
from diffusion.support.extras import extra
from diffusion.support.specs import spec

MODULE, CLASS = "litdiffusion_unet", "LitDiffusionUNet"
WRAPPER = '''"""The network of a LitDiffusion model for diffusers. Needs the package: pip install litdiffusion"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusion.support.specs import build


class LitDiffusionUNet(ModelMixin, ConfigMixin):
    """A network by its spec. class_labels are labels (B,) or context vectors (B, D); without them, no condition."""

    @register_to_config
    def __init__(self, network, sample_size, in_channels, out_channels):
        super().__init__()
        self.net = build(dict(network))

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        clock = torch.as_tensor(timestep, device=sample.device).to(sample.dtype).reshape(-1).expand(sample.shape[0])
        out = self.net(sample, clock, class_labels)[:, : self.config.out_channels]
        return UNet2DOutput(sample=out) if return_dict else (out,)
'''


def write_folder(source: Source, to: Path) -> tuple[str, ...]:
    """Write the folder, or nothing; return what its user should know, a sentence each.

    A `UNet` that is one of diffusers' becomes its `UNet2DModel`; another network comes with a file that wraps it.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: diffusers has no scheduler that does the same, or no pipeline that gives the network its input.
    """
    pipeline = source.pipeline
    net, sampler = pipeline.denoiser.net, pipeline.sampler
    diffusers = extra("diffusers", "diffusers", "--format diffusers")
    if source.pipeline.denoiser.self_condition or pipeline.denoiser.image_channels:
        raise ValueError("DDPMPipeline and DDIMPipeline give a network neither images nor previous predictions")
    kind, arguments = scheduler_of(pipeline)
    variance = getattr(sampler, "variance", "") == "learned"
    why = unmapped(net)
    library, name = (MODULE, CLASS) if why else ("diffusers", "UNet2DModel")
    index = {
        "_class_name": kind.replace("Scheduler", "Pipeline"),
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", kind],
        "unet": [library, name],
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}.tmp-"))
    try:
        getattr(diffusers, kind)(**arguments).save_config(temporary / "scheduler")
        (wrap if why else map_unet)(source, temporary / "unet", variance)
        (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        temporary.chmod(0o755)
        temporary.replace(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tuple(notes(source, index, why))


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


def wrap(source: Source, folder: Path, variance: bool) -> None:
    """Write a network of any kind, with the file that diffusers opens it by."""
    net, C = source.pipeline.denoiser.net, source.pipeline.shape[0]
    doubled = variance and source.pipeline.denoiser.learn_variance
    config: dict[str, Any] = {
        "_class_name": CLASS, "network": spec(net), "sample_size": size_of(source), "in_channels": C,
        "out_channels": C * (1 + doubled),
    }  # fmt: skip
    folder.mkdir()
    state = {f"net.{key}": floats(value, DTYPES["32"]).clone() for key, value in sorted(net.state_dict().items())}
    data = extra("safetensors.torch", "export").save(state, {"format": "pt"})
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(data)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / f"{MODULE}.py").write_text(WRAPPER)


def notes(source: Source, index: dict[str, Any], why: str) -> list[str]:
    """What a user of the folder should know."""
    pipeline = source.pipeline
    sampler, name = pipeline.sampler, index["_class_name"]
    found, call = [], f"num_inference_steps={sampler.steps}"
    if type(sampler) is DDIM:
        call += f", eta={sampler.eta:g}, use_clipped_model_output=True"
    trust = ", trust_remote_code=True" if why else ""
    found.append(f"our pictures are those of {name}.from_pretrained(FOLDER{trust})({call})")
    if why:
        found.append(f"{why}, so unet/{MODULE}.py wraps the network and needs litdiffusion installed")
    if pipeline.denoiser.conditional:
        empty = "none" if why else str(pipeline.denoiser.num_classes)
        found.append(
            f"{name} passes no condition and no guidance: call unet(x, t, class_labels=...) in a loop of your own; "
            f"no condition is class_labels {empty}"
        )
    if pipeline.scaling.dtype != "uint8":
        found.append(f"its pictures are x_0 / 2 + 0.5, not the data's {pipeline.scaling.dtype}; see output_type")
    return found
