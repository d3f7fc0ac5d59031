"""model.safetensors with model.json: equal pictures, half the size in bfloat16, and refusals."""

import json
import os

import pytest
import torch

import diffusion
from diffusion import Pipeline
from diffusion.cli import main

from .conftest import digits


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of the digits model."""
    file = tmp_path_factory.mktemp("native") / "model.safetensors"
    diffusion.export(digits(), file)
    return file


def copied(written, folder):
    for file in (written, written.with_suffix(".json")):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / written.name


def test_an_exported_model_gives_the_same_pictures(model, tmp_path):
    made = diffusion.export(model, tmp_path / "deep" / "m.safetensors")
    found = Pipeline.load(made.files[0])
    assert torch.equal(found.sample(4, seed=2), model.sample(4, seed=2))
    assert (found.shape, found.class_names, repr(found)) == (model.shape, model.class_names, repr(model))
    assert made.format == "safetensors" and made.size == sum(f.stat().st_size for f in tmp_path.glob("deep/*"))


@pytest.mark.parametrize("precision, most", [("bf16", 0.1), ("fp16", 0.02)])
def test_16_bits_are_half_of_the_size_and_nearly_the_same(precision, most, written, tmp_path):
    half = tmp_path / "half.safetensors"
    diffusion.export(digits(), half, precision=precision)
    assert half.stat().st_size < 0.6 * written.stat().st_size  # names and shapes are kept
    one, other = (Pipeline.load(f).sample(4, seed=2) for f in (written, half))
    assert 0 < (one - other).abs().max() < most
    assert next(Pipeline.load(half).denoiser.parameters()).dtype == torch.float32


def test_the_same_model_gives_the_same_bytes(written, tmp_path):
    again = tmp_path / written.name
    diffusion.export(digits(), again)
    for suffix in (".safetensors", ".json"):
        assert again.with_suffix(suffix).read_bytes() == written.with_suffix(suffix).read_bytes()


def test_commands_open_an_exported_model_like_a_run(written, tmp_path, capsys):
    assert main(["sample", str(written), "--n", "4", "--out", str(tmp_path / "a.png")]) == 0
    assert main(["describe", str(written)]) == 0
    assert main(["film", str(written), "--n", "2", "--frames", "3", "--out", str(tmp_path / "a.gif")]) == 0
    assert "AttentionUNet" in capsys.readouterr().out
    assert main(["nll", str(written)]) == 2
    error = capsys.readouterr().err
    assert "config.yaml" in error and "can be copied beside an exported model" in error


def refused(file, *words, command=("sample",)):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Pipeline.load(file)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("harm", [lambda b: b[:-10], lambda b: b[:20], lambda b: b"", lambda b: b[:-9] + b"x" + b[-8:]])
def test_a_truncated_or_damaged_file_is_refused(written, tmp_path, harm):
    file = copied(written, tmp_path)
    file.write_bytes(harm(file.read_bytes()))
    refused(file, "damaged, truncated, or not the file that model.json describes")


def test_a_file_of_another_program_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "model.json is missing beside it")
    (tmp_path / "model.json").write_text('{"architectures": ["GPT"]}')
    refused(tmp_path / "model.safetensors", "not a description of a model of this project")


@pytest.mark.parametrize("change, words", [
    (lambda d: d.update(version=2), "format version 2"),
    (lambda d: d.pop("hyper_parameters"), "wanted hyper_parameters"),
    (lambda d: d["hyper_parameters"].update(net="UNet"), "wanted hyper_parameters"),
    (lambda d: d["hyper_parameters"].update(shape=[1, 8]), "wanted hyper_parameters"),
    (lambda d: d.update(global_step="many"), "wanted integers"),
    (lambda d: d["hyper_parameters"]["net"].update(class_path="os.system"), "is not a component of a model"),
    (lambda d: d["hyper_parameters"]["net"].update(class_path="subprocess.Popen"), "is not a component of a model"),
    (lambda d: d["hyper_parameters"]["net"].update(class_path="no.such.Net"), "cannot import 'no.such.Net'"),
    (lambda d: d["hyper_parameters"]["net"]["init_args"].update(widths=[8, 8]), "weights do not fit"),
    (lambda d: d["hyper_parameters"]["net"]["init_args"].update(colour=1), "colour"),
    (lambda d: d["hyper_parameters"].update(schedule=d["hyper_parameters"]["net"]), "schedule: wanted a Schedule"),
    (lambda d: d["hyper_parameters"].update(sampler={}), "sampler: wanted a Sampler"),
    (lambda d: d["hyper_parameters"].update(scaling={"shift": 3}), "scaling"),
])  # fmt: skip
def test_a_wrong_description_is_refused(written, tmp_path, change, words):
    file = copied(written, tmp_path)
    text = json.loads(file.with_suffix(".json").read_text())
    change(text)
    file.with_suffix(".json").write_text(json.dumps(text))
    refused(file, words)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "\0\1", '{"format": "litdiffusion", "version": 1', "[]"])
def test_a_description_that_is_no_json_is_refused(written, tmp_path, text):
    file = copied(written, tmp_path)
    file.with_suffix(".json").write_text(text)
    refused(file, "not a description of a model of this project")


def test_raw_weights_are_not_in_a_file_of_averaged_ones(written):
    with pytest.raises(ValueError, match="holds the averaged weights only"):
        Pipeline.load(written, "raw")


def test_nothing_is_written_when_writing_fails(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        diffusion.export(digits(), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to, options, words", [
    ("m.pt", {}, "wanted .safetensors, .onnx, .html, or a folder for diffusers"),
    ("m.onnx", {"format": "safetensors"}, "ends in .safetensors"),
    ("m.onnx", {"format": "onxx"}, "unknown format 'onxx'; did you mean 'onnx'?"),
    ("m.onnx", {"precision": "bf16"}, "--precision bf16 is an option of .safetensors"),
    ("m.safetensors", {"storage": "int8"}, "--storage int8 is an option of .onnx"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(tmp_path, to, options, words):
    with pytest.raises(ValueError, match=words):
        diffusion.export(digits(), tmp_path / to, **options)
    assert not list(tmp_path.iterdir())


def test_export_names_the_extra_that_is_missing(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"safetensors is missing: pip install 'litdiffusion\[export\]'"):
        diffusion.export(digits(), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
