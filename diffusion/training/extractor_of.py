"""The extractor that judges samples of a data set, trained by the data set's own configuration."""

from collections.abc import Callable

from diffusion.data import ImageData
from diffusion.judging.judge import no_extractor, recipe


def train_extractor(data: ImageData, fit: Callable[..., object]) -> None:
    """Train a data set's extractor on all of its images, as `diffusion fit` does with its configuration.

    Args:
        fit: `training.run.train`, which itself calls this function for a run that is evaluated during training.
    """
    print(f"{no_extractor(data)}: training one (once, minutes)", flush=True)
    fit([*recipe(data), "--trainer.devices", "1"], final=False)
