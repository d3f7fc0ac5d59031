"""The fastest way of evaluating a network: measured once, on simulated clocks, with reasons for what is left out."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from diffusion.denoiser import Denoiser
from diffusion.generation.engine import fastest
from diffusion.nets import UNet, speed
from diffusion.nets import fastest as ways
from diffusion.nets.fastest import Measured, Timed, choose, key_of, remembered, timed
from diffusion.noise import Linear

SHAPE = (1, 8, 8)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = UNet(1, 8, (1, 2), 1, (1,), 8, num_classes=3).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)  # its last convolution is initially 0
    return net


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A processor with bf16, without ONNX Runtime and a compiler; `costs` are seconds of CPU time by way."""
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    made = SimpleNamespace(now=0.0, calls=0, bf16=True, costs={"torch": 0.02, "bf16": 0.01})
    monkeypatch.setattr(speed, "time", SimpleNamespace(process_time=lambda: made.now))
    monkeypatch.setattr(ways, "has_bf16", lambda: made.bf16)

    def missing(*given):
        raise ImportError("onnxruntime is missing: pip install onnxruntime")

    def absent():
        raise ValueError("compile: none was found; install g++")

    real = ways.called

    def called(net, half, given):
        made.calls += 1
        weight = next(p for p in net.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
        last = not weight.is_contiguous()
        made.now += made.costs["bf16" if half else "torch"] * (1.5 if last else 1)
        return real(net, half, given)

    monkeypatch.setattr(ways, "accelerated", missing)
    monkeypatch.setattr(ways, "compiler", absent)
    monkeypatch.setattr(ways, "called", called)
    return made


def test_every_way_is_timed_or_left_out_with_its_reason(net, machine):
    found = timed(net, SHAPE, 4)
    medians = {name: sorted(s)[2] for name, s in found.seconds.items()}
    assert medians == pytest.approx({"torch": 0.02, "channels_last": 0.03, "bf16": 0.01, "bf16 channels_last": 0.015})
    assert found.left_out.keys() == {"compile", "onnx"} and "pip install" in found.left_out["onnx"]
    assert found.best == "bf16" and "torch 20, channels_last 30" in found.words and "no compile: " in found.words
    assert all(p.is_contiguous() for p in net.parameters())


def test_a_processor_without_bf16_leaves_it_out(net, machine):
    machine.bf16 = False
    found = timed(net, SHAPE, 4)
    assert found.best == "torch" and found.left_out["bf16"] == "this processor does not compute bf16"


def test_times_are_measured_once_for_an_architecture_and_batch_size(net, machine):
    first, before = remembered(net, SHAPE, 5)
    calls = machine.calls
    assert not before and calls
    for p in net.parameters():
        torch.nn.init.zeros_(p)  # times do not depend on weights
    assert remembered(net, SHAPE, 4) == (first, True) == remembered(net, SHAPE, 7) and machine.calls == calls
    assert not remembered(net, SHAPE, 8)[1]


def test_the_key_is_of_all_that_times_depend_on(net, machine, monkeypatch):
    keys = {key_of(net, SHAPE, 4), key_of(net, SHAPE, 8), key_of(net, (1, 16, 16), 4)}
    keys.add(key_of(UNet(1, 16, (1, 2), 1, (1,), 8, num_classes=3), SHAPE, 4))
    for name, value in {
        "chip": lambda: "another",
        "release": lambda name: "9",
        "torch": SimpleNamespace(get_num_threads=lambda: 77),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(ways, name, value)
            if name == "torch":
                patch.setattr(ways, "chip", lambda: "the same")
            keys.add(key_of(net, SHAPE, 4))
    assert len(keys) == 7


def test_a_damaged_file_is_measured_again(net, machine, tmp_path):
    remembered(net, SHAPE, 4)
    (file,) = (tmp_path / "engines").iterdir()
    file.write_text("{")
    assert not remembered(net, SHAPE, 4)[1] and remembered(net, SHAPE, 4)[1]


def test_the_time_before_the_first_evaluation_counts():
    spent = {"torch": [1.0, 1.1], "compile": [0.8, 0.9]}
    assert Timed(4, spent, {"torch": 0.0, "compile": 50.0}, {}).best == "compile"
    assert Timed(4, spent, {"torch": 0.0, "compile": 150.0}, {}).best == "torch"


def test_the_choice_and_its_difference_are_told(net, machine):
    """The output in bf16 differs by its rounding, 2^-9 of the size of the values in it."""
    denoiser = Denoiser(net, Linear(100))
    with pytest.warns(Measured, match=r"engine fastest: bf16; .* largest difference \S+ of outputs with") as told:
        found, way = fastest(denoiser, SHAPE, 4, free=True)
    error = float(str(told[0].message).split("largest difference ")[1].split()[0])
    assert way == "bf16" and found.precision == torch.bfloat16 and 1e-5 < error < 1


def test_torch_stays_torch_to_the_bit(net, machine):
    machine.bf16 = False
    denoiser = Denoiser(net, Linear(100))
    with pytest.warns(Measured, match="engine fastest: torch; "):
        found, way = fastest(denoiser, SHAPE, 4, free=True)
    assert found is denoiser and way == "torch" and found.precision is None


def test_several_processes_and_gpus_are_not_measured(net, machine, monkeypatch):
    assert choose(net, SHAPE, 4, "cuda")[0] == "torch"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose(net, SHAPE, 4, "cpu") == ("torch", "not measured: several processes would choose differently")
    assert machine.calls == 0


def test_another_precision_is_refused(net):
    with pytest.raises(ValueError, match="leave out --precision and --compile"), warnings.catch_warnings():
        fastest(Denoiser(net, Linear(100)), SHAPE, 4, free=False)
