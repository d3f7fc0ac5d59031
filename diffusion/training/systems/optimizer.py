"""AdamW that checks its gradients before each step."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` that measures the gradient norm, skips non-finite steps, and clips.

    One norm serves all three. The fused kernel receives it on the device, without synchronising: it leaves weights and
    moments unchanged where `found_inf` is set, and divides the gradients by `grad_scale` as it reads them. A norm that
    overflows counts as non-finite, because Adam squares the gradients.

    Args:
        parameters: the parameters to train.
        clip: largest total gradient norm, or with algorithm "value" largest absolute entry; None disables clipping.
        algorithm: "norm" or "value".
        options: of `torch.optim.AdamW`.
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
