"""`diffusion export` of a trained run, and the commands that open what it writes."""

import numpy as np
import pytest

from diffusion.cli import main

pytest.importorskip("onnxscript", reason="pip install -e '.[test]'")


def pictures(source, out, *options):
    assert main(["sample", str(source), "--out", str(out), "--n", "10", *options]) == 0
    return np.load(out)["images"].astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("to, told, equal", [
    (("m.safetensors",), "m.json", 1),
    (("m.onnx",), "weights of step 10", 0.99),
    (("m.onnx", "--storage", "fp16"), "fp16 against float32, of the network's output on noise: largest", 0.9),
])  # fmt: skip
def test_an_exported_run_gives_its_pictures(tiny, tmp_path, capsys, to, told, equal):
    """To one grey level, in this share of the pixels to none."""
    name, *options = to
    assert main(["export", str(tiny), "--to", str(tmp_path / name), *options]) == 0
    assert told in capsys.readouterr().out
    wanted, found = pictures(tiny, tmp_path / "a.npz"), pictures(tmp_path / name, tmp_path / "b.npz")
    assert np.abs(found - wanted).max() <= 1 and np.mean(found == wanted) >= equal


@pytest.mark.slow
def test_engine_onnx_gives_a_runs_pictures(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_CACHE", str(tmp_path / "cache"))
    wanted, found = (pictures(tiny, tmp_path / f"{e}.npz", "--engine", e) for e in ("torch", "onnx"))
    assert np.abs(found - wanted).max() <= 1 and len(list((tmp_path / "cache" / "engines").iterdir())) == 1


def test_an_exported_model_beside_the_runs_configuration_knows_its_data(tiny, tmp_path):
    assert main(["export", str(tiny), "--to", str(tmp_path / "m.safetensors")]) == 0
    (tmp_path / "config.yaml").write_bytes((tiny / "config.yaml").read_bytes())
    assert main(["nll", str(tmp_path / "m.safetensors"), "--n", "2", "--method", "vlb", "--steps", "2"]) == 0


def test_a_folder_is_written_for_diffusers(tiny, tmp_path, capsys):
    assert main(["export", str(tiny), "--to", str(tmp_path / "folder")]) == 0
    told = capsys.readouterr().out
    assert "trust_remote_code=True" in told and "use_clipped_model_output=True" in told
    assert {p.name for p in (tmp_path / "folder").iterdir()} == {"model_index.json", "pipeline.py", "scheduler", "unet"}


@pytest.mark.parametrize("argv, words", [
    (["--to", "x.onnx", "--eta", "0.5", "--colour", "1"], "unknown option '--colour'"),
    (["--to", "x.pt"], "wanted .safetensors, .onnx, .html, or a folder"),
    ([], "--to"),
])  # fmt: skip
def test_wrong_options_are_refused(tiny, tmp_path, monkeypatch, capsys, argv, words):
    run = str(tiny.absolute())
    monkeypatch.chdir(tmp_path)
    assert main(["export", run, *argv]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_training_does_not_resume_from_an_exported_model(tiny, tmp_path, capsys):
    file = tmp_path / "m.safetensors"
    assert main(["export", str(tiny), "--to", str(file)]) == 0
    assert main(["fit", "-c", "configs/digits.yaml", "--resume", str(file), "--out", str(tmp_path)]) == 2
    assert "no optimizer to resume with" in capsys.readouterr().err
