"""The precision of a run: the default of the device, or measured on request."""

from types import SimpleNamespace

import pytest
import torch

from diffusion.nets import speed
from diffusion.training import precision
from diffusion.training.precision import Choice, choose, layout_of, usual, ways

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def config(short="", long=None, layout=""):
    return SimpleNamespace(precision=short, layout=layout, trainer=SimpleNamespace(precision=long))


def never(choices):
    raise AssertionError("nothing is measured unless asked for")


@pytest.mark.parametrize(("amx", "nodes", "wanted"), [
    (True, 1, ("bf16-mixed", "contiguous")), (False, 1, ("32-true", "channels_last")),
    (True, 2, ("32-true", "channels_last")),
])  # fmt: skip
def test_the_default_on_a_cpu_follows_its_flags(monkeypatch, amx, nodes, wanted):
    monkeypatch.setattr(speed, "has_amx", lambda: amx)
    assert usual(CPU, nodes)[:2] == wanted
    assert choose(config(), {}, CPU, never, nodes=nodes)[:2] == wanted


@pytest.mark.parametrize(("flags", "found"), [("avx512f avx512_bf16", False), ("avx512_bf16 amx_bf16 amx_tile", True)])
def test_amx_is_read_from_the_cpu_flags(monkeypatch, tmp_path, flags, found):
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
    monkeypatch.setattr(speed, "Path", lambda name: tmp_path / "cpuinfo")
    assert speed.has_amx() is found


@pytest.mark.parametrize(("computes", "wanted"), [(True, "bf16-mixed"), (False, "32-true")])
def test_the_default_on_a_gpu_follows_its_support_of_bf16(monkeypatch, computes, wanted):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: computes)
    assert usual(GPU)[:2] == (wanted, "channels_last") and usual(GPU, nodes=4).precision == wanted


def test_options_precede_the_recorded_choice_and_that_the_default(monkeypatch):
    monkeypatch.setattr(speed, "has_amx", lambda: False)
    before = {"trainer": {"precision": "bf16-mixed"}, "layout": "channels_last"}
    assert choose(config(), before, CPU, never) == ("bf16-mixed", "channels_last", "")
    assert choose(config("fastest"), before, CPU, never) == ("bf16-mixed", "channels_last", "")
    assert choose(config(long="32-true"), before, CPU, never) == ("32-true", "channels_last", "")
    assert choose(config("bf16-mixed"), {}, CPU, never) == ("bf16-mixed", "contiguous", "")
    assert choose(config("bf16-mixed", layout="channels_last"), {}, CPU, never).layout == "channels_last"
    assert choose(config(), {"trainer": {}}, CPU, never).precision == "32-true"  # of a run without a recorded choice
    assert choose(config(), {}, CPU, never, conv=False).layout == "contiguous"
    assert layout_of("bf16-mixed", GPU) == layout_of("32-true", CPU) == "channels_last"


def test_fastest_measures_the_default_against_all_others(monkeypatch):
    monkeypatch.setattr(speed, "has_amx", lambda: False)
    asked = []
    found = choose(config("fastest"), {}, CPU, lambda choices: asked.extend(choices) or choices[2])
    assert asked[0] == ("32-true", "channels_last", "") and len(asked) == 4 == len({c[:2] for c in asked})
    assert found == asked[2] and ways(Choice("bf16-mixed", "channels_last"), GPU) == [asked[2]] != asked


@pytest.mark.parametrize(("short", "long", "layout", "words"), [
    ("32-true", "bf16-mixed", "", "give one of them"), ("", None, "diagonal", "channels_last or contiguous"),
])  # fmt: skip
def test_contradictions_and_unknown_layouts_are_refused(short, long, layout, words):
    with pytest.raises(ValueError, match=words):
        choose(config(short, long, layout), {}, CPU, never)


@pytest.mark.parametrize(("half", "wanted"), [(0.002, "bf16-mixed"), (0.02, "32-true")])
def test_the_precision_with_shorter_steps_is_chosen(monkeypatch, half, wanted):
    """On simulated clocks: a float32 step takes 10 ms of CPU time, and one in bf16 waits 20 ms longer for others."""
    choices, net = ways(Choice("32-true", "channels_last"), CPU), torch.nn.Conv2d(2, 2, 3)

    cpu, wall = [0.0], [0.0]
    clocks = {"process_time": lambda: cpu[0], "perf_counter": lambda: wall[0], "monotonic": lambda: wall[0]}
    monkeypatch.setattr(speed, "time", SimpleNamespace(**clocks))

    def loss(n):
        spent, waits = (half, 0.02) if torch.is_autocast_enabled("cpu") else (0.01, 0.0)
        cpu[0] += spent
        wall[0] += spent + waits
        return torch.ones((), requires_grad=True).sum()

    found = precision.measured(net, loss, 8, CPU, choices)
    assert found.precision == wanted
    assert ("times as fast as 32-true here" in found.reason) is (wanted == "bf16-mixed")


def test_the_reason_of_a_measured_choice_names_what_differs(monkeypatch):
    """For two layouts of one precision it names the layout."""
    monkeypatch.setattr(speed, "interleaved", lambda steps: [[2.0, 2.0], [1.0, 1.0]])
    monkeypatch.setattr(speed, "affordable", lambda step, batch: 1)
    choices = [Choice("32-true", "channels_last"), Choice("32-true", "contiguous")]
    found = precision.measured(torch.nn.Conv2d(2, 2, 3), None, 8, CPU, choices)
    assert found == ("32-true", "contiguous", "2.0 times as fast as channels_last here, +- 0%")


def test_a_difference_within_the_spread_keeps_the_default():
    assert speed.clearly_fastest([[1.0, 1.2, 1.1], [0.9, 1.05, 0.8]]) == 0  # 1.05 is more than 1.0
    assert speed.clearly_fastest([[1.0, 1.2, 1.1], [0.9, 0.95, 0.8]]) == 1
    assert speed.clearly_fastest([[1.0, 1.2], [0.9, 0.95], [0.5, 0.6]]) == 2
    assert speed.clearly_fastest([[1.0], [2.0]]) == 0


def test_steps_are_measured_alternately():
    order = []
    spent = speed.interleaved([lambda k=k: order.append(k) for k in range(2)], rounds=3)
    assert order == [0, 1] * 4 and [len(s) for s in spent] == [3, 3]  # the first of each is a warm-up
