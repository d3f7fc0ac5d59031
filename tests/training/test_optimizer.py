"""`AdamW`: torch's, with the gradient norm computed once for guard and clipping."""

import copy

import pytest
import torch

from diffusion.training.systems.checked import AdamW


def nets():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return net, copy.deepcopy(net)


def loss(net, scale=1.0):
    return scale * net(torch.arange(6.0).view(2, 3)).square().sum()


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("clip", "algorithm"), [(None, None), (0.05, None), (0.05, "norm"), (0.01, "value")])
def test_steps_equal_torchs_with_torchs_clipping(fused, clip, algorithm):
    ours, theirs = nets()
    a = AdamW(ours.parameters(), 0.1, clip=clip, algorithm=algorithm, fused=fused)
    b = torch.optim.AdamW(theirs.parameters(), 0.1, fused=fused)
    for _ in range(3):
        for optimizer, net in ((a, ours), (b, theirs)):
            optimizer.zero_grad()
            loss(net).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters()])
        if clip and algorithm == "value":
            torch.nn.utils.clip_grad_value_(theirs.parameters(), clip)
        elif clip:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        a.step()
        b.step()
        assert float(a.norm) == pytest.approx(float(norm)) and float(norm) > 0.1 and not a.bad
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e38])
def test_a_step_that_is_not_finite_is_skipped(fused, scale):
    """Weights and averages are unchanged to the bit, and the next step is unaffected."""
    net, other = nets()
    a, b = (AdamW(n.parameters(), 0.1, clip=1.0, fused=fused) for n in (net, other))
    for optimizer, n in ((a, net), (b, other)):
        loss(n).backward()
        optimizer.step()
        optimizer.zero_grad()
    loss(net, scale).backward()
    a.step()
    assert bool(a.bad) and not a.norm.isfinite() and same(net, other)
    a.zero_grad()
    for optimizer, n in ((a, net), (b, other)):
        loss(n).backward()
        optimizer.step()
    assert same(net, other) and not a.bad


def test_the_closure_computes_the_gradients_that_are_measured():
    net, _ = nets()
    optimizer = AdamW(net.parameters(), 0.1)

    def closure():
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    with torch.no_grad():
        value = optimizer.step(closure)
    assert value.requires_grad and float(optimizer.norm) > 0


def test_without_gradients_nothing_is_measured():
    optimizer = AdamW(nets()[0].parameters(), 0.1)
    optimizer.step()
    assert optimizer.norm is None and optimizer.bad is None
