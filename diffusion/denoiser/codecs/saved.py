"""The codec of a saved model."""

import torch

from diffusion.denoiser.codecs.base import Codec
from diffusion.denoiser.codecs.identity import Identity
from diffusion.denoiser.saved import Saved, load_weights
from diffusion.support.specs import part


def load_codec(saved: Saved, device: torch.device | str = "cpu") -> Codec:
    """The codec of a diffusion model's file, with its weights; `Identity` for a model in pixels.

    Raises:
        ValueError: the file lacks the codec's weights, or has others than those of the recorded hash.
    """
    if not saved.hyper_parameters.get("codec"):
        return Identity()
    codec = part(saved.hyper_parameters, "codec", Codec)
    state = saved.checkpoint["state_dict"]
    if codec.state_dict() and not any(name.startswith("codec.") for name in state):
        raise ValueError(
            f"{saved.path}: the weights of its codec {codec.name} are missing; use the run's own checkpoint"
        )
    try:
        load_weights(codec, state, saved.path, "codec.")
    except ValueError as error:
        raise ValueError(f"{saved.path}: its codec {codec.name} does not fit: {error}") from error
    return codec.requires_grad_(False).to(device)
