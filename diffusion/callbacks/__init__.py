"""Callbacks: averaged weights, checkpoints, diagnostics, evaluation, guard, pictures and progress."""

from diffusion.callbacks.budget import Budget
from diffusion.callbacks.checkpoint import Checkpoint, DurableIO
from diffusion.callbacks.diagnostics import Diagnostics
from diffusion.callbacks.ema import EMA
from diffusion.callbacks.evaluation import Evaluation
from diffusion.callbacks.guard import Guard
from diffusion.callbacks.pictures import Gif, Samples
from diffusion.callbacks.progress import Lines, Rate
from diffusion.callbacks.ranks import Ranks
from diffusion.callbacks.signals import Signals, Stopped

__all__ = [
    "EMA",
    "Budget",
    "Checkpoint",
    "Diagnostics",
    "DurableIO",
    "Evaluation",
    "Gif",
    "Guard",
    "Lines",
    "Ranks",
    "Rate",
    "Samples",
    "Signals",
    "Stopped",
]
