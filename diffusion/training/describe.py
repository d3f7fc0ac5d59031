"""`diffusion.describe`: a network's parameters, FLOPs and memory, from a run or from configuration files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion.generation.pipeline import Pipeline
from diffusion.nets.describe import Coder, Description, work_of_codec
from diffusion.nets.describe import describe as describe_net
from diffusion.nets.onnx_net import OnnxNet

CONFIGS = (".yaml", ".yml")


def describe(
    what: str | Path | Pipeline | Sequence[str | Path], settings: Mapping[str, Any] | None = None
) -> Description:
    """Parameters, FLOPs and memory of a run's or configuration's network, as `diffusion describe` prints them.

    Args:
        what: run directory, experiment folder, checkpoint file or open pipeline; or configuration files (.yaml), of
            which later ones change earlier ones.
        settings: options of `diffusion fit` that change a configuration, e.g. {"model.net.depth": 2}.
    Raises:
        FileNotFoundError: there is no such file or run.
        ValueError: settings given for a run, or several runs.
    """
    several = [what] if isinstance(what, (str, Path, Pipeline)) else list(what)
    if several and not isinstance(several[0], Pipeline) and Path(several[0]).suffix in CONFIGS:
        return of_configuration([str(file) for file in several], settings or {})
    if len(several) != 1 or settings:
        more = next(iter(settings or {}), None) or "".join(map(str, several[1:2])) or "nothing"
        raise ValueError(f"{more}: describe one run at a time, without options; options require a configuration file")
    run = several[0]
    return in_figures(run if isinstance(run, Pipeline) else Pipeline.load(run))


def of_configuration(files: Sequence[str], settings: Mapping[str, Any]) -> Description:
    """The description of the network that configuration files and settings define."""
    from diffusion.training.build import DiffusionCLI, quiet  # Lightning takes seconds to import
    from diffusion.training.suited import suited

    quiet()
    words = [w for file in files for w in ("-c", file)] + [f"--{name}={value}" for name, value in settings.items()]
    cli = DiffusionCLI(suited(words))
    model, data = cli.model, cli.datamodule
    if (pipeline := getattr(model, "pipeline", None)) is None:
        return describe_net(model.net, data.shape, batch_size=data.batch_size)
    return in_figures(pipeline, data.batch_size)


def in_figures(pipeline: Pipeline, batch_size: int = 0) -> Description:
    """The description of a pipeline's network.

    Raises:
        ValueError: an .onnx file, whose network has no parts to describe.
    """
    if isinstance(pipeline.denoiser.net, OnnxNet):
        raise ValueError("an .onnx file has one graph without parts; describe the run that it was exported from")
    hint = type(pipeline.hint).__name__ if pipeline.hint else ""
    shape, codec = pipeline.latent_shape, pipeline.codec
    found = describe_net(pipeline.denoiser.net, shape, hint, batch_size)
    if not codec.latent:
        return found
    weights = sum(v.numel() for v in codec.state_dict().values() if v.is_floating_point())
    return replace(found, codec=Coder(codec.name, weights, *work_of_codec(codec, pipeline.shape)))
