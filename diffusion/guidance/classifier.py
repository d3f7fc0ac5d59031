"""A classifier of noisy images, for classifier guidance."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.denoiser.saved import load_weights
from diffusion.noise.level import Level
from diffusion.noise.schedule import Schedule
from diffusion.support.runs import find_checkpoint, read_checkpoint
from diffusion.support.specs import build


class NoisyImageClassifier(nn.Module):
    """A network's prediction of p(y | x_t) at every level of a schedule.

        logits = net(c_in x_t, clock),    c_in = alpha / (alpha^2 + sigma^2)

    x_0 depends on x_t only through alpha x_t / sigma^2, so the gradient of log p(y | x_t) vanishes with alpha; c_in
    gives the network's gradient the same property, without large inputs at low noise. Sampling divides the gradient by
    alpha.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, sec. 4; c_in is ours: the best linear prediction of x_0 for data
    of variance 1 is c_in x_t.

    Args:
        net: (x (B, C, H, W), clock (B,)) -> logits (B, K).
        schedule: the schedule of the diffusion models it guides.
        shape: (C, H, W) of an image.
        class_names: names of the classes.
    """

    def __init__(
        self, net: nn.Module, schedule: Schedule, shape: Sequence[int] = (1, 32, 32), class_names: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.net, self.schedule, self.shape, self.class_names = net, schedule, tuple(shape), tuple(class_names)

    def forward(self, x: Tensor, t: Level) -> Tensor:
        """Logits (B, K) of x (B, C, H, W) at level t, one for the batch () or one per image (B,)."""
        clock = self.schedule.clock(t.t).to(x.device, x.dtype, non_blocking=True).reshape(-1).expand(len(x))
        t = t.like(x)
        return self.net(t.alpha / (t.alpha**2 + t.sigma**2) * x, clock)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "NoisyImageClassifier":
        """The classifier of a checkpoint file or run directory, in evaluation mode.

        Raises:
            FileNotFoundError: no checkpoint at this path.
            ValueError: the file is not a valid checkpoint of a classifier of noisy images.
        """
        file = find_checkpoint(path)
        checkpoint = read_checkpoint(file)
        known = checkpoint["hyper_parameters"]
        if "schedule" not in known or "target" in known:
            hint = "train one with: diffusion fit -c configs/mnist_classifier.yaml"
            raise ValueError(f"{file}: expected a classifier of noisy images; {hint}")
        taken = inspect.signature(cls.__init__).parameters
        model = cls(**{k: build(v) for k, v in known.items() if k in taken})
        load_weights(model, checkpoint["state_dict"], file)
        return model.eval().to(device)
