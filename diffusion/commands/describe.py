"""`diffusion describe`: a network's parameters block by block, its FLOPs an image, and the memory it takes."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from diffusion.generation.pipeline import Pipeline
from diffusion.training.run import DiffusionCLI, quiet

HELP = """usage: diffusion describe CONFIG.yaml [CONFIG.yaml ...] [options of `diffusion fit`]
       diffusion describe RUN

Shows the network: parameters and FLOPs of each part for one image (a multiply-add is two), and memory in float32.
Later configurations change earlier ones. RUN is a run directory, an experiment, or a checkpoint file.
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if argv else 2
    quiet()
    if argv[0].startswith("-") or Path(argv[0]).suffix in (".yaml", ".yml"):
        words = [w for a in argv for w in (["-c", a] if is_config(a, argv) else [a])]
        cli = DiffusionCLI(words, training=False)
        describe(cli.model.pipeline, cli.datamodule.batch_size)
    elif argv[1:]:
        raise ValueError(f"{argv[1]}: a run is described as it is; options go with a configuration file")
    else:
        describe(Pipeline.load(argv[0]))
    return 0


def is_config(word: str, argv: list[str]) -> bool:
    """A configuration file without its -c: among the words before the first option."""
    options = [i for i, a in enumerate(argv) if a.startswith("-")]
    return word in argv[: options[0] if options else None]


def describe(model: Pipeline, batch_size: int = 0) -> None:
    """Print the table of a model's network, and its memory."""
    net = model.denoiser.net
    flops, activations = cost(net, model)
    kinds = f", {net.num_classes} classes" if model.num_classes else ""
    kinds += f", {net.context_dim} context features" if model.context_dim else ""
    kinds += f", {type(model.hint).__name__}" if model.hint else ""
    params = sum(p.numel() for p in net.parameters())
    print(
        f"{type(net).__name__} on {'x'.join(map(str, model.shape))}{kinds}: {params:,} parameters, "
        f"{flops[''] / 1e9:.3f} GFLOPs an image"
    )
    print(f"  {'part':14}{'kind':22}{'parameters':>14}{'MFLOPs':>12}")
    for name, kind, count, spent in parts(net, flops):
        print(f"  {name:14}{kind:22}{count:14,}{spent / 1e6:12.2f}")
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    fixed = 5 * weights
    total = f"; {size(fixed + batch_size * activations)} at batch {batch_size}" if batch_size else ""
    print(
        f"memory in float32: weights {size(weights)}; training {size(fixed)} (weights, gradients, Adam's two averages, "
        f"EMA) and {size(activations)} of activations an image{total}"
    )


def parts(net: nn.Module, flops: dict[str, int]) -> Iterator[tuple[str, str, int, int]]:
    """(name, class, parameters, FLOPs) of each child; a list gives its items. Together they have all parameters."""

    def spent(name: str, part: nn.Module) -> int:
        """A list of modules is never called itself."""
        return flops.get(name) or sum(spent(f"{name}.{key}", child) for key, child in part.named_children())

    for name, child in net.named_children():
        items = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        for key, part in items:
            label = f"{name}.{key}".rstrip(".")
            yield label, type(part).__name__, sum(p.numel() for p in part.parameters()), spent(label, part)
    if own := sum(p.numel() for p in net.parameters(recurse=False)):
        yield "(own)", "Parameter", own, 0


def cost(net: nn.Module, model: Pipeline) -> tuple[dict[str, int], int]:
    """FLOPs by module name ("" is the whole), and the bytes kept for the backward pass, of one image."""
    C, H, W = model.shape
    device = next(net.parameters()).device
    x = torch.zeros(1, C * (1 + model.denoiser.self_condition) + model.denoiser.image_channels, H, W, device=device)
    y = torch.zeros(1, model.context_dim) if model.context_dim else model.in_turn(1)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        """Views of one storage count once, weights not at all; nothing is freed, so no address comes twice."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    net.train()
    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(x, torch.zeros(1, device=device), None if y is None else y.to(device))
    del out
    own = type(net).__name__
    counts = {k: sum(v.values()) for k, v in counter.get_flop_counts().items()}
    return {k.removeprefix(own).removeprefix("."): v for k, v in counts.items() if k.startswith(own)}, sum(
        kept.values()
    )


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
