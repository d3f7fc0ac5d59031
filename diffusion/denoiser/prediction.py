"""The condition and the prediction: what a denoiser receives and returns."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from diffusion.noise.level import Level


class Condition(NamedTuple):
    """What the image should show.

    Attributes:
        y: class labels (B,) int64, context vectors (B, D) float, tokens (B, L) int64, or texts that the network has
            encoded, (B, 1 + L, W) float.
        keep: (B,) bool; False replaces y by the network's learned null embedding. None keeps all.
        previous: (B, C, H, W), the previous prediction of x_0, for a self-conditioned network. None stands for zeros.
        image: (B, K, h, w), for a network with `image_channels` K: a smaller, masked or other image that it is
            conditioned on. It is never dropped: classifier-free guidance omits y alone.
        told: (B, K), how a training image was augmented; see `loss.augment`. None stands for zeros, "not at all".
    """

    y: Tensor | None = None
    keep: Tensor | None = None
    previous: Tensor | None = None
    image: Tensor | None = None
    told: Tensor | None = None

    def __repr__(self) -> str:
        given = (f"{k} {tuple(v.shape)}" for k, v in zip(self._fields, self, strict=True) if v is not None)
        return ", ".join(given) or "no condition"


class Prediction(NamedTuple):
    """A prediction at one level: x0 and eps, both (B, C, H, W), and x = alpha x0 + sigma eps always holds.

    Attributes:
        var: (B, C, H, W) for networks that learn the variance: from -1 for Var[x_s | x_t, x_0] to 1 for Var[x_t | x_s].
    """

    x0: Tensor
    eps: Tensor
    var: Tensor | None = None

    def jump(self, s: Level) -> Tensor:
        """x_0 and eps unchanged, recombined at level s: DDIM's step, or with a second clock the flow map to s."""
        return s.alpha * self.x0 + s.sigma * self.eps


Denoise = Callable[[Tensor, Level], Prediction]


def predict(x: Tensor, x0: Tensor, t: Level, var: Tensor | None = None) -> Prediction:
    """The prediction for a given x_0: eps = (x - alpha x_0) / sigma."""
    return Prediction(x0, (x - t.alpha * x0) / t.sigma, var)
