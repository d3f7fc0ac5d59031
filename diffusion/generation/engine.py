"""How a denoiser's network is evaluated: by ONNX Runtime, or in the fastest way, measured on request."""

import warnings
from typing import Literal

from diffusion.denoiser import Denoiser
from diffusion.nets.fastest import Measured, called, choose, difference, evaluated, probe, several
from diffusion.nets.onnx_net import OnnxNet, accelerated
from diffusion.nets.speed import affordable
from diffusion.nets.threads import FASTEST, take

Engine = Literal["torch", "onnx", "fastest"]
ENGINES = ("torch", "onnx", "fastest")
ROWS = 64  # images per evaluation that "fastest" measures, unless the caller knows better
PROBED = 8  # images that show how much a way changes the network's output


def in_onnx(denoiser: Denoiser, shape: tuple[int, int, int], plain: bool) -> Denoiser:
    """The denoiser with its network evaluated by ONNX Runtime.

    Args:
        shape: (C, H, W) of what it works on.
        plain: float32 on the CPU is wanted.
    Raises:
        ValueError: another precision or device, or the network cannot be exported.
    """
    if not plain:
        raise ValueError("ONNX Runtime computes in float32 on the CPU; leave out --precision, --compile and --device")
    if isinstance(denoiser.net, OnnxNet):
        return denoiser
    return Denoiser(accelerated(denoiser.net, shape), denoiser.schedule, denoiser.target).eval()


def fastest(denoiser: Denoiser, shape: tuple[int, int, int], rows: int, free: bool) -> tuple[Denoiser, str]:
    """The denoiser with its network evaluated in the fastest way here, and the name of the way; both are told.

    Results differ from torch's in their last bits; by how much the network's output does is told, too.

    Args:
        shape: (C, H, W) of what it works on.
        rows: images per evaluation.
        free: neither a precision nor compilation is requested.
    Raises:
        ValueError: they are, or the network is in a file for ONNX Runtime.
    """
    if not free:
        raise ValueError("engine fastest chooses precision and compilation; leave out --precision and --compile")
    net = denoiser.net
    if isinstance(net, OnnxNet):
        raise ValueError("engine fastest: an .onnx file is always evaluated by ONNX Runtime; leave out --engine")
    device = next((p.device.type for p in net.parameters()), "cpu")
    way, why = choose(net, shape, rows, device)
    if way == "torch":
        warnings.warn(f"engine fastest: torch; {why}", Measured, stacklevel=3)
        return denoiser, way
    given = probe(net, shape, PROBED)
    wanted = called(net, None, given)
    mine, half = evaluated(net, way, shape)
    changed = difference(wanted, called(mine, half, given))
    warnings.warn(f"engine fastest: {way}; {why}; largest difference {changed}", Measured, stacklevel=3)
    if mine is not net:
        denoiser = Denoiser(mine, denoiser.schedule, denoiser.target).eval()
    denoiser.precision = half
    return denoiser, way


def threads_of(denoiser: Denoiser, shape: tuple[int, int, int], threads: int | str | None, rows: int) -> str:
    """Set torch's number of threads for a denoiser as requested, and say what was measured; see `nets.threads.take`."""
    net, step, refused = denoiser.net, lambda: None, ""
    if threads == FASTEST:
        device = next((p.device.type for p in net.parameters()), "cpu")
        refused = several() or ("the network is on a GPU" if device != "cpu" else "")
        refused = refused or ("ONNX Runtime evaluates this network" if isinstance(net, OnnxNet) else "")
    if threads == FASTEST and not refused:
        given = probe(net, shape, affordable(lambda n: called(net, None, probe(net, shape, n)), rows))
        step = lambda: called(net, None, given)  # noqa: E731
    return take(threads, step, refused)
