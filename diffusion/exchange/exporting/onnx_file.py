"""model.onnx: the network as a graph, with everything that sampling needs in its metadata."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from diffusion.exchange.exporting.facts import Source, alone, text_of
from diffusion.exchange.exporting.storage import stored
from diffusion.generation.pipeline import Pipeline
from diffusion.nets.onnx_graph import Input, graph_of, inputs_of
from diffusion.nets.onnx_net import OnnxNet, facts_of
from diffusion.support.files import atomic
from diffusion.support.released import KEY, with_metadata

Storage = Literal["fp32", "fp16", "int8"]
LEVELS, IMAGES = 10, 4  # noise levels, and images at each, at which the error of a storage is measured


class Difference(NamedTuple):
    """The difference of a network's output from float32 on noise: the largest, its rms, and the output's own rms."""

    largest: float
    rms: float
    scale: float

    def __str__(self) -> str:
        return f"largest {self.largest:.2g}, rms {self.rms:.2g} of an output of rms {self.scale:.2g}"


def inputs(pipeline: Pipeline, resizable: bool = False) -> list[Input]:
    """The inputs of the exported network, in order: x, clock, and y and keep if it is conditional.

    x has the previous prediction of x_0 and the condition's image in further channels, as `Denoiser.forward` makes it.
    y are labels (batch,) int64, or context vectors (batch, D) float32; where keep (batch,) is False, y is ignored.
    """
    return inputs_of(pipeline.denoiser.net, pipeline.shape, resizable)


def serialized(model: Any) -> bytes:
    """The bytes of a ModelProto, the same at every call."""
    return model.SerializeToString(deterministic=True)


def stored_graph(pipeline: Pipeline, storage: Storage, resizable: bool = True) -> tuple[Any, Difference | None]:
    """The network as an onnx.ModelProto with its weights stored this way, and the error that this causes."""
    net = pipeline.denoiser.net
    graph = graph_of(net, pipeline.shape, resizable)
    if storage == "fp32":
        return graph, None
    exact, other = serialized(graph), stored(graph, storage)
    facts = facts_of(net)
    return other, difference(pipeline, OnnxNet(exact, facts), OnnxNet(serialized(other), facts))


def write_onnx(source: Source, to: Path, storage: Storage = "fp32") -> tuple[list[Path], Difference | None]:
    """Write the model; return its file, and the error that the storage causes.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime are not installed.
        ValueError: the guidance needs more than this network, or the network cannot be expressed in ONNX.
    """
    pipeline = source.pipeline
    if reason := alone(pipeline.guidance):
        raise ValueError(f"an ONNX file holds one network and no gradient, but {reason}")
    graph, error = stored_graph(pipeline, storage)
    facts = facts_of(pipeline.denoiser.net)
    axes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.graph.input}
    described = source.describe(facts=facts, inputs=axes, storage=storage)
    data = with_metadata(serialized(graph), {KEY: text_of(described)})
    with atomic(to) as temporary:
        temporary.write_bytes(data)
    return [to], error


@torch.no_grad()
def difference(pipeline: Pipeline, exact: OnnxNet, other: OnnxNet) -> Difference:
    """The difference of two versions of a network on noise, at levels from t = 1 down, with all labels in turn."""
    schedule, target = pipeline.denoiser.schedule, pipeline.denoiser.target
    draw, errors, outputs = torch.Generator().manual_seed(0), [], []
    y = pipeline.in_turn(IMAGES)
    if y is None and exact.context_dim:
        y = torch.randn(IMAGES, exact.context_dim, generator=draw)
    for t in torch.linspace(1, 0.05, LEVELS, dtype=torch.float64):
        level = schedule.level(t)
        x = torch.randn(IMAGES, inputs(pipeline)[0].shape[1], *pipeline.shape[1:], generator=draw)
        x = x * float(torch.hypot(level.alpha, level.sigma) * target.c_in(level))
        clock = schedule.clock(level.t).float().reshape(-1).expand(IMAGES)
        outputs.append(exact(x, clock, y).double())
        errors.append(other(x, clock, y).double() - outputs[-1])
    error, out = torch.stack(errors), torch.stack(outputs)
    return Difference(float(error.abs().max()), rms(error), rms(out))


def rms(values: torch.Tensor) -> float:
    """The root of the mean square."""
    return float(values.square().mean().sqrt())
