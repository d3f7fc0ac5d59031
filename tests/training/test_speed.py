"""Compilation, recomputation and seeded dropout leave a network's results unchanged."""

import copy

import pytest
import torch
from torch.nn import functional as F

from diffusion.nets import DiT, UNet, speed

CPU = torch.device("cpu")


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = UNet(1, 8, (1, 2), 1, (1,), 8, dropout=0.2, num_classes=3)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)  # its last convolution is initially 0
    return net


def gradients(net):
    torch.manual_seed(1)  # of the dropout
    x, kept = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2)), 0

    def count(v):
        nonlocal kept
        kept += v.numel()
        return v

    net.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda v: v):
        net(x, torch.arange(4.0), torch.tensor([0, 1, 2, 0])).square().mean().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None], kept


def test_recomputation_stores_less_and_gives_the_same_gradients(net):
    names, other = list(net.state_dict()), copy.deepcopy(net)
    wanted, whole = gradients(net)
    found, less = gradients(speed.recomputed(net))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert list(net.state_dict()) == names and less < whole / 2
    with torch.no_grad():
        x, clock, y = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([1, 2])
        assert torch.equal(net.eval()(x, clock, y), other.eval()(x, clock, y))


def test_a_copy_of_a_recomputed_network_has_its_own_weights(net):
    twin = copy.deepcopy(speed.recomputed(net))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        assert twin.eval()(torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])).std() > 0


def test_recomputed_blocks_of_dit_are_its_layers():
    net = DiT(1, 2, 16, 3, 2)
    assert [type(b).__name__ for b in speed.blocks(net)].count("Block") == 3


def test_compiled_refuses_unknown_modes_and_missing_compilers(net, monkeypatch):
    with pytest.raises(ValueError, match="unknown mode 'fast'.*reduce-overhead"):
        speed.compiled(net, "fast")
    monkeypatch.setattr(speed.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="install g"):
        speed.compiled(net)


@pytest.mark.slow
def test_compiled_is_the_same_function_with_the_same_names(float64, net, tmp_path, monkeypatch):
    """With a cache of its own: torch's does not distinguish the instruction sets of ATEN_CPU_CAPABILITY."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, clock, y = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    net.eval()
    names, wanted = list(net.state_dict()), net(x, clock, y)
    found = speed.compiled(net)(x, clock, y)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert list(net.state_dict()) == names and torch._dynamo.utils.counters["frames"]["ok"] > 0


def test_dropout_uses_torchs_seed():
    from diffusion.noise.draws import seed_of, seed_streams

    seed_streams(CPU, 3, 4)
    found = F.dropout(torch.ones(100))
    torch.manual_seed(seed_of(3, 4))
    assert torch.equal(found, F.dropout(torch.ones(100)))
