"""What `diffusion check` says of flow maps: the published factors of Flow, and each fault by name."""

import pytest
import torch

from diffusion.bench import flow_maps
from diffusion.bench.flow_maps import check_flow_maps
from diffusion.loss import flow_map
from diffusion.noise import Flow


def test_facts_of_flow_are_the_published_factors():
    facts = check_flow_maps(Flow())
    assert facts.chains == pytest.approx((0.6811, 0.8296, 0.9114, 0.9547), abs=5e-5)
    assert max(facts.oracle, facts.target, facts.bias) < 1e-12 and facts.same and not facts.problem


def test_a_wrong_share_of_the_second_leg_is_found(monkeypatch):
    """In the target itself, and in what a chain of levels learns."""
    right = flow_map.second_leg
    for module in (flow_map, flow_maps):
        monkeypatch.setattr(module, "second_leg", lambda t, s, r: 0.9 * right(t, s, r))
    problem = check_flow_maps(Flow()).problem
    assert "x_0* differs" in problem and "product of cosines" in problem and "exact map" not in problem


def test_a_wrong_exact_map_is_found(monkeypatch):
    def late(self, x, t, cond=None):
        return self.data(x, t)  # the denoiser

    monkeypatch.setattr(flow_maps.Map, "__call__", late)
    assert "the exact map misses the probability flow by" in check_flow_maps(Flow()).problem


def test_a_loss_that_is_not_the_objectives_is_found(monkeypatch):
    monkeypatch.setattr(flow_maps.FlowMap, "cost", lambda self, *args: torch.ones(8).double())
    assert check_flow_maps(Flow()).problem.endswith("not that of Objective")


def test_an_error_is_a_row():
    class Broken(Flow):
        def scales(self, t):
            raise ArithmeticError("no scales")

    assert check_flow_maps(Broken()).problem == "ArithmeticError: no scales"
