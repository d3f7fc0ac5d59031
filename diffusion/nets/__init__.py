"""Networks: forward(x (B, C, H, W), clock (B,), y=None, keep=None) -> (B, C, H, W), and no maths of diffusion."""

from diffusion.nets.attention_unet import AttentionUNet

__all__ = ["AttentionUNet"]
