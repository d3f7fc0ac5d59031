"""Text on the command line: a frozen text encoder from training to pictures, hints of prompts, CLIP guidance."""

import pytest

from diffusion.cli import main
from diffusion.generation.pipeline import Pipeline
from diffusion.nets.frozen_text import FrozenTextEncoder
from tests import pretrained

pytestmark = pytest.mark.pretrained
SMALL = ["--model.net.width", "8", "--model.net.mults", "[1, 2]", "--model.net.attention", "[1]",
         "--model.net.head_width", "8", "--model.net.blocks", "1", "--model.net.text_width", "8", "--data.limit", "16",
         "--data.batch_size", "8", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
         "--trainer.limit_val_batches", "1", "--samples.n", "2", "--gif.n", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return pretrained.clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def run(clip, tmp_path_factory):
    """A tiny model of captions by a frozen CLIP."""
    out = tmp_path_factory.mktemp("runs")
    options = ["--data.text_encoder", clip, "--out", str(out), "--experiment", "frozen"]
    assert main(["fit", "-c", "configs/sprites_text.yaml", *SMALL, *options]) == 0
    return out / "frozen" / "version_0"


def test_a_model_with_a_frozen_text_encoder_trains_and_draws_prompts(run, clip, tmp_path, capsys):
    pipeline = Pipeline.load(run)
    assert isinstance(pipeline.denoiser.net.text, FrozenTextEncoder) and pipeline.tokens.folder == clip
    weights = max((run / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    assert weights.is_file() and not any("frozen" in name for name in pipeline.denoiser.state_dict())
    words = ["sample", str(run), "--steps", "2", "--device", "cpu", "--negative", "a dog", "--scale", "2"]
    assert main([*words, "--prompt", "a red cat", "--prompt", "a dog", "--out", str(tmp_path / "a.png")]) == 0
    assert "prompt '" not in capsys.readouterr().err
    assert main([*words, "--prompt", "red " * 99, "--out", str(tmp_path / "b.png")]) == 0
    (hint,) = [line for line in capsys.readouterr().err.splitlines() if "prompt '" in line]
    assert hint.startswith("diffusion sample: prompt 'red red") and "are read; say it in fewer words" in hint


def test_clip_guidance_on_the_command_line(tiny, clip, tmp_path, capsys):
    words = ["sample", str(tiny), "--n", "2", "--steps", "2", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "plain.png")]) == 0
    asked = ["--clip-prompt", "a cat", "--clip", clip]
    assert main([*words, *asked, "--clip-scale", "3", "--crops", "1", "--out", str(tmp_path / "clip.png")]) == 0
    assert (tmp_path / "clip.png").read_bytes() != (tmp_path / "plain.png").read_bytes()
    assert main([*words, *asked, "--clip_scale", "0", "--out", str(tmp_path / "off.png")]) == 0
    assert (tmp_path / "off.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
    capsys.readouterr()
    assert main([*words, "--clip-prompt", "a cat"]) == 2
    assert "(--clip FOLDER)" in capsys.readouterr().err


def test_a_missing_folder_of_a_text_encoder_is_one_line(tmp_path, capsys):
    options = ["--data.text_encoder", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert main(["fit", "-c", "configs/sprites_text.yaml", *SMALL, *options]) != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert "wanted the folder of a text model with a config.json" in said[-1]
