"""LitDiffusion: diffusion models on PyTorch Lightning, from one small core of correct maths."""

import warnings
from importlib import import_module

__version__ = "0.1.0"

warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm without ipywidgets, where its bar is text

# The five names a notebook starts with, imported on first use: `import diffusion` alone costs no torch.
_HOMES = {
    "Diffusion": "diffusion.training.systems.diffusion",
    "Pipeline": "diffusion.generation.pipeline",
    "Denoiser": "diffusion.denoiser",
    "Condition": "diffusion.denoiser",
    "Prediction": "diffusion.denoiser",
    "Level": "diffusion.noise.level",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'diffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
