"""Optimizers that check their gradients before each step: AdamW, RAdam and Muon."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

WIDE = 2  # columns per row from which the iteration among the rows takes fewer operations
TOGETHER = 5  # steps whose factors are multiplied first
QUINTIC = (3.4445, -4.7750, 2.0315)  # a, b, c; Jordan et al. 2024, kellerjordan.github.io/posts/muon


class Checked(torch.optim.Optimizer):
    """An optimizer that measures the gradient norm, skips non-finite steps, and clips.

    One norm serves all three. A norm that overflows counts as non-finite, because Adam squares the gradients.

    Args:
        parameters: the parameters to train, or groups of them.
        clip: largest total gradient norm, or with algorithm "value" largest absolute entry; None disables clipping.
        algorithm: "norm" or "value".
        options: of the optimizer.
    """

    def __init__(self, parameters, *args: Any, clip: float | None = None, algorithm: str | None = None, **options: Any):
        super().__init__(parameters, *args, **options)
        self.clip, self.algorithm = clip, algorithm or "norm"
        self.norm: Tensor | None = None  # gradient norm of the last step, before clipping
        self.bad: Tensor | None = None  # bool: whether that step was skipped

    def step(self, closure=None):
        """One step; the closure computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not weights:
            return loss
        total = torch.nn.utils.get_total_norm([p.grad for p in weights])
        sharded, fused = isinstance(total, DTensor), bool(self.param_groups[0].get("fused"))
        self.norm = total.full_tensor() if sharded else total
        self.bad = ~self.norm.isfinite()
        if fused:
            self.found_inf = self.bad.float()
        elif self.bad:
            for p in weights:
                p.grad = None
            return loss
        if self.clip and self.algorithm == "value":
            torch.nn.utils.clip_grad_value_(weights, self.clip)
        elif self.clip and fused and not sharded:
            self.grad_scale = ((self.norm + 1e-6) / self.clip).clamp(min=1.0)
        elif self.clip:
            torch.nn.utils.clip_grad_norm_(weights, self.clip)
        super().step()
        return loss


class AdamW(Checked, torch.optim.AdamW):
    """`torch.optim.AdamW` that checks its gradients.

    The fused kernel receives the norm on the device, without synchronising: it leaves weights and moments unchanged
    where `found_inf` is set, and divides the gradients by `grad_scale` as it reads them.
    """


class RAdam(Checked, torch.optim.RAdam):
    """`torch.optim.RAdam` that checks its gradients."""


class MuonStep(torch.optim.AdamW):
    """Muon for groups with `momentum`, AdamW for the others.

        B <- lerp(G, B, momentum);  W <- (1 - lr decay) W - 0.2 sqrt(max(rows, columns)) lr NS(lerp(G, B, momentum))

    G is the gradient as a matrix of (outputs, everything else); NS makes its singular values about 1. The factor gives
    an update the root mean square of AdamW's, so that lr and weight decay are AdamW's too. torch.optim.Muon takes no
    kernels of convolutions, and of those in channels_last no matrix is a view.
    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the factor: Liu et al. 2025, 2502.16982, eq. 4.
    """

    def step(self, closure=None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"] if group.get("momentum") else ():
                    if p.grad is not None:
                        self._turn(p, group)
        every, self.param_groups = self.param_groups, [g for g in self.param_groups if not g.get("momentum")]
        try:
            super().step()
        finally:
            self.param_groups = every

    def _turn(self, p: Tensor, group: dict) -> None:
        state = self.state[p]
        if not state:
            state |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(p)}  # AdamW reads every `step`
        state["step"] += 1
        average = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
        update = newton_schulz(p.grad.lerp(average, group["momentum"]).flatten(1), group["ns_steps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update.view_as(p), alpha=-0.2 * max(update.shape) ** 0.5 * group["lr"])


class Muon(Checked, MuonStep):
    """`MuonStep` that checks its gradients.

    Args:
        groups: those of weights of two or more dimensions that Muon trains have a `momentum`, in (0, 1), and
            `ns_steps`, the iterations of `newton_schulz`, >= 1; AdamW trains the others.
        options: of `Checked` and `torch.optim.AdamW`; the fused kernel is not used.
    """

    def __init__(self, groups: list[dict[str, Any]], *args: Any, **options: Any) -> None:
        super().__init__(groups, *args, **options | {"fused": False})


def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """U diag(s) V^T of a matrix U diag(...) V^T with all s of about 0.68 to 1.14, by a quintic iteration in float32.

    X <- X / |X|_F;    X <- (a I + b A + c A^2) X,  A = X X^T

    The factors F of a wide matrix commute with A: A <- F A F, and X is multiplied by the product of the factors. The
    rounding of A grows like the square of the smallest singular value, at most 12 times a step, so that A is computed
    anew after 5 steps.
    """
    x = matrix.float()
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / x.norm().clamp(min=1e-7)
    if x.shape[1] <= WIDE * x.shape[0]:
        x = of_square(x, steps)
    else:
        for done in range(0, steps, TOGETHER):
            x = of_wide(x, min(TOGETHER, steps - done))
    return x.T if turned else x


def of_square(x: Tensor, steps: int) -> Tensor:
    """The iteration as it is written."""
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def of_wide(x: Tensor, steps: int) -> Tensor:
    """The iteration among matrices of (rows, rows), with two products of the wide matrix instead of two a step."""
    a, b, c = QUINTIC
    gram, product = x @ x.T, None
    for k in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ (gram @ factor) if k < steps - 1 else gram
    return product @ x
