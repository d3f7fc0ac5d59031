"""Inpainting, against the exact conditional law of correlated Gaussian pixels."""

import warnings

import pytest
import torch

from diffusion import noise, samplers
from diffusion.denoiser import predict
from diffusion.generation.editing import inpaint, repaint
from diffusion.generation.editing.inpainting import route
from diffusion.noise import Cosine
from diffusion.samplers import DDIM, DDPM
from diffusion.support.specs import concrete

from . import ideal

pytestmark = pytest.mark.usefixtures("float64")  # walks in both directions amplify rounding

RHO = 0.8
MEAN = torch.tensor([0.3, -0.2]).double()
COV = torch.tensor([[1.0, RHO], [RHO, 1.0]]).double()
HIDDEN = torch.tensor([False, True])


def pair(x, t):
    """The ideal denoiser of two correlated pixels, N(MEAN, COV): of x_2 given x_1 the mean has slope RHO."""
    gain = t.alpha * COV @ torch.linalg.inv(t.alpha**2 * COV + t.sigma**2 * torch.eye(2).double())
    return predict(x, (MEAN + (x.flatten(1) - t.alpha * MEAN) @ gain.T).view_as(x), t)


def slope(sampler, schedule=Cosine(), jumps=0, length=1):
    """The exact slope of the hidden pixel's mean in the known pixel: all is affine, so noise 0 gives the mean."""
    x0 = torch.zeros(2, 1, 1, 2).double()
    x0[:, 0, 0, 0] = MEAN[0] + torch.tensor([-1.0, 1.0])
    low, high = repaint(pair, x0, HIDDEN, schedule, sampler, torch.zeros_like, jumps, length)[:, 0, 0, 1]
    return float(high - low) / 2


@pytest.mark.parametrize("kind", sorted(concrete(samplers.Sampler, "diffusion"), key=lambda k: k.__name__))
def test_repaint_reaches_the_conditional_mean_with_every_sampler(kind):
    """Replacement without jumps is far off. The levels of AnnealedLangevin are too far apart here to mix.

    Consistency has fresh noise in every step, which is a jump back, and is close without others.
    """
    sampler = kind(8 if kind is samplers.ProbabilityFlow else 20)
    plain, jumped = slope(sampler), slope(sampler, jumps=10)
    assert plain < (0.9 if kind is samplers.Consistency else 0.7) * RHO
    far = {samplers.AnnealedLangevin: 0.55, samplers.Consistency: 0.3}.get(kind, 0.2)
    assert RHO - jumped < far * (RHO - plain)


@pytest.mark.parametrize("kind", sorted(concrete(noise.Schedule, "diffusion"), key=lambda k: k.__name__))
def test_repaint_reaches_the_conditional_mean_on_every_schedule(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ScaledLinear leaves a little signal at t = 1
        schedule = kind()
    sampler = DDPM(20, grid="log_snr")  # even steps: a large last step loses the known part
    assert slope(sampler, schedule) < 0.6 * RHO
    assert slope(sampler, schedule, jumps=10) == pytest.approx(RHO, abs=0.07)


def test_repaint_with_more_jumps_is_closer():
    found = [slope(DDPM(50), jumps=j) for j in (0, 3, 10, 40)]
    assert found == sorted(found) and found[0] < 0.5 and found[-1] == pytest.approx(RHO, abs=0.015)
    assert slope(DDPM(50), jumps=10, length=5) == pytest.approx(RHO, abs=0.05)  # the defaults


def test_repaint_has_the_spread_of_the_conditional_distribution():
    """sqrt(1 - RHO^2) = 0.6; 1,500 draws have a standard error of 0.011."""
    torch.manual_seed(0)
    x0 = torch.full((1500, 1, 1, 2), 0.3).double()
    h = repaint(pair, x0, HIDDEN, Cosine(), DDPM(30, "large"), torch.randn_like, 10, 3)[:, 0, 0, 1]
    assert float(h.mean()) == pytest.approx(-0.2, abs=0.05)
    assert float(h.std()) == pytest.approx(0.6, abs=0.05)


def test_route_repeats_every_segment_but_not_the_last_step():
    assert list(route(5, 0, 2)) == [1, 2, 3, 4, 5]
    assert list(route(4, 2, 1)) == [1, 0, 1, 0, 1, 2, 1, 2, 1, 2, 3, 2, 3, 2, 3, 4]  # alg. 1, U = 3
    assert list(route(6, 1, 3)) == [1, 2, 3, 0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert list(route(1, 9, 9)) == [1]


def test_inpaint_keeps_the_known_part_and_ignores_the_hidden_one():
    model, x0 = ideal.model(DDPM(10)), ideal.data(6)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 2:] = True
    made = inpaint(model, x0, mask, seed=1, jumps=2, length=3)
    assert torch.equal(made[..., :2], x0[..., :2])
    assert (made[..., 2:] - x0[..., 2:]).abs().mean() > 0.1
    assert torch.equal(inpaint(model, x0.masked_fill(mask, 9.0), mask, seed=1, jumps=2, length=3), made)
    each = mask.expand(6, 1, 4, 4).clone()
    each[0] = False
    assert torch.equal(inpaint(model, x0, each, jumps=1)[0], x0[0])


def test_inpaint_is_independent_of_the_batch_and_depends_on_the_label():
    model, x0, mask = ideal.model(DDPM(10)), ideal.data(5), torch.rand(4, 4) < 0.5
    y = torch.tensor([0, 1, 2, 0, 2])
    made = inpaint(model, x0, mask, y, seed=3, jumps=2)
    torch.testing.assert_close(inpaint(model, x0, mask, y, seed=3, jumps=2, batch_size=2), made, rtol=0, atol=1e-5)
    torch.testing.assert_close(inpaint(model, x0[:1], mask, y[:1], seed=3, jumps=2), made[:1], rtol=0, atol=1e-5)
    assert not torch.equal(inpaint(model, x0, mask, y, seed=4, jumps=2), made)
    everything = torch.ones(4, 4, dtype=torch.bool)
    for k, mean in enumerate(ideal.MEANS):
        made = inpaint(model, ideal.data(40), everything, torch.full((40,), k), jumps=0)
        assert float(made.mean()) == pytest.approx(mean, abs=0.06)


def test_inpaint_refuses_impossible_jumps():
    for jumps, length in ((-1, 5), (1, 0)):
        with pytest.raises(ValueError, match="jumps"):
            inpaint(ideal.model(), ideal.data(1), torch.ones(4, 4, dtype=torch.bool), jumps=jumps, length=length)
    with pytest.raises(ValueError, match="wanted images"):
        inpaint(ideal.model(), torch.zeros(1, 1, 8, 8), torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="a condition for each of 2 images, got 3"):
        inpaint(ideal.model(DDIM(2)), ideal.data(2), torch.ones(4, 4, dtype=torch.bool), torch.zeros(3).long())
