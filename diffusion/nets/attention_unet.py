"""AttentionUNet, the reference network: a U-Net of double convolutions with self-attention at low resolution."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.embed import ConditionEmbedding, code


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with a GroupNorm of one group; with `residual`, gelu(x + f(x))."""

    def __init__(self, c_in: int, c_out: int, c_mid: int | None = None, residual: bool = False, dropout: float = 0.0):
        super().__init__()
        c_mid = c_mid or c_out
        self.residual = residual
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_mid, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_mid),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(c_mid, c_out, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.body(x)) if self.residual else self.body(x)


class Down(nn.Sequential):
    """Halve the size by max-pooling, then convolve: (B, c_in, H, W) -> (B, c_out, H/2, W/2)."""

    def __init__(self, c_in: int, c_out: int, dropout: float = 0.0):
        super().__init__(
            nn.MaxPool2d(2),
            DoubleConv(c_in, c_in, residual=True, dropout=dropout),
            DoubleConv(c_in, c_out, dropout=dropout),
        )


class Up(nn.Module):
    """Double the size, join the skip connection, convolve: c_in counts both inputs together."""

    def __init__(self, c_in: int, c_out: int, dropout: float = 0.0):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.body = nn.Sequential(
            DoubleConv(c_in, c_in, residual=True, dropout=dropout),
            DoubleConv(c_in, c_out, c_in // 2, dropout=dropout),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.body(torch.cat([skip, self.up(x)], dim=1))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels, then a two-layer perceptron, each residual and pre-normed."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        if channels % heads:
            raise ValueError(f"SelfAttention: {heads} heads do not divide {channels} channels")
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        x = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(self.norm(x)).view(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v)  # (B, heads, HW, C / heads)
        x = x + self.proj(a.transpose(1, 2).reshape(B, H * W, C))
        x = x + self.mlp(x)
        return x.transpose(1, 2).reshape(B, C, H, W)


class AttentionUNet(nn.Module):
    """The self-attention U-Net that this project began with; at its default widths 12,919,041 parameters.

    Level l works at size H / 2^l with widths[l] channels. Every stage but the first adds the clock's sinusoidal
    code and, if there is a condition, a linear map of its embedding. Attention follows each stage at level 2 or deeper.

    Args:
        channels: channels C of the images.
        widths: channels of each level, from full size down, each even; its depth is len(widths) - 1 >= 1.
        heads: attention heads; 32 to 64 channels a head are fast.
        attention: the shallowest level that has attention.
        dropout: probability, in [0, 1), inside the double convolutions.
        ones: append a channel of ones to the input. The first GroupNorm divides the image's overall brightness out;
            beside a constant it can be read again. Matters most for small images of few grey levels.
        learn_variance: say 2C channels, the second C for the variance of the reverse step (see Objective.vlb).
        self_condition: take 2C channels, the second C the network's last guess of x_0 (see Objective.guess).
        num_classes: classes of the labels y (B,); 0 for none.
        context_dim: width D of context vectors y (B, D); 0 for none.
        image_channels: channels K of an image that is shown beside x (see Condition.image); 0 for none.
    Raises:
        ValueError: fewer than two widths, odd widths, or an image that the depth does not divide.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (64, 128, 256, 256),
        heads: int = 4,
        attention: int = 2,
        dropout: float = 0.0,
        ones: bool = False,
        learn_variance: bool = False,
        self_condition: bool = False,
        num_classes: int = 0,
        context_dim: int = 0,
        image_channels: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) < 2 or any(w < 2 or w % 2 for w in widths):
            raise ValueError(f"AttentionUNet: widths must be two or more even numbers, got {list(widths)}")
        self.channels, self.widths, self.heads, self.attention = channels, tuple(widths), heads, attention
        self.dropout, self.ones, self.num_classes, self.context_dim = dropout, ones, num_classes, context_dim
        self.image_channels = image_channels
        self.learn_variance, self.self_condition = learn_variance, self_condition
        self.depth = depth = len(widths) - 1
        w = self.widths
        ups = [w[max(level - 1, 0)] for level in reversed(range(depth))]  # channels after each up stage
        self.inc = DoubleConv(channels * (1 + self_condition) + image_channels + ones, w[0])
        self.downs = nn.ModuleList(Down(w[i], w[i + 1], dropout) for i in range(depth))
        self.ups = nn.ModuleList(
            Up((w[-1] if i == 0 else ups[i - 1]) + w[depth - 1 - i], c, dropout) for i, c in enumerate(ups)
        )
        self.outc = nn.Conv2d(w[0], channels * (1 + learn_variance), 1)
        levels = [*range(1, depth + 1), *reversed(range(depth))]
        stages = list(zip(levels, [*w[1:], *ups], strict=True))  # (level, channels) of each
        self.attentions = nn.ModuleList(
            SelfAttention(c, heads) if level >= attention else nn.Identity() for level, c in stages
        )
        self.condition: nn.Module | None = None
        if num_classes or context_dim:
            self.condition = ConditionEmbedding(num_classes, context_dim, 4 * w[0])
            self.maps = nn.ModuleList(nn.Linear(4 * w[0], c) for _, c in stages)

    def forward(self, x: Tensor, clock: Tensor, y: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) at clock (B,) -> (B, C, H, W); more channels in or out if so made."""
        if x.shape[1] != (wanted := self.channels * (1 + self.self_condition) + self.image_channels):
            raise ValueError(f"AttentionUNet: made for {wanted} channels, got images of {x.shape[1]}")
        step = 2**self.depth
        H, W = x.shape[-2:]
        if H % step or W % step:
            pad = [-(-n // step) * step for n in (H, W)]
            raise ValueError(
                f"AttentionUNet: {H}x{W} does not divide by 2^{self.depth}; "
                f"pad to {pad[0]}x{pad[1]} or give fewer than {self.depth + 1} widths"
            )
        stage = 0
        features = None if self.condition is None else self.condition(y, keep, len(x))

        def tell(x: Tensor) -> Tensor:
            """Add clock and condition to a stage's output, then attend."""
            nonlocal stage
            added = code(clock, x.shape[1]).to(x.dtype)
            if features is not None:
                added = added + self.maps[stage](features)
            x = self.attentions[stage](x + added[:, :, None, None])
            stage += 1
            return x

        x = self.inc(torch.cat([x, torch.ones_like(x[:, :1])], dim=1) if self.ones else x)
        skips = [x]
        for down in self.downs:
            x = tell(down(x))
            skips.append(x)
        skips.pop()
        for up in self.ups:
            x = tell(up(x, skips.pop()))
        return self.outc(x)
