"""A shifted schedule against closed forms, and the property that gives it its name."""

import math

import pytest
import torch

from diffusion.bench.schedules import check_schedule
from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.noise import VE, VP, Cosine, Flow, Karras, Linear, Shifted, SubVP
from diffusion.noise.grids import GRIDS, times
from diffusion.support.specs import build, spec

INNER = [Linear(100), Cosine(), Cosine(50, zero_snr=True), VP(), SubVP(), VE(), Karras(), Flow()]
T = torch.linspace(0.05, 1, 20, dtype=torch.float64)


def named(schedule):
    return type(schedule).__name__


@pytest.mark.parametrize("size, base", [(128, 64), (256, 64), (16, 64), (64, 32)])
@pytest.mark.parametrize("inner", INNER, ids=named)
def test_shifted_log_snr_is_lower_by_twice_the_log_of_the_size(inner, size, base):
    """And `diffusion check` finds no fault: SNR falls, time inverts it, f and g^2 are the slopes of the scales."""
    schedule, inside = Shifted(inner, size, base), T[:-1]
    shift = inner.level(inside).log_snr - schedule.level(inside).log_snr
    torch.testing.assert_close(shift, torch.full_like(shift, 2 * math.log(size / base)), rtol=0, atol=1e-9)
    assert check_schedule(schedule).problem == ""


@pytest.mark.parametrize("inner", INNER, ids=named)
def test_a_shift_by_1_changes_nothing(inner):
    schedule = Shifted(inner, 64, 64)
    torch.testing.assert_close(torch.stack(schedule.scales(T)), torch.stack(inner.scales(T)), rtol=1e-12, atol=0)
    ours, its = (torch.stack(s.sde(T[:-1])) for s in (schedule, inner))
    torch.testing.assert_close(ours, its, rtol=1e-12, atol=1e-12)
    assert schedule.prior_std == pytest.approx(inner.prior_std, rel=1e-12)


@pytest.mark.parametrize("inner", INNER, ids=named)
def test_shifts_add(inner):
    twice, once = Shifted(Shifted(inner, 128), 128), Shifted(inner, 256)
    torch.testing.assert_close(torch.stack(twice.scales(T)), torch.stack(once.scales(T)), rtol=1e-12, atol=1e-15)
    ours, its = (torch.stack(s.sde(T[:-1])) for s in (twice, once))
    torch.testing.assert_close(ours, its, rtol=1e-9, atol=1e-12)
    assert twice.prior_std == pytest.approx(once.prior_std, rel=1e-12)


def test_a_shifted_cosine_is_simple_diffusions():
    """log SNR = -2 log tan(pi t / 2) + 2 log(64 / d), alpha^2 = sigmoid: arXiv:2301.11093, sec. 3.1, at d = 256."""
    level = Shifted(Cosine(4000, s=1e-9, max_beta=1 - 1e-12), 256).level(T[:-1])
    right = -2 * (math.pi * T[:-1] / 2).tan().log() + 2 * math.log(64 / 256)
    torch.testing.assert_close(level.log_snr, right, rtol=0, atol=1e-5)
    torch.testing.assert_close(level.alpha, right.sigmoid().sqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(level.sigma, (-right).sigmoid().sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("r", [0.25, 2, 3])
def test_a_shifted_flow_is_a_flow_at_shifted_times(r):
    """t -> r t / (1 + (r - 1) t), with f = (log alpha)' and g^2 = (sigma^2)' - 2 f sigma^2 by hand."""
    schedule, rise = Shifted(Flow(), int(64 * r)), 1 + (r - 1) * T
    torch.testing.assert_close(torch.stack(schedule.scales(T)), torch.stack([(1 - T) / rise, r * T / rise]))
    t, rise = T[:-1], rise[:-1]
    f = -1 / (1 - t) - (r - 1) / rise
    sigma, slope = r * t / rise, r / rise**2
    right = torch.stack([f, 2 * sigma * slope - 2 * f * sigma**2])
    torch.testing.assert_close(torch.stack(schedule.sde(t)), right, rtol=1e-12, atol=1e-12)
    assert schedule.prior_std == 1 and schedule.scales(T[-1:])[0] == 0
    assert Shifted(Cosine(50, zero_snr=True), 128).sde(T[-1:])[0] == -math.inf  # no signal remains


def test_a_shifted_ve_has_more_noise_and_the_same_signal():
    for inner in (VE(0.01, 50), Karras(0.002, 80)):
        schedule = Shifted(inner, 128)
        assert torch.equal(schedule.scales(T)[0], torch.ones_like(T))
        torch.testing.assert_close(schedule.scales(T)[1], 2 * inner.scales(T)[1], rtol=1e-15, atol=0)
        torch.testing.assert_close(schedule.sde(T)[1], 4 * inner.sde(T)[1], rtol=1e-12, atol=0)
        assert schedule.prior_std == 2 * inner.prior_std


@pytest.mark.parametrize("r", [2, 4])
def test_blocks_of_a_larger_image_have_the_noise_of_the_small_one(r):
    """Means over r x r pixels of an image of constant blocks: the ratio of noise to signal is the schedule's."""
    torch.manual_seed(0)
    t = torch.tensor(0.3, dtype=torch.float64)
    level = Shifted(Cosine(), 64 * r).level(t)
    noise = torch.randn(4000, 1, 4 * r, 4 * r, dtype=torch.float64)
    blocks = torch.nn.functional.avg_pool2d(level.ratio * noise, r)
    assert float(blocks.std()) == pytest.approx(float(Cosine().level(t).ratio), rel=0.01)  # 64,000 numbers: 0.3 %


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("inner", INNER, ids=named)
def test_every_grid_walks_a_shifted_schedule(grid, inner):
    schedule = Shifted(inner, 256)
    t = times(grid, schedule, 20)
    assert len(t) == 20 and (t.diff() < 0).all()
    if schedule.T and grid not in ("karras", "log_snr"):
        assert torch.equal(schedule.clock(t), schedule.clock(t).round())  # only at levels of the table


def test_a_shifted_schedule_goes_through_its_spec():
    schedule = Shifted(Linear(50), 256, 32)
    again = build(spec(schedule))
    assert torch.equal(torch.stack(again.scales(T)), torch.stack(schedule.scales(T)))
    assert (again.T, again.size, again.base) == (50, 256, 32)
    Denoiser(torch.nn.Identity(), again, V())


def test_shift_refuses_sizes_below_one():
    with pytest.raises(ValueError, match="Shifted: size and base must be at least 1 pixel, got 0 and 64"):
        Shifted(Cosine(), 0)
