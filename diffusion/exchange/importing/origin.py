"""Lightning checkpoints of the self-attention U-Net that this project started from."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion.denoiser.targets import Eps
from diffusion.exchange.importing.found import Imported, Unsupported, flag
from diffusion.exchange.importing.reading import read_torch
from diffusion.exchange.rows import Row, pair, read
from diffusion.guidance.bounds import Unbounded
from diffusion.nets.attention_unet import AttentionUNet
from diffusion.noise import Linear
from diffusion.samplers import DDPM

NAME, FLAGS = "origin", {"t_range": "diffusion steps of the DiffusionModel"}
SIZE = 32  # its position encodings are made for this size alone
START, END = 1e-4, 0.02


def fits(found: Any) -> bool:
    """Whether the contents of a file are a checkpoint of the origin."""
    return isinstance(found, dict) and "inc.double_conv.0.weight" in (found.get("state_dict") or {})


def table() -> list[Row]:
    """Every parameter of AttentionUNet beside those of the origin."""

    def double(ours: str, theirs: str) -> Iterator[Row]:
        for mine, its in ((0, 0), (1, 1), (4, 3), (5, 4)):  # ours has a dropout at 3
            yield from pair(f"{ours}.body.{mine}", f"{theirs}.double_conv.{its}", bias=mine in (1, 5))

    def rows() -> Iterator[Row]:
        yield from double("inc", "inc")
        for k in range(3):
            yield from double(f"downs.{k}.1", f"down{k + 1}.maxpool_conv.1")
            yield from double(f"downs.{k}.2", f"down{k + 1}.maxpool_conv.2")
            yield from double(f"ups.{k}.body.0", f"up{k + 1}.conv")
            yield from double(f"ups.{k}.body.1", f"up{k + 1}.conv2")
        for stage, k in ((1, 1), (2, 2), (3, 3)):
            ours, theirs = f"attentions.{stage}", f"sa{k}.sa.0"
            yield from pair(f"{ours}.norm", f"{theirs}.ln")
            for name in ("weight", "bias"):
                yield Row(f"{ours}.qkv.{name}", (f"{theirs}.mha.in_proj_{name}",))
            yield from pair(f"{ours}.proj", f"{theirs}.mha.out_proj")
            for part in (0, 1, 3):
                yield from pair(f"{ours}.mlp.{part}", f"{theirs}.ff_self.{part}")
        yield from pair("outc", "outc.conv")

    return list(rows())


def schedule_of(t_range: int) -> Linear:
    """Its levels t = 1 .. T-1: alpha-bar is the product of 1 - beta_j over j < t, beta_j = 1e-4 + j / T (0.02 - 1e-4).

    Its level 0 is the clean image.
    """
    return Linear(t_range - 1, START, START + (t_range - 2) / t_range * (END - START), rescale=False)


def load(path: Path, flags: Mapping[str, Any], found: Any = None) -> Imported:
    """The model of a Lightning checkpoint.

    Raises:
        Unsupported: the network has other widths.
        ValueError: t_range is missing, or weights do not fit.
    """
    found = read_torch(path) if found is None else found
    state: dict[str, Tensor] = found["state_dict"]
    T = flag(flags, "t_range", int, (found.get("hyper_parameters") or {}).get("t_range"))
    if T is None:
        raise ValueError(
            f"{path}: needs the diffusion steps of its DiffusionModel, which are not in it: --t_range 1000"
        )
    if T < 4:
        raise ValueError(f"--t_range: wanted at least 4, got {T}")
    first = state["inc.double_conv.0.weight"]
    if len(first) != 64:
        raise Unsupported(f"{path}: a first width of {len(first)} is not supported, only the origin's 64")
    net = AttentionUNet(first.shape[1], clock_shift=1.0)
    weights = read(net, table(), state, str(path))
    # Its variance is beta_t, its x_0 has no limit.
    sampler, shape = DDPM(T - 1, "large"), (first.shape[1], SIZE, SIZE)
    step = found.get("global_step", 0)
    return Imported(NAME, net, weights, schedule_of(T), Eps(), sampler, Unbounded(), shape, step=step)
