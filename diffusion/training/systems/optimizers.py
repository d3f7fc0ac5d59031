"""Optimizers as a part of a model: how its gradients become steps."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from diffusion.nets.embed import ClockEmbedding, ConditionEmbedding
from diffusion.training.systems import checked

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
EMBEDDINGS = (ClockEmbedding, ConditionEmbedding)


class Optimizer(ABC):
    """How gradients become steps; learning rate, averaging constants and weight decay are the model's."""

    whole: ClassVar[bool] = False  # whether it needs whole matrices, which some strategies shard over processes

    @abstractmethod
    def of(self, groups: list[dict[str, Any]], net: nn.Module, lr: float, **options: Any) -> checked.Checked:
        """The optimizer of parameter groups.

        Args:
            groups: of the parameters that train, each with its learning rate; see `System.groups`.
            net: the network, whose layers tell the kinds of parameters apart.
            lr: the learning rate that those of the groups are relative to.
            options: betas, weight_decay, clip, algorithm, fused.
        """


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def of(self, groups: list[dict[str, Any]], net: nn.Module, lr: float, **options: Any) -> checked.AdamW:
        return checked.AdamW(groups, lr, **options)


class RAdam(Optimizer):
    """Adam that begins as gradient descent with momentum while its second moments are uncertain; no warm-up is needed.

    Source: Liu et al. 2020, arXiv:1908.03265.
    """

    def of(self, groups: list[dict[str, Any]], net: nn.Module, lr: float, **options: Any) -> checked.RAdam:
        options = {name: value for name, value in options.items() if name != "fused"}  # it has no such kernel
        return checked.RAdam(groups, lr, decoupled_weight_decay=True, **options)


class Muon(Optimizer):
    """Muon for the weights of hidden layers; AdamW for embeddings, the first and the last layer, and vectors.

    Kernels of convolutions are matrices of (outputs, inputs x pixels); those of grouped ones belong to AdamW. Both take
    the model's learning rate, weight decay and clipping, AdamW its betas.
    Source: see `systems.checked.MuonStep`.

    Args:
        momentum: in (0, 1).
        steps: of the Newton-Schulz iteration, >= 1.
    Raises:
        ValueError: a number out of range.
    """

    whole = True

    def __init__(self, momentum: float = 0.95, steps: int = 5) -> None:
        if not 0 < momentum < 1 or steps < 1:
            raise ValueError(f"Muon: wanted momentum in (0, 1) and steps >= 1, got {momentum} and {steps}")
        self.momentum, self.steps = float(momentum), steps

    def of(self, groups: list[dict[str, Any]], net: nn.Module, lr: float, **options: Any) -> checked.Muon:
        chosen, made = {id(p) for p in matrices(net)}, []
        for group in groups:
            others, weights = ([p for p in group["params"] if (id(p) in chosen) == its] for its in (False, True))
            made += [group | {"params": others}] if others else []
            made += [group | {"params": weights, **self.muon}] if weights else []
        return checked.Muon(made, lr, **options)

    @property
    def muon(self) -> dict[str, Any]:
        """The options of its groups of matrices."""
        return {"momentum": self.momentum, "ns_steps": self.steps}


def matrices(net: nn.Module) -> list[nn.Parameter]:
    """The weights of a network's hidden layers, linear or convolutional.

    The first layer is that of `net.inc`, as the project's networks name it, or else the first one defined; likewise
    `net.outc` and the last.
    """
    embedded = {id(p) for module in net.modules() if isinstance(module, EMBEDDINGS) for p in module.parameters()}
    ends = (layers(getattr(net, "inc", net))[:1], layers(getattr(net, "outc", net))[-1:])
    without = embedded | {id(layer.weight) for end in ends for layer in end}
    return [
        layer.weight
        for layer in layers(net)
        if layer.weight.requires_grad and id(layer.weight) not in without and getattr(layer, "groups", 1) == 1
    ]


def layers(module: nn.Module) -> list[nn.Module]:
    """The linear and convolutional layers of a module, in the order of their definition."""
    return [m for m in module.modules() if isinstance(m, LAYERS)]
