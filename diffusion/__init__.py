"""LitDiffusion: diffusion models on PyTorch Lightning, built on one small core of verified mathematics."""

import warnings
from importlib import import_module

__version__ = "0.2.0"

warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm without ipywidgets, where its bar is text

# The top-level API, imported on first use: `import diffusion` alone costs no torch.
_HOMES = {
    "Condition": "diffusion.denoiser",
    "Denoiser": "diffusion.denoiser",
    "Diffusion": "diffusion.training.systems.diffusion",
    "Level": "diffusion.noise.level",
    "Pipeline": "diffusion.generation.pipeline",
    "Prediction": "diffusion.denoiser",
    "average": "diffusion.denoiser.averages",
    "check": "diffusion.bench.report",
    "describe": "diffusion.training.describe",
    "edit": "diffusion.generation.editing.sheet",
    "evaluate": "diffusion.training.evaluate",
    "export": "diffusion.exchange.exporting.export",
    "film": "diffusion.generation.film",
    "fit": "diffusion.training.api",
    "import_run": "diffusion.exchange.importing.run",
    "nll": "diffusion.judging.nll",
    "prepare": "diffusion.preparing.prepare",
    "pull": "diffusion.exchange.importing.pulling",
    "sample": "diffusion.generation.sample",
    "validate": "diffusion.training.api",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'diffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
