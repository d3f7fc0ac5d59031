"""Identity: the codec of models in pixels."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from diffusion.denoiser.codecs.base import Codec


class Identity(Codec):
    """The latent is the image itself, to the bit. It has no weights, and any images fit."""

    def __init__(self) -> None:
        super().__init__(0, 0, 1)
        for name in list(self._buffers):  # a file of a model in pixels holds nothing of it
            delattr(self, name)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape of the image."""
        return tuple(shape)

    def code(self, x0: Tensor) -> Tensor:
        return x0

    def image(self, code: Tensor) -> Tensor:
        return code

    def encode(self, x0: Tensor) -> Tensor:
        """The images themselves."""
        return x0

    def decode(self, z: Tensor) -> Tensor:
        """The latents themselves."""
        return z

    def fit(self, images: Callable[[], Iterable[Tensor]]) -> None:
        """No-op."""
