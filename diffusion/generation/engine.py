"""ONNX Runtime in place of torch for a denoiser's network."""

from diffusion.denoiser import Denoiser
from diffusion.nets.onnx_net import OnnxNet, accelerated


def in_onnx(denoiser: Denoiser, shape: tuple[int, int, int], plain: bool) -> Denoiser:
    """The denoiser with its network evaluated by ONNX Runtime.

    Args:
        plain: float32 on the CPU is wanted.
    Raises:
        ValueError: another precision or device, or the network cannot be exported.
    """
    if not plain:
        raise ValueError("ONNX Runtime computes in float32 on the CPU; leave out --precision, --compile and --device")
    if isinstance(denoiser.net, OnnxNet):
        return denoiser
    return Denoiser(accelerated(denoiser.net, shape), denoiser.schedule, denoiser.target).eval()
