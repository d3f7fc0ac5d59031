"""Attention by the formula equals torch's own, with its gradients, and stands in for it where it is faster."""

import pytest
import torch
from torch.nn import functional as F

from diffusion.nets import layers


def inputs(n, m, dtype, grad=True):
    torch.manual_seed(0)
    return [torch.randn(2, 3, size, 8, dtype=dtype).requires_grad_(grad) for size in (n, m, m)]


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n, m", [(16, 16), (16, 21), (1, 5)])
def test_the_formula_and_its_gradients_equal_torchs_in_float64(n, m, masked, dtype, atol, monkeypatch):
    ours = inputs(n, m, dtype)
    exact = [x.detach().double().requires_grad_() for x in ours]
    mask = (torch.arange(m) < m - 2).expand(2, 1, 1, m) if masked else None
    goal = torch.randn(2, 3, n, 8)
    wanted = F.scaled_dot_product_attention(*exact, attn_mask=mask)
    wanted.backward(goal.double())
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # the formula is used
    found = layers.attention(*ours, mask)
    found.backward(goal.to(dtype))
    for a, b in zip((found, *(x.grad for x in ours)), (wanted, *(x.grad for x in exact)), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, atol=atol, rtol=atol)


@pytest.mark.parametrize(
    "n, dtype, grad", [(16, torch.float32, False), (64, torch.float32, True), (512, torch.bfloat16, True)]
)
def test_sampling_and_many_tokens_use_torchs_own(n, dtype, grad, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: "torch's own")
    assert layers.attention(*inputs(n, n, dtype, grad)) == "torch's own"
