"""Muon, RAdam and the choice of an optimizer."""

import copy

import pytest
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn

from diffusion import Diffusion
from diffusion.nets import AttentionUNet
from diffusion.nets.base import Net
from diffusion.nets.embed import ConditionEmbedding
from diffusion.noise import Cosine
from diffusion.support.specs import concrete, spec
from diffusion.training import initial
from diffusion.training.systems import optimizers
from diffusion.training.systems.base import lr_factor
from diffusion.training.systems.checked import Muon, RAdam, newton_schulz
from diffusion.training.systems.optimizers import layers, matrices


def muon(matrices, others, lr, momentum=0.95, **options):
    """The optimizer of weights that Muon trains, and of others."""
    groups = [{"params": others}, {"params": matrices, "momentum": momentum, "ns_steps": 5}]
    return Muon([g for g in groups if g["params"]], lr, **options)


def with_values(rows, columns, values):
    """A random matrix with given singular values."""
    u, _ = torch.linalg.qr(torch.randn(rows, rows))
    v, _ = torch.linalg.qr(torch.randn(columns, columns))
    k = min(rows, columns)
    return u[:, :k] @ torch.diag(values) @ v[:, :k].T


@pytest.mark.parametrize("rows, columns", [(16, 16), (8, 72), (72, 8), (64, 32)])
def test_five_steps_bring_all_singular_values_near_one(rows, columns):
    k = min(rows, columns)
    for values in (torch.ones(k), torch.linspace(0.05, 1, k), torch.rand(k) + 0.02):
        found = torch.linalg.svdvals(newton_schulz(with_values(rows, columns, 1e3 * values)))
        assert 0.67 < float(found.min()) and float(found.max()) < 1.15


def test_singular_vectors_are_kept():
    matrix = with_values(6, 9, torch.linspace(0.2, 1, 6)).double()
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ newton_schulz(matrix).double() @ v.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-5


@pytest.mark.parametrize("steps", [1, 5, 8])
@pytest.mark.parametrize("smallest", [1e-1, 1e-4, 1e-8, 0.0])
def test_iterating_among_the_rows_equals_the_iteration_as_it_is_written(steps, smallest):
    """A wide matrix, also one whose smallest singular values vanish in the rounding of its Gram matrix."""
    matrix = with_values(16, 80, torch.cat([torch.linspace(0.01, 1, 8), torch.full((8,), smallest)]))
    x = matrix.double() / matrix.double().norm()
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    assert (newton_schulz(matrix, steps).double() - x).abs().max() < 1e-3  # of values of about 0.3


def test_many_steps_keep_a_wide_matrix_without_full_rank_bounded():
    matrix = with_values(16, 80, torch.cat([torch.linspace(0.01, 1, 8), torch.zeros(8)]))
    assert float(torch.linalg.svdvals(newton_schulz(matrix, 30)).max()) < 1.15


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_steps_of_a_matrix_equal_torchs_up_to_its_bfloat16():
    ours = nn.Parameter(torch.randn(24, 40))
    theirs = nn.Parameter(ours.detach().clone())
    a = muon([ours], [], 0.02, momentum=0.9, weight_decay=0.1)
    b = torch.optim.Muon([theirs], 0.02, 0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        before, gradient = theirs.detach().clone(), torch.randn(24, 40)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
        step = (theirs - before).norm()
        assert (ours - theirs).norm() < 0.03 * step  # bfloat16 has 8 bits
        with torch.no_grad():
            ours.copy_(theirs)


def test_a_kernel_is_trained_as_a_matrix_in_any_layout():
    kernel = torch.randn(8, 4, 3, 3)
    gradient = torch.randn(8, 4, 3, 3)
    found = []
    for shaped in (lambda v: v, lambda v: v.to(memory_format=torch.channels_last), lambda v: v.flatten(1)):
        p = nn.Parameter(shaped(kernel).clone())
        p.grad = shaped(gradient).clone()
        muon([p], [], 0.1).step()
        found.append(p.detach().reshape(8, -1))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    step = (found[0] - kernel.flatten(1)).square().mean().sqrt()
    assert float(step) == pytest.approx(0.1 * 0.2, rel=0.2)  # the root mean square of a step of AdamW


def test_other_parameters_take_steps_of_adamw():
    a, b = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
    with torch.no_grad():
        b.copy_(a)
    matrix = nn.Parameter(torch.randn(3, 3))
    ours = muon([matrix], [a], 0.1, weight_decay=0.3, betas=(0.5, 0.7))
    theirs = torch.optim.AdamW([b], 0.1, weight_decay=0.3, betas=(0.5, 0.7))
    for _ in range(3):
        a.grad = torch.randn(5)
        b.grad, matrix.grad = a.grad.clone(), torch.randn(3, 3)
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["Muon", "RAdam"])
def test_a_step_that_is_not_finite_is_skipped_and_large_gradients_are_clipped(kind):
    weights = [nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))]
    optimizer = muon(weights[:1], weights[1:], 0.1, clip=1.0) if kind == "Muon" else RAdam(weights, 0.1, clip=1.0)
    before = copy.deepcopy([w.detach() for w in weights])
    for w in weights:
        w.grad = torch.full_like(w, float("nan"))
    optimizer.step()
    assert bool(optimizer.bad) and all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    for w in weights:
        w.grad = torch.full_like(w, 5.0)
    optimizer.step()
    assert not bool(optimizer.bad) and float(optimizer.norm) == pytest.approx(5 * 20**0.5)
    assert sum(float(w.grad.square().sum()) for w in weights) == pytest.approx(1, abs=1e-4)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


def test_the_state_goes_through_a_file_to_the_bit(tmp_path):
    def made():
        torch.manual_seed(1)
        weights = [nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Parameter(torch.randn(4))]
        return weights, muon(weights[:1], weights[1:], 0.1)

    def step(weights, optimizer, seed):
        torch.manual_seed(seed)
        for w in weights:
            w.grad = torch.randn_like(w)
        optimizer.step()

    (whole, a), (half, b) = made(), made()
    step(whole, a, 2), step(half, b, 2)
    torch.save([[w.detach() for w in half], b.state_dict()], tmp_path / "x.pt")
    resumed, c = made()
    read, state = torch.load(tmp_path / "x.pt", weights_only=True)
    with torch.no_grad():
        for w, v in zip(resumed, read, strict=True):
            w.copy_(v)
    c.load_state_dict(state)
    step(whole, a, 3), step(resumed, c, 3)
    assert all(torch.equal(v, w) for v, w in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("kind", sorted(concrete(Net, "diffusion.nets") - {Net}, key=lambda k: k.__name__))
def test_the_hidden_layers_of_a_network_are_muons(kind):
    try:
        with torch.device("meta"):
            net = kind(num_classes=3)
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    chosen = {id(p) for p in matrices(net)}
    names = {name: id(p) in chosen for name, p in net.named_parameters()}
    assert sum(names.values()) >= 2 and all(p.ndim > 1 for p in matrices(net))
    for module in net.modules():
        if isinstance(module, (ConditionEmbedding, nn.Embedding)):
            assert not chosen & {id(p) for p in module.parameters()}
    if hasattr(net, "inc"):
        assert id(layers(net.inc)[0].weight) not in chosen and id(layers(net.outc)[-1].weight) not in chosen


@pytest.mark.parametrize("kind", [optimizers.AdamW, optimizers.RAdam, optimizers.Muon])
def test_parts_with_their_own_learning_rate_and_frozen_ones_with_every_optimizer(kind):
    """A first step has a size that the learning rate determines, so that of a part is smaller by its factor."""

    class Trainer:
        gradient_clip_val, gradient_clip_algorithm, precision, max_epochs = None, None, "32-true", 1
        strategy = SingleDeviceStrategy("cpu")

    def stepped(scales, frozen=""):
        torch.manual_seed(0)
        model = Diffusion(AttentionUNet(1, (8, 8), heads=2, attention=1), Cosine(20), optimizer=kind(), lr=1e-3)
        initial.freeze(model, frozen)
        model.lr_scales = initial.scaled(model, scales)
        model._trainer, model._fabric = Trainer(), None
        optimizer = model.configure_optimizers()["optimizer"]
        before = {k: p.detach().clone() for k, p in model.denoiser.net.named_parameters()}
        for k, p in enumerate(p for p in model.parameters() if p.requires_grad):
            torch.manual_seed(k)
            p.grad = torch.randn_like(p)
        optimizer.step()
        return {k: p.detach() - before[k] for k, p in model.denoiser.net.named_parameters()}, optimizer

    whole, plain = stepped("")
    scaled, optimizer = stepped("ups=0.25")
    assert len(optimizer.param_groups) == 2 * len(plain.param_groups)
    for name, step in whole.items():
        factor = 0.25 if name.startswith("ups") else 1
        torch.testing.assert_close(scaled[name], factor * step, rtol=1e-3, atol=1e-7, msg=name)
    assert not any(step.any() for name, step in stepped("", "ups")[0].items() if name.startswith("ups"))


def test_a_network_without_named_ends_keeps_its_first_and_last_layer_from_muon():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 1, 3))
    assert [id(p) for p in matrices(net)] == [id(net[1].weight)]


def test_rises_and_falls_of_the_learning_rate():
    factors = [lr_factor(step, 100, 0, "wsd") for step in range(101)]
    assert factors[:80] == [1.0] * 80 and factors[90] == pytest.approx(0.5) and factors[100] == 0
    assert lr_factor(1, 100, 3, "wsd") == 0.5 and lr_factor(52, 102, 2, "linear") == 0.5


def test_files_of_models_trained_by_adamw_are_as_they_were():
    net = AttentionUNet(1, (8, 8), heads=2, attention=1)
    for optimizer in (None, optimizers.AdamW()):
        assert "optimizer" not in Diffusion(net, Cosine(20), optimizer=optimizer).hparams
    made = Diffusion(net, Cosine(20), optimizer=optimizers.Muon(0.9))
    again = Diffusion(**made.hparams)
    assert again.optimizer.momentum == 0.9 and dict(made.hparams) == {k: spec(v) for k, v in again.hparams.items()}


@pytest.mark.parametrize("options", [{"momentum": 1.0}, {"steps": 0}])
def test_invalid_settings_are_refused(options):
    with pytest.raises(ValueError, match="Muon: wanted momentum"):
        optimizers.Muon(**options)


def test_muon_is_refused_where_matrices_are_sharded():
    class Strategy:
        pass

    class Trainer:
        strategy, precision, max_epochs, max_steps = Strategy(), "32-true", 1, -1

    model = Diffusion(AttentionUNet(1, (8, 8), heads=2, attention=1), Cosine(20), optimizer=optimizers.Muon())
    model._trainer, model._fabric = Trainer(), None
    with pytest.raises(ValueError, match="Muon needs whole matrices, which Strategy may shard"):
        model.configure_optimizers()
