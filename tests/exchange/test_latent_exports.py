"""Exports of models of latents: .safetensors and compact files keep the codec; other formats are refused."""

import pytest
import torch

import diffusion
from diffusion import Pipeline
from diffusion.cli import main
from diffusion.denoiser.codecs import PCA, Frozen
from diffusion.denoiser.codecs.base import fingerprint
from diffusion.nets import AttentionUNet
from diffusion.nets.autoencoder import ConvAutoencoder
from diffusion.samplers import DDIM

from .conftest import pipeline


def frozen():
    net = ConvAutoencoder(1, 2, 8, (1, 2))
    return Frozen("runs/auto", hash=fingerprint(net), net=net)


def latent(make=frozen):
    torch.manual_seed(0)
    codec = make()
    codec.fit(lambda: iter([torch.rand(50, 1, 8, 8) * 2 - 1]))
    return pipeline(AttentionUNet(codec.latent, (8, 8), heads=2), sampler=DDIM(4), codec=codec, shape=(1, 8, 8))


@pytest.mark.parametrize("make", [frozen, lambda: PCA(1, 2, 2)], ids=["Frozen", "PCA"])
def test_safetensors_have_the_codec(make, tmp_path):
    model = latent(make)
    diffusion.export(model, tmp_path / "m.safetensors")
    found = Pipeline.load(tmp_path / "m.safetensors")
    assert type(found.codec) is type(model.codec) and found.latent_shape == model.latent_shape
    assert found.codec.mark == model.codec.mark
    assert torch.equal(found.sample(3, seed=1), model.sample(3, seed=1))


def test_bfloat16_leaves_the_codec_as_it_is(tmp_path):
    model = latent()
    diffusion.export(model, tmp_path / "m.safetensors", precision="bf16")
    found = Pipeline.load(tmp_path / "m.safetensors")
    assert found.codec.mark == model.codec.mark
    assert (found.sample(3, seed=1) - model.sample(3, seed=1)).abs().max() < 0.2


@pytest.mark.parametrize("name", ["m.onnx", "m.html", "folder"])
def test_formats_without_a_place_for_a_codec_are_refused(name, tmp_path):
    with pytest.raises(ValueError) as error:
        diffusion.export(latent(), tmp_path / name)
    said = str(error.value)
    assert "no place for its codec Frozen(runs/auto" in said and said.endswith("export it as .safetensors")
    assert not (tmp_path / name).exists()


def test_a_file_with_another_codec_is_refused(tmp_path):
    """Its description has the hash of the codec's weights; the file's own checksum is made anew."""
    from safetensors.torch import load_file, save_file

    from diffusion.support.files import digest

    file = tmp_path / "m.safetensors"
    diffusion.export(latent(), file)
    before, state = digest(file), load_file(file)
    state[weight(state)] += 0.1
    save_file(state, file)
    described = file.with_suffix(".json")
    described.write_text(described.read_text().replace(before, digest(file)))
    with pytest.raises(ValueError, match="its codec .* does not fit: .*expected hash"):
        Pipeline.load(file)


def weight(state):
    return next(k for k in state if k.startswith("codec.net.") and k.endswith("weight"))


def test_describe_counts_the_codec_apart(tmp_path, capsys):
    """Of PCA: 2 x 4 numbers of the basis, 4 of the mean, 2 of shift and scale each; 16 patches x 2 x 4 x 2 FLOPs."""
    model = latent(lambda: PCA(1, 2, 2))
    said = diffusion.describe(model)
    assert said.codec[1:] == (8 + 4 + 4, 16 * 16, 16 * 16)
    assert said.parameters == sum(p.numel() for p in model.denoiser.parameters())
    diffusion.export(model, tmp_path / "m.safetensors")
    assert main(["describe", str(tmp_path / "m.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "on 2x4x4" in out and "codec PCA, not trained: 16 weights, 0.00 MFLOPs per image to encode" in out
