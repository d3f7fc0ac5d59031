"""The codec of a model in training: whether it fits network, hint and data, and the measures of its latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion.data.store import Store
from diffusion.denoiser.codecs.base import Codec
from diffusion.denoiser.codecs.identity import Identity
from diffusion.denoiser.hints import Hint, Paired, channels
from diffusion.support.console import progress
from diffusion.support.scaling import Scaling

if TYPE_CHECKING:
    from diffusion.training.systems.diffusion import Diffusion

MEASURED = 256  # images encoded at a time, when latents are measured


def hinted(hint: Hint, codec: Codec, shape: Sequence[int]) -> int:
    """Channels of the image that the network receives for a hint of images (C, H, W)."""
    its = hint.shape(shape)
    return channels(its, codec.latent_shape(shape)) if codec.latent else its[0]


def refuse(codec: Codec, net: nn.Module, shape: Sequence[int], scaling: Scaling) -> None:
    """Reject a codec that does not fit the network or the images.

    Raises:
        ValueError: it does not fit; the message says what differs.
    """
    C, h, w = codec.latent_shape(shape)
    if (its := getattr(net, "channels", C)) != C:
        raise ValueError(
            f"{codec.name}: its latents have {C} channels ({C}x{h}x{w}); make the network with channels {C}, not {its}"
        )
    if (its := getattr(codec, "scaling", None)) is not None and Scaling.of(its) != scaling:
        raise ValueError(f"{codec.name}: trained on images scaled by {Scaling.of(its)}, these are scaled by {scaling}")


def prepare(model: Diffusion, data: Any) -> bool:
    """Measure the latents of the training images, unless a checkpoint has brought the measures.

    If the data are to give latents (`ImageData.latents`), they are encoded once, and measured as they are encoded.

    Returns:
        Whether training batches are latents.
    Raises:
        ValueError: data that are to give latents of a model without a codec, or of one that changes images or makes
            hints of them in each batch; or latents to be measured on other data than `ImageData`.
    """
    codec, coded = model.pipeline.codec, getattr(data, "latents", "fly") == "cache"
    if coded:
        refuse_cache(model)
    if isinstance(codec, Identity) or (codec.fitted and not coded):
        return coded
    if not hasattr(data, "store"):
        raise ValueError(f"{codec.name}: latents are measured on the images of an `ImageData`; train on one")
    images = partial(passed, data.store("train")[0], model.pipeline.scaling.encode, codec.shift.device)
    if not coded:
        in_first(model, partial(codec.fit, partial(images, "measuring latents")))
        return coded
    if not codec.fitted:
        in_first(model, partial(codec.prepare, partial(images, "fitting the codec")))

    @torch.no_grad()
    def encode(x0: Tensor) -> Tensor:
        return torch.cat([codec.code(part.to(codec.shift.device)) for part in x0.split(MEASURED)])

    def measure(codes: Store) -> Scaling:
        if not codec.fitted:  # in every process, of the same codes
            codec.measure(passed(codes, lambda code: code, codec.shift.device))
        return codec.measures

    if not model.trainer.is_global_zero:  # the first process writes the cache's file, if there is to be one
        model.trainer.strategy.barrier()
    data.encode_once(encode, codec.code_mark, measure)
    if model.trainer.is_global_zero:
        model.trainer.strategy.barrier()
    return coded


def refuse_cache(model: Diffusion) -> None:
    """Reject `data.latents: cache` for a model that needs the images of each batch, or that has no latents.

    Raises:
        ValueError: see `prepare`.
    """
    hint = model.pipeline.hint
    if isinstance(model.pipeline.codec, Identity):
        raise ValueError("data.latents cache: this model has no codec; give one with --model.codec")
    if model.augment:
        raise ValueError(
            f"data.latents cache: {type(model.augment).__name__} changes the images in each epoch, and latents are "
            "encoded once; use data.latents fly, or leave model.augment out"
        )
    if hint and not isinstance(hint, Paired):
        raise ValueError(
            f"data.latents cache: {type(hint).__name__} makes hints of the images of each batch; use data.latents fly"
        )


def in_first(model: Diffusion, change: Callable[[], None]) -> None:
    """Change the codec in the first process; the others receive it from there."""
    codec, trainer = model.pipeline.codec, model.trainer
    if trainer.is_global_zero:
        change()
    if trainer.world_size > 1:
        codec.load_state_dict(trainer.strategy.broadcast(codec.state_dict()))


def passed(images: Store, read: Callable[[Tensor], Tensor], device: torch.device, what: str = "") -> Iterator[Tensor]:
    """All images of a store in batches, with a progress bar if it has a name."""
    with progress(len(images), what=what, unit="img", shown=bool(what)) as bar:
        for index in torch.arange(len(images)).split(MEASURED):
            yield read(images.take(index).to(device))
            bar.update(len(index))
