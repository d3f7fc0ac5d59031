"""Walks that start or stop at an intermediate level."""

import pytest
import torch

from diffusion import samplers
from diffusion.bench.analytic import Mixture
from diffusion.denoiser import AnyLevel
from diffusion.noise import Cosine
from diffusion.noise.draws import ImageDraws
from diffusion.support.specs import concrete

DATA = Mixture([-0.6, 0.5], 0.2, [1.0, 2.0])
N = 6
ALL = sorted(concrete(samplers.Sampler, "diffusion"), key=lambda k: k.__name__)


class LookedAt(Exception):
    pass


class Past:
    """A past whose items must not be read."""

    def look(self, *args):
        raise LookedAt

    __len__ = __iter__ = __getitem__ = __bool__ = look


def is_multistep(kind):
    sampler, x = kind(6), torch.zeros(1, 1, 2, 2).double()
    _, t, s, *_ = sampler.levels(Cosine())
    try:
        sampler.step(AnyLevel(DATA, Cosine()), x, t, s, Past(), torch.randn_like)
    except LookedAt:
        return True
    return False


MULTISTEP = {kind for kind in ALL if is_multistep(kind)}


def test_multistep_samplers_are_those_that_read_the_past():
    assert {samplers.DPMSolver, samplers.UniPC, samplers.DEIS} <= MULTISTEP
    assert not {samplers.DDIM, samplers.Heun, samplers.DPM2} & MULTISTEP


def walk(sampler, *cuts):
    noise = ImageDraws(0, range(5))
    x, frames = noise(torch.empty(5, 1, 2, 2)).double(), []
    for start, stop in cuts:
        for frame in sampler.iterate(DATA, x, Cosine(), noise, start, stop):
            frames.append(frame)
            x = frame.x
    return frames


@pytest.mark.parametrize("kind", [k for k in ALL if k not in MULTISTEP])
def test_walk_in_two_parts_equals_the_whole(kind):
    whole = walk(kind(N), (0, None))
    assert len(whole) == N
    for k in range(N + 1):
        parts = walk(kind(N), (0, k), (k, None))
        assert len(parts) == N
        for a, b in zip(whole, parts, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.x0, b.x0) and a.t == b.t


@pytest.mark.parametrize("kind", sorted(MULTISTEP, key=lambda k: k.__name__))
def test_multistep_methods_restart_without_a_past(kind):
    """The first part equals the whole walk, the first step after the cut is DDIM's, and the end differs."""
    whole, parts = walk(kind(N), (0, None)), walk(kind(N), (0, 3), (3, None))
    assert all(torch.equal(a.x, b.x) for a, b in zip(whole[:3], parts[:3], strict=True))
    (first,) = samplers.DDIM(N).iterate(DATA, whole[2].x, Cosine(), start=3, stop=4)
    torch.testing.assert_close(parts[3].x, first.x, rtol=1e-9, atol=1e-9)
    assert (parts[-1].x - whole[-1].x).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ALL)
def test_frames_of_a_partial_walk_are_at_the_samplers_levels(kind):
    levels = kind(N).levels(Cosine())
    assert len(levels) == N + 1 and float(levels[-1].sigma) == 0
    assert [f.t for f in walk(kind(N), (0, None))] == levels[1:]
