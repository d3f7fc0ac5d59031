"""Edits by inversion: on Gaussian data, noise and image are an affine map of each other."""

import pytest
import torch

from diffusion.generation.editing import from_noise, interpolate, reconstruct, slerp, to_noise, vary
from diffusion.samplers import DDIM, DDPM, Heun

from . import ideal

pytestmark = pytest.mark.usefixtures("float64")  # walks in both directions amplify rounding

Y = torch.tensor([0, 1, 2])


def test_inversion_matches_the_noise_of_the_flow():
    """z = (x_0 - mean) / std, where x_t at t = 1 is all noise; DDIM is accurate to first order in the step."""
    model, x0 = ideal.model(DDIM(100)), torch.cat([ideal.data(1, k, seed=k) for k in range(3)])
    mean = torch.tensor(ideal.MEANS)[:, None, None, None]
    z = to_noise(model, x0, Y)
    torch.testing.assert_close(z, (x0 - mean) / ideal.STD, rtol=0.03, atol=0.03)
    assert (to_noise(model, x0, Y.flip(0))[0] - z[0]).abs().min() > 1  # another label, another noise


def test_reconstruction_reproduces_the_image():
    model, x0 = ideal.model(DDIM(50)), ideal.data(8)
    errors = []
    for iterations in (1, 2, 5):
        made, error = reconstruct(model, x0, iterations=iterations)
        torch.testing.assert_close(error, (made - x0).square().mean((1, 2, 3)).sqrt())
        errors.append(float(error.max()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.01
    assert errors[2] < 1e-5


def test_interpolation_matches_its_ends_and_middle():
    model, a, b = ideal.model(DDIM(100)), ideal.data(3, 0, seed=1), ideal.data(3, 2, seed=2)
    ya, yb = torch.zeros(3).long(), torch.full((3,), 2)
    path = interpolate(model, a, b, 5, ya, yb)
    assert path.shape == (3, 5, *ideal.SHAPE)
    torch.testing.assert_close(path[:, 0], a, rtol=0, atol=1e-3)
    torch.testing.assert_close(path[:, -1], b, rtol=0, atol=1e-3)
    for k, u in enumerate((0.25, 0.5, 0.75), 1):  # predictions of equal std: lerp acts on the mean
        mean = [torch.tensor(ideal.MEANS[i]) for i in (0, 2)]
        z = slerp((a - mean[0]) / ideal.STD, (b - mean[1]) / ideal.STD, u)
        torch.testing.assert_close(path[:, k], torch.lerp(*mean, u) + ideal.STD * z, rtol=0, atol=0.03)


def test_slerp_preserves_the_norm_and_the_ends():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, 1, 4, 4, generator=generator)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None, None]
    assert torch.equal(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    length = a.flatten(1).norm(dim=1)
    whole = torch.cosine_similarity(a.flatten(1), b.flatten(1)).acos()
    for u in (0.2, 0.5, 0.9):
        at = slerp(a, b, u)
        torch.testing.assert_close(at.flatten(1).norm(dim=1), length)
        torch.testing.assert_close(torch.cosine_similarity(a.flatten(1), at.flatten(1)).acos(), u * whole)
    assert (torch.lerp(a, b, 0.5).flatten(1).norm(dim=1) < 0.85 * length).all()  # what it avoids
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)  # no angle: lerp
    many = slerp(a, b, torch.linspace(0, 1, 6))
    torch.testing.assert_close(many[2], slerp(a[2:3], b[2:3], 0.4)[0])


def test_variations_move_as_far_as_their_amount():
    model, x0 = ideal.model(DDIM(50)), ideal.data(20)
    same = vary(model, x0, 0.0, 2)
    assert torch.equal(same[:, 0], same[:, 1])
    torch.testing.assert_close(same[:, 0], x0, rtol=0, atol=1e-4)
    away = [float((vary(model, x0, amount, 1)[:, 0] - x0).square().mean().sqrt()) for amount in (0.1, 0.3, 0.6, 1.0)]
    # slerp by an angle of about amount pi / 2: the distance is 2 sin(angle / 2) std
    expected = [2 * ideal.STD * torch.tensor(torch.pi / 4 * amount).sin() for amount in (0.1, 0.3, 0.6, 1.0)]
    assert away == pytest.approx([float(v) for v in expected], rel=0.1)
    fresh = vary(model, x0, 1.0, 1, seed=5)[:, 0]
    torch.testing.assert_close(fresh, vary(model, ideal.data(20, seed=9), 1.0, 1, seed=5)[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(vary(model, x0, 0.4, 2, seed=1)[:, 0], vary(model, x0, 0.4, 2)[:, 1])


def test_inversion_does_not_depend_on_the_batch():
    model, x0 = ideal.model(DDIM(10)), torch.cat([ideal.data(1, k, seed=k) for k in range(3)])
    edits = {
        "reconstruct": lambda x, y, n: reconstruct(model, x, y, batch_size=n)[0],
        "vary": lambda x, y, n: vary(model, x, 0.5, 2, y, seed=1, batch_size=n),
        "interpolate": lambda x, y, n: interpolate(model, x, x.flip(-1) + 0.1, 3, y, (y + 1) % 3, batch_size=n),
    }
    for name, edit in edits.items():
        whole = edit(x0, Y, 256)
        for other in (edit(x0, Y, 2), torch.cat([edit(x0[:1], Y[:1], 1), whole[1:]])):
            torch.testing.assert_close(other, whole, rtol=0, atol=1e-5, msg=name)


def test_only_ddim_can_be_inverted():
    x0 = ideal.data(1)
    for sampler in (Heun(5), DDPM(5), DDIM(5, eta=0.5)):
        with pytest.raises(ValueError, match="only DDIM"):
            reconstruct(ideal.model(), x0, sampler=sampler)
    assert float(reconstruct(ideal.model(DDPM(100)), x0)[1]) < 1e-4  # DDIM replaces a stochastic sampler
    with pytest.raises(ValueError, match="amount"):
        vary(ideal.model(), x0, 1.5)
    with pytest.raises(ValueError, match="both ends"):
        interpolate(ideal.model(), x0, x0, 3, Y[:1])
    with pytest.raises(ValueError, match="n >= 2"):
        interpolate(ideal.model(), x0, x0, 1)


def test_from_noise_maps_given_noise_to_its_image():
    model = ideal.model(DDIM(100))
    z = torch.randn(4, *ideal.SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(from_noise(model, z), ideal.MEANS[1] + ideal.STD * z, rtol=0.03, atol=0.02)
