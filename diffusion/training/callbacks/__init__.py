"""Callbacks: averaged weights, checkpoints, diagnostics, evaluation, guard, pictures, progress and the machine."""

from diffusion.training.callbacks.budget import Budget
from diffusion.training.callbacks.checkpoint import Checkpoint, DurableIO
from diffusion.training.callbacks.crowd import Crowd
from diffusion.training.callbacks.diagnostics import Diagnostics
from diffusion.training.callbacks.ema import EMA
from diffusion.training.callbacks.evaluation import Evaluation
from diffusion.training.callbacks.guard import Guard
from diffusion.training.callbacks.pictures import Gif, Samples
from diffusion.training.callbacks.posthoc import PostHoc
from diffusion.training.callbacks.progress import Lines, Rate
from diffusion.training.callbacks.ranks import Ranks
from diffusion.training.callbacks.reconstructions import Reconstructions
from diffusion.training.callbacks.signals import Signals
from diffusion.training.callbacks.watch import Watch

__all__ = [
    "EMA",
    "Budget",
    "Checkpoint",
    "Crowd",
    "Diagnostics",
    "DurableIO",
    "Evaluation",
    "Gif",
    "Guard",
    "Lines",
    "PostHoc",
    "Ranks",
    "Rate",
    "Reconstructions",
    "Samples",
    "Signals",
    "Watch",
]
