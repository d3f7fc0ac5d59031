"""Where files live: one place decides, and never by the current directory."""

import os
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def data_root(explicit: str | os.PathLike | None = None) -> Path:
    """The folder of the data sets: explicit | $SM_CHANNEL_TRAINING | $DIFFUSION_DATA | <repository>/data."""
    chosen = explicit or os.environ.get("SM_CHANNEL_TRAINING") or os.environ.get("DIFFUSION_DATA")
    return Path(chosen).expanduser().absolute() if chosen else REPO / "data"


def run_root(explicit: str | os.PathLike | None = None) -> Path:
    """The folder of the runs: explicit | $DIFFUSION_OUT | SageMaker's checkpoints | <repository>/lightning_logs."""
    chosen = explicit or os.environ.get("DIFFUSION_OUT")
    if not chosen and os.environ.get("SM_MODEL_DIR"):  # a training job: this folder is synced while it runs
        chosen = "/opt/ml/checkpoints"
    return Path(chosen).expanduser().absolute() if chosen else REPO / "lightning_logs"


def cache_root() -> Path:
    """The folder of what can be made again, as the metrics' classifiers: $DIFFUSION_CACHE | ~/.cache/litdiffusion."""
    chosen = os.environ.get("DIFFUSION_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "litdiffusion"
