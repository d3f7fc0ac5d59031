"""A term that spreads the hidden features of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffusion.support.specs import suggest


class Dispersive:
    """weight log E_{i != j} exp(-|z_i - z_j|^2 / (D tau)), of the D features z of each image at a hidden layer.

    A contrastive loss without positive pairs: it needs no views and no other network. The pairs are those of one
    process's batch. The paper includes i = j, which has no gradient.
    Source: Wang & He 2025, arXiv:2506.09027, eq. 6 (squared l2 distance).

    Args:
        layer: dotted name of a module of the network, whose output is z.
        weight: > 0.
        tau: > 0.
    Raises:
        ValueError: weight or tau not above 0.
    """

    def __init__(self, layer: str, weight: float = 0.5, tau: float = 0.5) -> None:
        if weight <= 0 or tau <= 0:
            raise ValueError(f"Dispersive: weight and tau must be above 0, got {weight} and {tau}")
        self.layer, self.weight, self.tau = layer, float(weight), float(tau)

    def __call__(self, z: Tensor) -> Tensor:
        """The term for features (B, ...), without the weight; 0 for a single image."""
        z = z.flatten(1).float()
        if len(z) < 2:
            return 0.0 * z.sum()
        pairs = torch.pdist(z).square() / (z.shape[1] * self.tau)  # each pair once
        return torch.logsumexp(-pairs, 0) - torch.tensor(float(len(pairs))).log()

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator[list[Tensor]]:
        """A context that collects the outputs of the layer, the last one being that of the last evaluation.

        Raises:
            ValueError: the network has no such layer, or it is compiled, which hides its layers.
        """
        known = dict(net.named_modules())
        if self.layer not in known or not self.layer:
            names = [name for name, _ in net.named_children()]
            near = suggest(self.layer, list(known)) or f"; there are: {', '.join(names)}, and layers below them"
            raise ValueError(f"Dispersive: {type(net).__name__} has no layer {self.layer!r}{near}")
        if getattr(net, "_compiled_call_impl", None) is not None:
            raise ValueError("Dispersive: hidden features of a compiled network are not seen; leave out --compile")
        found: list[Tensor] = []
        handle = known[self.layer].register_forward_hook(lambda module, inputs, out: found.append(out))
        try:
            yield found
        finally:
            handle.remove()
