"""The extractor that judges samples of a data set, trained by the data set's own configuration."""

import json
from collections.abc import Callable

from diffusion.data import ImageData
from diffusion.judging.judge import called, configuration, no_extractor
from diffusion.support.specs import spec


def train_extractor(data: ImageData, fit: Callable[..., object]) -> None:
    """Train a data set's extractor on all of its images, as `diffusion fit` does with its configuration.

    Args:
        fit: `training.run.train`, which itself calls this function for a run that is evaluated during training.
    """
    print(f"{no_extractor(data)}: training one (once, minutes)", flush=True)
    chosen = spec(data)
    chosen["init_args"] |= {"limit": 0, "labels": True, "batch_size": 128}
    words = ["-c", str(configuration(data)), "--data", json.dumps(chosen), "--experiment", called(data)]
    fit([*words, "--trainer.devices", "1"], final=False)
