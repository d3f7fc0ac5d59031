"""Pairings: the assignment of noise to a batch's images."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Pairing(ABC):
    """A reordering of the noise within a batch, applied before x_t and the targets are computed."""

    @abstractmethod
    def __call__(self, x0: Tensor, eps: Tensor) -> Tensor:
        """eps (B, C, H, W), reordered along the batch."""


class Independent(Pairing):
    """The noise in the order drawn."""

    def __call__(self, x0: Tensor, eps: Tensor) -> Tensor:
        return eps


class OptimalTransport(Pairing):
    """The pairing with the smallest sum of squared distances |x_0 - eps|^2 in the batch.

    Paths from noise to image cross less, so that fewer steps are needed. The noise of the batch is still N(0, I), but
    not the noise of one class's images: a conditional model is trained on a slightly tilted prior.
    Source: Tong et al. 2023, arXiv:2302.00482, sec. 3.2 (OT-CFM); Li et al. 2024, arXiv:2406.12303 (immiscible
    diffusion); the tilt: Cheng & Schwing 2025, arXiv:2503.10636.

    Raises:
        ModuleNotFoundError: scipy is not installed.
    """

    def __call__(self, x0: Tensor, eps: Tensor) -> Tensor:
        try:
            from scipy.optimize import linear_sum_assignment
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "OptimalTransport needs scipy: pip install 'litdiffusion[ot]'", name="scipy"
            ) from error
        cost = torch.cdist(x0.flatten(1).float(), eps.flatten(1).float()).square()
        _, order = linear_sum_assignment(cost.cpu().numpy())
        return eps[torch.as_tensor(order, device=eps.device)]
