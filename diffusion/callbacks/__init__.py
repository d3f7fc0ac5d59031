"""Callbacks: averaged weights, checkpoints, diagnostics, evaluation, guard, pictures and progress."""

from diffusion.callbacks.checkpoint import Checkpoint, DurableIO
from diffusion.callbacks.diagnostics import Diagnostics
from diffusion.callbacks.ema import EMA
from diffusion.callbacks.evaluation import Evaluation
from diffusion.callbacks.guard import Guard
from diffusion.callbacks.pictures import Gif, Samples
from diffusion.callbacks.progress import Lines, Rate

__all__ = ["EMA", "Checkpoint", "Diagnostics", "DurableIO", "Evaluation", "Gif", "Guard", "Lines", "Rate", "Samples"]
