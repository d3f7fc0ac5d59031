"""Frozen: the codec of a trained autoencoder."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from diffusion.denoiser.codecs.base import Codec, fingerprint
from diffusion.denoiser.saved import load_weights
from diffusion.support.runs import find_checkpoint, read_checkpoint
from diffusion.support.scaling import Scaling
from diffusion.support.specs import part


class Frozen(Codec):
    """The encoder and decoder of a trained autoencoder, without their training.

    The weights become part of the model: they are saved in its file, so that it needs the autoencoder's run neither
    for sampling nor in another folder. Latents are the means of the encoder's distributions, without noise.

    Args:
        autoencoder: run directory or checkpoint of an `Autoencoder`.
        weights: the exponential moving average (where its run kept one), or the raw weights of the last step.
        hash: of the autoencoder's weights, filled in automatically; other weights are then rejected.
        net: the autoencoder's network, filled in automatically. A model's file gives it, and the weights follow.
        scaling: of the images that it was trained on, in plain types, filled in automatically.
    Raises:
        FileNotFoundError: no checkpoint at this path.
        ValueError: the file is not an autoencoder's, or its weights have changed.
    """

    def __init__(
        self,
        autoencoder: str,
        weights: Literal["ema", "raw"] = "ema",
        hash: str = "",
        net: nn.Module | None = None,
        scaling: Mapping[str, Any] | None = None,
    ) -> None:
        read = None
        if net is None:
            read = read_autoencoder(autoencoder, weights)
            net, scaling = read
        super().__init__(net.channels, net.latent, net.factor)
        self.autoencoder, self.weights, self.hash = str(autoencoder), weights, hash
        self.scaling = dict(scaling) if scaling else None
        self.net = net.requires_grad_(False)
        if read:
            self.check()
            self.hash = fingerprint(self.net)
        self.register_load_state_dict_post_hook(lambda module, keys: module.check())
        self.train(False)

    @property
    def name(self) -> str:
        return f"Frozen({self.autoencoder}, hash {self.hash})"

    def check(self) -> None:
        """Reject other weights than those of the recorded hash.

        Raises:
            ValueError: the weights have changed.
        """
        if self.hash and (now := fingerprint(self.net)) != self.hash:
            raise ValueError(
                f"{self.autoencoder}: has changed since it was chosen as the codec: "
                f"expected hash {self.hash}, got {now}"
            )

    def prepare(self, images: Callable[[], Iterable[Tensor]]) -> None:
        """Check the weights, which a configuration that names the network has not brought."""
        self.check()

    def code(self, x0: Tensor) -> Tensor:
        return self.net.encode(x0)

    def image(self, code: Tensor) -> Tensor:
        return self.net.decode(code)


def read_autoencoder(path: str, weights: Literal["ema", "raw"] = "ema") -> tuple[nn.Module, dict[str, Any] | None]:
    """The network of an autoencoder's checkpoint, with its weights, and the scaling of its images in plain types.

    Raises:
        FileNotFoundError: no checkpoint at this path.
        ValueError: the file is not an autoencoder's.
    """
    file = find_checkpoint(path)
    checkpoint = read_checkpoint(file)
    known = checkpoint["hyper_parameters"]
    net = part(known, "net", nn.Module) if "target" not in known else None
    if not all(hasattr(net, name) for name in ("encode", "decode", "channels", "latent", "factor")):
        raise ValueError(f"{file}: expected an autoencoder; train one with: diffusion fit --system Autoencoder")
    state = dict(checkpoint["state_dict"])
    if weights == "ema":
        state.update(checkpoint.get("callbacks", {}).get("EMA", {}).get("shadow", {}))
    load_weights(net, state, file, "net.")
    scaling = known.get("scaling")
    return net.eval(), Scaling.of(scaling).plain if scaling else None
