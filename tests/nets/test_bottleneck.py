"""Bottlenecks: the closed-form optimum of the linear KL autoencoder, and codebooks that follow their vectors."""

import math

import pytest
import torch
from torch import nn

from diffusion.nets.autoencoder import ConvAutoencoder, Patches
from diffusion.nets.bottleneck import Codebook, Gaussian
from diffusion.noise.draws import StepDraws
from diffusion.support.specs import build, spec

LAM = torch.tensor([2.0, 1.0, 0.3, 0.1], dtype=torch.float64)  # eigenvalues of the data


def exact_batch():
    """Images (8, 4, 1, 1) with mean 0 and covariance diag(LAM), rotated, and the rotation."""
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    points = torch.cat([torch.eye(4), -torch.eye(4)]).double() * 2  # covariance 2 * 4 / 8 = 1
    return ((points * LAM.sqrt()) @ turn.T)[:, :, None, None], turn


@pytest.mark.parametrize("w", [0.1, 0.4, 1.0, 3.0])
def test_linear_kl_autoencoder_reaches_the_closed_form_per_eigenvalue(w, float64):
    """MSE = min(lam, w / 2) and KL = max(0, log(2 lam / w) / 2) nats, with the expectation over the noise exact.

    |x - decoded|^2 is quadratic in the noise, so noise at +-sqrt(k) e_i has the same expectation as N(0, I).
    """
    x, turn = exact_batch()
    k = 4
    noise = torch.cat([torch.eye(k), -torch.eye(k)]) * math.sqrt(k)
    copies, draws = x.repeat_interleave(2 * k, 0), noise.repeat(len(x), 1)[:, :, None, None]
    bottleneck, encode, decode = Gaussian(w), nn.Linear(4, 2 * k), nn.Linear(k, 4)

    def run():
        coded = bottleneck(encode(copies.flatten(1))[:, :, None, None], lambda z: draws)
        error = copies.flatten(1) - decode(coded.z.flatten(1))
        return coded, error

    optimizer = torch.optim.LBFGS(
        [*encode.parameters(), *decode.parameters()], max_iter=3000, tolerance_grad=1e-10, tolerance_change=1e-15,
        history_size=50, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        coded, error = run()
        loss = (error.square().sum(1) + coded.loss).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    coded, error = run()
    mse = (error @ turn).square().mean(0)
    kl = (2 * LAM / w).log().clamp(min=0) / 2
    torch.testing.assert_close(mse, LAM.clamp(max=w / 2), rtol=0, atol=2e-4)
    torch.testing.assert_close(coded.bits.mean() * math.log(2), kl.sum(), rtol=0, atol=2e-4)
    torch.testing.assert_close(coded.loss.mean(), w * kl.sum(), rtol=0, atol=1e-3)


def test_kl_of_a_known_distribution():
    """mean 1 and std e: (1 + e^2 - 1 - 2) / 2 nats for each of the 6 values."""
    h = torch.tensor([1.0, 2.0])[None, :, None, None].expand(3, 2, 2, 3)
    coded = Gaussian(0.5)(h, torch.zeros_like)
    kl = 6 * (math.exp(2) - 2) / 2
    torch.testing.assert_close(coded.loss, torch.full((3,), 0.5 * kl))
    torch.testing.assert_close(coded.bits, torch.full((3,), kl / math.log(2)))
    assert torch.equal(coded.z, torch.ones(3, 1, 2, 3)) and torch.equal(Gaussian().mode(h), coded.z)


def vectors(n, centres, step, spread=0.01):
    """n vectors (n, 2, 1, 1) around some centres, by the step."""
    draws = StepDraws(0, step, 0)
    at = (draws.uniform(n) * len(centres)).long()
    rows = centres[at] + spread * draws.normal(torch.empty(n, 2))
    return rows[:, :, None, None], draws


def test_restarted_codes_reach_every_cluster_from_a_distant_start():
    """At the start one code is the nearest of all vectors; the others are dead and restart at vectors."""
    centres = torch.tensor([[x, y] for x in (-6.0, -2.0, 2.0, 6.0) for y in (-6.0, -2.0, 2.0, 6.0)])
    book = Codebook(128, decay=0.9, dead=0.1).train()
    book.made_for(2)
    book.book += 100
    for step in range(60):
        h, draws = vectors(512, centres, step)
        coded = book(h, draws.normal)
    assert torch.cdist(centres, book.book).min(1).values.max() < 0.05 and book.unused() <= 6
    assert (book.snap(h) - h).abs().max() < 0.1
    share = torch.bincount(book.nearest(h).flatten(), minlength=128) / 512
    entropy = -(share * share.clamp(min=1e-12).log2()).sum()
    assert 4 < entropy < 7 and abs(coded.bits[0] - entropy) < 0.5


def test_without_restarts_unused_codes_stay_where_they_are():
    book = Codebook(16, dead=0.0).train()
    book.made_for(2)
    before = book.book.clone()
    for step in range(20):
        book(vectors(64, torch.tensor([[9.0, 9.0]]), step)[0])
    moved = (book.book != before).any(1)
    assert moved.sum() == 1 and book.unused() == 15


def test_codebook_is_exact_in_its_average():
    """One step from counts and sums of 0: the used codes are the means of their vectors."""
    book = Codebook(4, decay=0.5, dead=0.0).train()
    book.made_for(3)
    h = torch.randn(5, 3, 2, 2)
    index = book.nearest(h)
    coded = book(h)
    rows = h.movedim(1, -1)
    for k in index.unique():
        torch.testing.assert_close(book.book[k], rows[index == k].mean(0))
    assert coded.z.shape == h.shape


def test_gradients_pass_straight_through_the_codebook():
    book = Codebook(4, beta=0.5).eval()
    book.made_for(2)
    h = torch.randn(3, 2, 2, 2, requires_grad=True)
    coded = book(h)
    assert torch.allclose(coded.z, book.snap(h))
    (coded.z * 3).sum().backward(retain_graph=True)
    assert torch.equal(h.grad, torch.full_like(h, 3.0))
    h.grad = None
    coded.loss.sum().backward()
    torch.testing.assert_close(h.grad, (h - book.snap(h)).detach())


@pytest.mark.parametrize("bottleneck", [Gaussian(0.1), Codebook(8)], ids=["KL", "VQ"])
@pytest.mark.parametrize("attention", [False, True])
def test_autoencoder_takes_any_size_that_its_factor_divides(bottleneck, attention):
    net = ConvAutoencoder(3, 5, 8, (1, 2, 2), attention=attention, bottleneck=build(spec(bottleneck))).eval()
    assert net.factor == 4
    for H, W in ((4, 4), (8, 12), (20, 4)):
        x = torch.randn(2, 3, H, W)
        z = net.encode(x)
        assert z.shape == (2, 5, H // 4, W // 4) and net.decode(z).shape == x.shape and net(x).shape == x.shape
    with pytest.raises(ValueError, match="10x8 is not divisible by 4; pad to 12x8"):
        net(torch.zeros(1, 3, 10, 8))
    with pytest.raises(ValueError, match="expected 3 channels, got images of 1"):
        net(torch.zeros(1, 1, 8, 8))
    again = build(spec(net))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(x), net(x))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Gaussian(-1), "Gaussian: weight"),
        (lambda: Codebook(1), "Codebook: codes"),
        (lambda: Codebook(decay=1.0), "Codebook: codes"),
        (lambda: ConvAutoencoder(mults=()), "ConvAutoencoder: expected"),
        (lambda: ConvAutoencoder(width=6), "ConvAutoencoder: expected"),
        (lambda: Patches(layers=0), "Patches: channels"),
    ],
)
def test_numbers_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_discriminator_judges_patches_and_images_separately():
    net, x = Patches(3, 8, 2), torch.randn(4, 3, 16, 16)
    assert net(x).shape == (4, 1, 4, 4)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))
