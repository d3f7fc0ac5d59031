"""Running out of memory gives one line of advice and exit code 1."""

import pytest
import torch

from diffusion.cli import main
from diffusion.commands import fit, sample
from diffusion.commands.options.errors import explain

CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.25 GiB."


def ours():
    """The real error of the allocator, for 100,000 times the available memory."""
    try:
        torch.empty(2**50, dtype=torch.float64)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("module, argv, remedy", [
    (fit, ["fit"], ["--data.batch_size", "--trainer.accumulate_grad_batches", "--trainer.precision bf16-mixed"]),
    (sample, ["sample", "x"], ["use a smaller --batch_size"]),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["gpu", "cpu", "python"])
def test_out_of_memory_ends_with_advice(module, argv, remedy, kind, monkeypatch, capsys):
    error = {"gpu": torch.OutOfMemoryError(CUDA), "cpu": ours(), "python": MemoryError()}[kind]

    def full(*args):
        raise error

    monkeypatch.setattr(module, "main", full)
    assert main(argv) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"diffusion {argv[0]}: error: out of memory") and "Traceback" not in line
    assert all(word in line for word in remedy), line
    size = {"gpu": "(tried to allocate 20.00 MiB)", "cpu": f"(tried to allocate {2**53} bytes)", "python": "memory:"}
    assert size[kind] in line, line


def test_another_runtime_error_is_not_out_of_memory():
    assert "out of memory" not in explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "fit")[0]
