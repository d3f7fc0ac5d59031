"""A network as an ONNX graph."""

import io
import math
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.support.extras import extra
from diffusion.support.pretrained import Pretrained, tokens_of
from diffusion.support.tokens import BYTES

OPSET = 20
LIMIT = 2**31 - 2**20  # bytes: a protocol buffer, and so one file, holds less than 2 GiB
AXES = ("batch", "height", "width")


class Input(NamedTuple):
    """An input of the graph: its name, element type and shape; axes of any size have a name of AXES."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(nn.Module):
    """A network with the inputs x and clock, and y and keep if it is conditional.

    Without a condition in the network's sense, keep is False and y is ignored.
    """

    def __init__(self, net: nn.Module, conditional: bool) -> None:
        super().__init__()
        self.net, self.conditional = net, conditional

    def forward(self, x: Tensor, clock: Tensor, y: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        return self.net(x, clock, y, keep) if self.conditional else self.net(x, clock)


def channels_in(net: nn.Module, channels: int) -> int:
    """Channels of the network's input for images of `channels` channels: x, the previous x_0, the condition's image."""
    own = channels * (1 + bool(getattr(net, "self_condition", False))) + getattr(net, "image_channels", 0)
    return getattr(net, "in_channels", own)


def inputs_of(net: nn.Module, shape: Sequence[int], resizable: bool) -> list[Input]:
    """The inputs of a network's graph for images (C, H, W).

    Args:
        resizable: height and width may be chosen at each call.
    """
    sides = AXES[1:] if resizable else tuple(shape[1:])
    found = [
        Input("x", "float32", ("batch", channels_in(net, shape[0]), *sides)),
        Input("clock", "float32", ("batch",)),
    ]
    if getattr(net, "num_classes", 0):
        found.append(Input("y", "int64", ("batch",)))
    elif getattr(net, "context_dim", 0):
        found.append(Input("y", "float32", ("batch", net.context_dim)))
    elif tokens := getattr(net, "tokens", None):
        found.append(Input("y", "int64", ("batch", tokens_of(tokens).length)))
    if len(found) > 2:
        found.append(Input("keep", "bool", ("batch",)))
    return found


def example(inputs: Sequence[Input], batch: int, size: Sequence[int]) -> list[Tensor]:
    """Values of the inputs of a graph: noise, clocks, and conditions of which every fourth is not kept.

    Labels are 0, and texts are spelled in bytes.
    """
    draw = torch.Generator().manual_seed(0)
    sizes = dict(zip(AXES, (batch, *size), strict=True))
    found = []
    for name, dtype, axes in inputs:
        shape = [sizes.get(n, n) for n in axes]
        if name == "clock":
            found.append(torch.linspace(1, 900, batch))
        elif dtype == "float32":
            found.append(torch.randn(shape, generator=draw))
        elif dtype == "bool":
            found.append(torch.arange(batch) % 4 != 3)
        else:
            text = torch.arange(math.prod(shape)).reshape(shape) % (1 + BYTES)
            found.append(text if len(shape) > 1 else torch.zeros(shape, dtype=torch.int64))
    return found


@torch.no_grad()
def graph_of(net: nn.Module, shape: Sequence[int], resizable: bool = True):
    """The network as an onnx.ModelProto in float32, of any batch size; the same at every call.

    Args:
        shape: (C, H, W) of the images.
        resizable: height and width may be chosen at each call, if the network accepts other sizes than these.
    Raises:
        ImportError: onnx or onnxscript are not installed.
        ValueError: the network cannot be exported, for the reason given.
    """
    if getattr(net, "second_clock", False):
        raise ValueError(f"{type(net).__name__}: a graph has no input for its second clock; export to .safetensors")
    extra("onnx", "export"), extra("onnxscript", "export")
    if isinstance(tokens_of(getattr(net, "tokens", None)), Pretrained):
        raise ValueError(
            f"{type(net).__name__}: its text encoder is a pretrained model in another folder, which is not exported; "
            "use the run itself"
        )
    if sum(p.numel() for p in net.parameters()) * 4 > LIMIT:
        raise ValueError(f"{type(net).__name__}: its weights exceed 2 GiB in float32, the limit of an ONNX file")
    net = deepcopy(net).eval().to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    resizable = resizable and fits_other_sizes(net, shape)
    inputs = inputs_of(net, shape, resizable)
    model = _exported(net, inputs, shape[1:])
    _verify(net, session(model.SerializeToString()), inputs, shape[1:])
    return model


def session(graph: bytes, threads: int = 0):
    """An onnxruntime.InferenceSession of a graph, on the CPU.

    Args:
        threads: torch's number by default.
    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: it cannot open the graph.
    """
    runtime = extra("onnxruntime", "export", "ONNX")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads or torch.get_num_threads(), 1
    options.log_severity_level = 4  # its errors are raised as well
    try:
        # From memory: a file that names weights in other files is refused.
        return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        raise ValueError(f"ONNX Runtime cannot open this graph: {' '.join(str(error).split())[:200]}") from error


def _verify(net: nn.Module, opened, inputs: Sequence[Input], size: Sequence[int]) -> None:
    """Compare the graph with the network at other batch sizes than the example's, which the exporter may have frozen.

    Raises:
        ValueError: they differ.
    """
    for batch in (1, 2):
        given = example(inputs, batch, size)
        try:
            (out,) = opened.run(None, {i.name: v.numpy() for i, v in zip(inputs, given, strict=True)})
            wanted = net(*given)
            same = out.shape == wanted.shape and torch.allclose(torch.from_numpy(out), wanted, rtol=1e-3, atol=1e-3)
        except Exception:  # ONNX Runtime's exceptions have no common class
            same = False
        if not same:
            raise ValueError(
                f"{type(net).__name__}: the ONNX graph differs from the network at a batch of {batch}; in its forward, "
                "write x.shape[0] for len(x), and leave nothing to chance"
            )


def fits_other_sizes(net: nn.Module, shape: Sequence[int]) -> bool:
    """Whether the network accepts images of twice the size."""
    size = [2 * n for n in shape[1:]]
    try:
        return tuple(net(*example(inputs_of(net, shape, True), 1, size)).shape[-2:]) == tuple(size)
    except Exception:  # a network of the user's may raise anything
        return False


def _exported(net: nn.Module, inputs: Sequence[Input], size: Sequence[int]):
    axes = tuple({k: name for k, name in enumerate(i.shape) if isinstance(name, str)} for i in inputs)
    kind, names = type(net).__name__, [i.name for i in inputs]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            # An example of a batch of 1 would make the exporter take 1 for a constant.
            model = torch.onnx.export(
                Graph(net, len(inputs) > 2).eval(), tuple(example(inputs, 3, size)), input_names=names,
                output_names=["out"], opset_version=OPSET, dynamo=True, dynamic_shapes=axes, external_data=False,
                verbose=False,
            ).model_proto  # fmt: skip
        except Exception as error:  # of the exporter, anything
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise ValueError(f"{kind}: ONNX cannot express this network: {reason}") from error
    return _stripped(model)


def _stripped(model):
    """Without what differs between machines or serves debugging alone: traces with paths, documentation, shapes."""
    del model.graph.value_info[:]
    for part in (model, model.graph, *model.functions):
        part.ClearField("doc_string")
        del part.metadata_props[:]
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for part in (*nodes, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.ClearField("doc_string")
        del part.metadata_props[:]
    return model
