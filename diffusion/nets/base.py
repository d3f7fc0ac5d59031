"""The interface of networks."""

from typing import Any, ClassVar

from torch import Tensor, nn


class Net(nn.Module):
    """A network that predicts noise, an image or a velocity from a noisy image, its noise level and a condition.

        forward(x (B, in_channels, H, W), clock (B,), y=None, keep=None, to=None) -> (B, out_channels, H, W)

    It contains no diffusion maths: the clock is any real number, and the target defines what the output means.
    A subclass adds its own arguments and passes the others on: `super().__init__(channels=channels, **facts)`.
    Modules that do not derive from Net work too; missing attributes count as 0 or False.

    Args:
        channels: channels C of the images.
        learn_variance: output 2C channels, the second C for the variance of the reverse step (see Objective.vlb).
        self_condition: receive 2C channels, the second C the previous prediction of x_0 (see Objective.self_condition).
        num_classes: classes of the labels y (B,); 0 for none.
        context_dim: width D of context vectors y (B, D); 0 for none.
        image_channels: channels K of a conditioning image, concatenated to x (see Condition.image); 0 for none.
        second_clock: receive the clock of a second noise level, which the step from x ends at (see
            `loss.flow_map`); initially without effect.
        tokens: vocabulary of texts y (B, L), `Tokens.plain`; None for none. A network is conditioned on at most one of
            classes, contexts and text.
    Attributes:
        in_channels: C, or 2C with self_condition, plus K.
        out_channels: C, or 2C with learn_variance.
        reads_text: whether networks of this class can be conditioned on text.
    Raises:
        ValueError: tokens for a class that reads no text, or beside classes or contexts.
    """

    reads_text: ClassVar[bool] = False

    def __init__(
        self,
        channels: int = 1,
        learn_variance: bool = False,
        self_condition: bool = False,
        num_classes: int = 0,
        context_dim: int = 0,
        image_channels: int = 0,
        second_clock: bool = False,
        tokens: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if tokens and not self.reads_text:
            raise ValueError(f"{name}: reads no text; use UNet or DiT, or leave the captions out (data.labels: false)")
        if tokens and (num_classes or context_dim):
            raise ValueError(f"{name}: wanted text, labels or contexts, got several; set num_classes, context_dim to 0")
        self.tokens = tokens
        self.channels, self.learn_variance, self.self_condition = channels, learn_variance, self_condition
        self.num_classes, self.context_dim, self.image_channels = num_classes, context_dim, image_channels
        self.second_clock = second_clock
        self.in_channels = channels * (1 + self_condition) + image_channels
        self.out_channels = channels * (1 + learn_variance)

    def forward(
        self,
        x: Tensor,
        clock: Tensor,
        y: Tensor | None = None,
        keep: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """The prediction (B, out_channels, H, W) for x (B, in_channels, H, W).

        Args:
            clock: (B,), the schedule's encoding of the noise level; see `Schedule.clock`.
            y: labels (B,), context vectors (B, D), or tokens (B, L) or what `TextEncoder` made of them; None is "no
                condition" for the whole batch.
            keep: (B,) bool; False replaces y by the learned null embedding.
            to: (B,), the second clock; by default the first. Networks without `second_clock` do not use it.
        """
        raise NotImplementedError
