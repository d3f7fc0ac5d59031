"""The cost of a network: parameters and FLOPs per image of each part, and memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from diffusion.support.pretrained import tokens_of


class Part(NamedTuple):
    """A part of a network: name, class, number of parameters, FLOPs per image."""

    name: str
    kind: str
    parameters: int
    flops: int


class Work(NamedTuple):
    """The cost of one image: FLOPs by module name ("" is the whole network), and bytes kept for the backward pass."""

    flops: dict[str, int]
    activations: int


class Coder(NamedTuple):
    """A model's codec: its name, the number of its weights, which are not trained, and FLOPs per image."""

    name: str
    weights: int
    encode: int
    decode: int


@dataclass(frozen=True, repr=False)
class Description:
    """A network's cost; `print(description)` shows the table of `diffusion describe`.

    Attributes:
        title: one-line summary of the network.
        parameters: total number.
        flops: per image; a multiply-add counts as two.
        parts: disjoint parts that together hold all parameters.
        weights: bytes of the parameters.
        activations: bytes kept for the backward pass, per image, in float32.
        batch_size: images per training batch; 0 if unknown.
        codec: of a model of latents, whose network sees latents; None in pixels.
    """

    title: str
    parameters: int
    flops: int
    parts: tuple[Part, ...]
    weights: int
    activations: int
    batch_size: int = 0
    codec: Coder | None = None

    @property
    def training(self) -> int:
        """Bytes for training, excluding activations: weights, gradients, Adam's two averages, EMA."""
        return 5 * self.weights

    def __str__(self) -> str:
        lines = [
            f"{self.title}: {self.parameters:,} parameters, {self.flops / 1e9:.3f} GFLOPs per image",
            f"  {'part':14}{'kind':22}{'parameters':>14}{'MFLOPs':>12}",
            *(f"  {p.name:14}{p.kind:22}{p.parameters:14,}{p.flops / 1e6:12.2f}" for p in self.parts),
        ]
        total = self.training + self.batch_size * self.activations
        batch = f"; {size(total)} at batch {self.batch_size}" if self.batch_size else ""
        if it := self.codec:
            cost = f"{it.encode / 1e6:.2f} MFLOPs per image to encode, {it.decode / 1e6:.2f} to decode"
            lines.append(f"codec {it.name}, not trained: {it.weights:,} weights, {cost}")
        return "\n".join([
            *lines,
            f"memory in float32: weights {size(self.weights)}; training {size(self.training)} (weights, gradients, "
            f"Adam's two averages, EMA) and {size(self.activations)} of activations per image{batch}",
        ])  # fmt: skip

    __repr__ = __str__


def describe(net: nn.Module, shape: Sequence[int], hint: str = "", batch_size: int = 0) -> Description:
    """The cost of a network for images of a given shape.

    Args:
        net: forward(x, clock, y=None, keep=None), see `docs/design.md`.
        shape: (C, H, W) of an image.
        hint: description of the conditioning image, for the title.
        batch_size: images per training batch, for the training memory.
    """
    flops, activations = work(net, shape)
    classes, context = (getattr(net, name, 0) for name in ("num_classes", "context_dim"))
    text = "text" if getattr(net, "tokens", None) else ""
    takes = (f"{classes} classes" if classes else "", f"{context} context features" if context else "", text, hint)
    title = ", ".join([f"{type(net).__name__} on {'x'.join(map(str, shape))}", *filter(None, takes)])
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    total = sum(p.numel() for p in net.parameters())
    return Description(title, total, flops[""], tuple(parts(net, flops)), weights, activations, batch_size)


def work_of_codec(codec: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """FLOPs of encoding and of decoding an image (C, H, W)."""
    x, found = torch.zeros(1, *shape, device=next(codec.buffers()).device), []
    for step in (codec.encode, codec.decode):
        counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
        with torch.no_grad(), counter:
            x = step(x)
        found.append(counter.get_total_flops())
    return tuple(found)


def parts(net: nn.Module, flops: dict[str, int]) -> Iterator[Part]:
    """The network's children; a ModuleList is split into its items."""
    for name, child in net.named_children():
        items = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        for key, part in items:
            label = f"{name}.{key}".rstrip(".")
            parameters = sum(p.numel() for p in part.parameters())
            yield Part(label, type(part).__name__, parameters, flops_of(label, part, flops))
    if own := sum(p.numel() for p in net.parameters(recurse=False)):
        yield Part("(own)", "Parameter", own, 0)


def flops_of(name: str, part: nn.Module, flops: dict[str, int]) -> int:
    """FLOPs of a part; a ModuleList is never called itself, so its items are summed."""
    own = flops.get(name)
    return own or sum(flops_of(f"{name}.{key}", child, flops) for key, child in part.named_children())


def attention(query: torch.Size, key: torch.Size, value: torch.Size, *args, **kwargs) -> int:
    """FLOPs of one call of torch's attention, from the shapes of its arguments."""
    return sdpa_flop_count(query, key, value)


# Torch 2.6 does not count the CPU's own kind of attention.
COUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}


def work(net: nn.Module, shape: Sequence[int]) -> Work:
    """FLOPs and memory of one image, from one forward pass in training mode; the network's mode is restored."""
    inputs = example(net, shape)[: len(signature(net.forward).parameters)]  # those of other tasks hear no clock
    kept, counter, training = Kept(net), FlopCounterMode(display=False, custom_mapping=COUNTED), net.training
    net.train()
    try:
        with torch.enable_grad(), counter, saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            net(*inputs)
    finally:
        net.train(training)
    own = type(net).__name__
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    flops = {k.removeprefix(own).removeprefix("."): v for k, v in counts.items() if k.startswith(own)}
    return Work(flops, sum(kept.sizes.values()))


def example(net: nn.Module, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
    """All-zero inputs x, clock and y of a network, for one image."""
    C, H, W = shape
    device = next(net.parameters()).device
    channels = C * (1 + bool(getattr(net, "self_condition", False))) + getattr(net, "image_channels", 0)
    y = None
    if width := getattr(net, "context_dim", 0):
        y = torch.zeros(1, width, device=device)
    elif getattr(net, "num_classes", 0):
        y = torch.zeros(1, dtype=torch.long, device=device)
    elif tokens := getattr(net, "tokens", None):
        y = torch.ones(1, tokens_of(tokens).length, dtype=torch.long, device=device)
    return torch.zeros(1, channels, H, W, device=device), torch.zeros(1, device=device), y


class Kept:
    """Bytes of the tensors that autograd saves, by storage: views count once, weights not at all.

    Storages are kept alive so that no address is reused.
    """

    def __init__(self, net: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
        self.sizes: dict[int, int] = {}
        self.held: list[Tensor] = []

    def keep(self, tensor: Tensor) -> Tensor:
        """Record a saved tensor."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.sizes[storage.data_ptr()] = storage.nbytes()
            self.held.append(tensor)
        return tensor


def size(count: float) -> str:
    """Human-readable bytes with 3 significant digits."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
