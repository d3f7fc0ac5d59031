"""ConvAutoencoder: a convolutional encoder and decoder for images of any size that the factor divides."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.nets.bottleneck import Bottleneck, Coded, Gaussian
from diffusion.nets.layers import Down, PixelAttention, Up, check, group_norm, zero


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), initially its shortcut."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(c_out), zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Beside(nn.Module):
    """layers(x) + linear(x), initially linear(x).

    Norms inside the layers take away an image's own mean and contrast, which the linear map keeps.
    """

    def __init__(self, layers: nn.Sequential, linear: nn.Module) -> None:
        super().__init__()
        self.layers, self.linear = layers, linear
        zero(layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.linear(x)


class ConvAutoencoder(nn.Module):
    """Residual blocks with halvings to the latent, and their mirror image to the picture.

    Without attention it is convolutional throughout: trained on small images it takes larger ones.
    Source: Rombach et al. 2022, arXiv:2112.10752, app. G.

    Args:
        channels: channels C of the images.
        latent: channels of the latents.
        width: channels at full size, a multiple of 4.
        mults: channels of each level in units of width; each further level halves the size.
        blocks: residual blocks per level, >= 1.
        attention: whether the pixels of the smallest level attend to each other.
        bottleneck: `Gaussian` (KL) or `Codebook` (VQ).
        linear: a linear map of factor x factor patches beside the encoder, and one to patches beside the decoder, so
            that training starts from a linear codec.
    Attributes:
        factor: 2^(levels - 1).
    Raises:
        ValueError: a number out of range, or images of another shape.
    """

    def __init__(
        self,
        channels: int = 1,
        latent: int = 4,
        width: int = 32,
        mults: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        attention: bool = False,
        bottleneck: Bottleneck = Gaussian(),
        linear: bool = False,
    ) -> None:
        super().__init__()
        if not mults or min(mults) < 1 or min(blocks, latent, channels) < 1 or width < 4 or width % 4:
            raise ValueError(
                "ConvAutoencoder: expected mults, blocks, latent and channels >= 1 and width a multiple of 4; "
                f"got {list(mults)}, {blocks}, {latent}, {channels} and {width}"
            )
        self.channels, self.latent, self.width, self.mults = channels, latent, width, tuple(mults)
        self.blocks, self.attention, self.bottleneck, self.linear = blocks, attention, bottleneck, linear
        self.in_channels, self.factor = channels, 2 ** (len(mults) - 1)
        bottleneck.made_for(latent)
        most = mults[-1] * width
        down, c = [nn.Conv2d(channels, width, 3, padding=1)], width
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                down.append(Residual(c, mult * width))
                c = mult * width
            if level + 1 < len(mults):
                down.append(Down(c, c))
        self.encoder = nn.Sequential(*down, *self.middle(most), *last(most, bottleneck.outputs(latent)))
        up = [nn.Conv2d(latent, most, 3, padding=1), *self.middle(most)]
        for level, mult in reversed(list(enumerate(mults))):
            for _ in range(blocks):
                up.append(Residual(c, mult * width))
                c = mult * width
            if level:
                up.append(Up(c, c))
        self.decoder = nn.Sequential(*up, *last(c, channels))
        if linear:
            f = self.factor
            self.encoder = Beside(self.encoder, nn.Conv2d(channels, bottleneck.outputs(latent), f, f))
            self.decoder = Beside(self.decoder, nn.ConvTranspose2d(latent, channels, f, f))

    def middle(self, width: int) -> list[nn.Module]:
        """The layers of the smallest level beside its blocks."""
        return [Residual(width, width), *([PixelAttention(width)] if self.attention else []), Residual(width, width)]

    @property
    def final(self) -> nn.Parameter:
        """The weights of the decoder's last layer, at which gradients of losses are compared."""
        return (self.decoder.layers if self.linear else self.decoder)[-1].weight

    def code(self, x: Tensor, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Coded:
        """The latents of images (B, C, H, W) in training, with their costs, float32.

        Args:
            noise: returns N(0, I) of a tensor's shape.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self.bottleneck(self.encoded(x), noise)

    def encode(self, x: Tensor) -> Tensor:
        """The latents (B, latent, h, w) of images (B, C, H, W), without noise."""
        return self.bottleneck.mode(self.encoded(x))

    def encoded(self, x: Tensor) -> Tensor:
        """The encoder's output (B, outputs, h, w), float32 or float64."""
        check(self, x, self.factor, f"give fewer than {len(self.mults)} mults")
        h = self.encoder(x)
        return h if h.dtype == torch.float64 else h.float()

    def decode(self, z: Tensor) -> Tensor:
        """The images (B, C, H, W) of latents (B, latent, h, w)."""
        return self.decoder(self.bottleneck.snap(z))

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of images (B, C, H, W), without noise."""
        return self.decode(self.encode(x))


class Patches(nn.Module):
    """A discriminator of patches: logits (B, 1, h, w), positive for real images.

    Source: Isola et al. 2017, arXiv:1611.07004, app. 6.1, with group norms, which keep images independent.

    Args:
        channels: channels C of the images.
        width: channels of the first layer, a multiple of 4.
        layers: halvings, >= 1.
    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, channels: int = 1, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        if min(channels, layers) < 1 or width < 4 or width % 4:
            raise ValueError(
                "Patches: channels and layers must be at least 1 and width a multiple of 4; "
                f"got {channels}, {layers} and {width}"
            )
        self.channels, self.width, self.layers = channels, width, layers
        parts, c = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)], width
        for _ in range(layers - 1):
            parts += [nn.Conv2d(c, 2 * c, 4, 2, 1), group_norm(2 * c), nn.LeakyReLU(0.2)]
            c *= 2
        self.net = nn.Sequential(*parts, nn.Conv2d(c, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H / 2^layers, W / 2^layers)."""
        return self.net(x)


def last(c_in: int, c_out: int) -> list[nn.Module]:
    """Norm, activation and the last convolution."""
    return [group_norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)]
