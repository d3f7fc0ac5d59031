"""OnnxNet: a network that ONNX Runtime evaluates, in place of torch."""

import hashlib
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.nets.onnx_graph import example, graph_of, inputs_of, session
from diffusion.nets.onnx_tuned import tuned
from diffusion.support.extras import extra
from diffusion.support.files import atomic
from diffusion.support.paths import cache_root
from diffusion.support.pretrained import tokens_of
from diffusion.support.released import intact, with_metadata
from diffusion.support.specs import spec

CACHED = 2**21  # bytes per thread: larger batches are evaluated in parts whose largest tensors have this size
FACTS = ("num_classes", "context_dim", "image_channels", "self_condition", "learn_variance")  # and tokens, of text


class OnnxNet(nn.Module):
    """forward(x, clock, y=None, keep=None) of an exported network, on the CPU. It has no parameters and no gradient.

    Every sampler and guidance that needs values of the network alone works with it.

    Args:
        graph: the bytes of an ONNX file, see `onnx_graph`.
        facts: num_classes, context_dim, image_channels, self_condition, learn_variance and tokens of the network.
        threads: of ONNX Runtime; torch's number by default.
        rows: images of one call of ONNX Runtime, so that what it computes on fits the processor's caches; 0 for all.
    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: it cannot open the graph.
    """

    def __init__(self, graph: bytes, facts: dict[str, Any], threads: int = 0, rows: int = 0) -> None:
        super().__init__()
        self.num_classes, self.context_dim = int(facts.get("num_classes", 0)), int(facts.get("context_dim", 0))
        self.image_channels = int(facts.get("image_channels", 0))
        self.self_condition = bool(facts.get("self_condition", False))
        self.learn_variance = bool(facts.get("learn_variance", False))
        self.tokens = facts.get("tokens")
        self.session, self.rows = session(graph, threads), rows
        self.names = [given.name for given in self.session.get_inputs()]

    def forward(self, x: Tensor, clock: Tensor, y: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W).

        Raises:
            ValueError: a gradient is requested, or the shape is not the graph's.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                "ONNX Runtime gives no gradient through the network, which this guidance or likelihood needs; "
                "use the run itself with --engine torch"
            )
        feeds = {"x": x.float(), "clock": clock.float()}
        if "y" in self.names:
            kept = torch.full(x.shape[:1], y is not None)
            width = self.context_dim or (tokens_of(self.tokens).length if self.tokens else 0)
            feeds["y"] = torch.zeros((x.shape[0], width) if width else x.shape[:1]) if y is None else y
            feeds["y"] = feeds["y"].float() if self.context_dim else feeds["y"].long()
            feeds["keep"] = kept if keep is None or y is None else keep.bool()
        values = {name: value.detach().cpu().contiguous().numpy() for name, value in feeds.items()}
        count = -(-len(x) // self.rows) if self.rows else 1
        parts = zip(*(np.array_split(value, count) for value in values.values()), strict=True)
        try:
            outs = [self.session.run(None, dict(zip(values, part, strict=True)))[0] for part in parts]
        except Exception as error:
            raise ValueError(f"ONNX Runtime: {' '.join(str(error).split())[:300]}") from error
        return torch.from_numpy(outs[0] if count == 1 else np.concatenate(outs)).to(x.device)


def facts_of(net: nn.Module) -> dict[str, Any]:
    """What a denoiser reads of a network; see `nets.base.Net`."""
    tokens = getattr(net, "tokens", None)
    return {name: getattr(net, name, 0) for name in FACTS} | ({"tokens": tokens} if tokens else {})


def accelerated(net: nn.Module, shape: Sequence[int]) -> OnnxNet:
    """The network for ONNX Runtime; its graph is kept in the cache folder, by the hash of all that it follows from.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime are not installed.
        ValueError: the network cannot be exported.
    """
    file = cache_root() / "engines" / f"{key_of(net, shape)}.onnx"
    data = file.read_bytes() if file.is_file() else b""
    if not intact(data):
        model = tuned(graph_of(net, shape, resizable=False))
        data = with_metadata(model.SerializeToString(deterministic=True), {})
        with atomic(file) as temporary:
            temporary.write_bytes(data)
    rows = max(1, CACHED * torch.get_num_threads() // largest(net, shape))
    return OnnxNet(data, facts_of(net), rows=rows)


@torch.no_grad()
def largest(net: nn.Module, shape: Sequence[int]) -> int:
    """Bytes per image of the largest output of any part of a network."""
    sizes = [1]

    def note(module: nn.Module, given: Any, out: Any) -> None:
        sizes.extend([out.numel() * out.element_size()] if isinstance(out, Tensor) else [])

    hooks = [module.register_forward_hook(note) for module in net.modules()]
    try:
        net(*example(inputs_of(net, shape, False), 1, shape[1:]))
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def key_of(net: nn.Module, shape: Sequence[int]) -> str:
    """The hash of a network's architecture, weights and source, and of the exporter's version."""
    versions = [torch.__version__, *(extra(name, "export").__version__ for name in ("onnx", "onnxscript"))]
    found = hashlib.sha256(json.dumps([spec(net), list(shape), versions], sort_keys=True).encode())
    homes = {type(module).__module__ for module in net.modules()}
    files = {inspect.getsourcefile(sys.modules[home]) for home in homes if not home.startswith("torch.")}
    for source in sorted(map(str, {*files, *Path(__file__).parent.glob("*.py")})):
        found.update(Path(source).read_bytes() if Path(source).is_file() else b"")
    for name, value in net.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:24]
