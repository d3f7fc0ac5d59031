"""A discrete schedule given by its betas."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.noise.discrete import Discrete


class Tabulated(Discrete):
    """The betas of a table, e.g. one that another program's file holds.

    Args:
        values: beta_0 .. beta_{T-1}, each in (0, 1), at least 2; by default DDPM's, from 1e-4 to 0.02 in 1,000 steps.
        zero_snr: see Discrete; the last beta may then be 1.
    """

    def __init__(self, values: Sequence[float] | None = None, zero_snr: bool = False) -> None:
        self.values = None if values is None else tuple(float(value) for value in values)
        super().__init__(1000 if self.values is None else len(self.values), zero_snr)

    def betas(self) -> Tensor:
        if self.values is None:
            return torch.linspace(1e-4, 0.02, self.T, dtype=torch.float64)
        return torch.tensor(self.values, dtype=torch.float64)
