"""Callbacks: averaged weights, checkpoints, evaluation, pictures and progress."""

from diffusion.callbacks.checkpoint import Checkpoint, DurableIO
from diffusion.callbacks.ema import EMA
from diffusion.callbacks.evaluation import Evaluation
from diffusion.callbacks.pictures import Gif, Samples
from diffusion.callbacks.progress import Lines, Rate

__all__ = ["EMA", "Checkpoint", "DurableIO", "Evaluation", "Gif", "Lines", "Rate", "Samples"]
