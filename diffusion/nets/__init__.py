"""Networks: forward(x, clock, y=None, keep=None, to=None) -> (B, C, H, W). They contain no diffusion maths."""

from diffusion.nets.attention_unet import AttentionUNet
from diffusion.nets.base import Net as Net  # the base class; the others are networks
from diffusion.nets.block_unet import BlockUNet
from diffusion.nets.context_unet import ContextUNet
from diffusion.nets.dit import DiT
from diffusion.nets.linear_unet import LinearUNet
from diffusion.nets.mlp import ResidualMLP
from diffusion.nets.unet import UNet

__all__ = ["AttentionUNet", "BlockUNet", "ContextUNet", "DiT", "LinearUNet", "ResidualMLP", "UNet"]
