"""External networks: user-defined ones by import path, and diffusers' through an adapter."""

import sys

import pytest
import torch

from diffusion import Pipeline, nets
from diffusion.cli import main
from diffusion.nets.diffusers_unet import DiffusersUNet
from diffusion.support.specs import arguments, build, spec

OPTIONS = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 4,
}  # fmt: skip
MINE = '''
import torch
from torch import nn


class Tiny(nn.Module):
    """Two convolutions, a shift by the clock and one by the label."""

    def __init__(self, channels: int = 1, width: int = 16, num_classes: int = 0) -> None:
        super().__init__()
        self.channels, self.width, self.num_classes = channels, width, num_classes
        self.first, self.last = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.clock, self.label = nn.Linear(1, width), nn.Embedding(num_classes + 1, width)

    def forward(self, x, clock, y=None, keep=None):
        null = torch.full((len(x),), self.num_classes, device=x.device)
        y = null if y is None else y if keep is None else torch.where(keep, y, null)
        shift = self.clock(clock[:, None] / 1000) + self.label(y)
        return self.last(torch.relu(self.first(x) + shift[:, :, None, None]))
'''
RUN = (
    "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --model.sampler.steps 4 "
    "--data.limit 192 --samples.n 10 --gif.n 1 --model.warmup 0"
).split()


def test_diffusers_unet_matches_unet2dmodel():
    """The same output as UNet2DModel itself; a missing or dropped label is its class 10."""
    torch.manual_seed(0)
    net = DiffusersUNet(1, OPTIONS, num_classes=10).eval()
    x, clock, y = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 500.0, 999.0]), torch.tensor([3, 0, 9])
    with torch.no_grad():
        asked = lambda labels: net.body(x, clock, class_labels=torch.tensor(labels)).sample  # noqa: E731
        torch.testing.assert_close(net(x, clock, y), asked([3, 0, 9]))
        torch.testing.assert_close(net(x, clock), asked([10, 10, 10]))
        torch.testing.assert_close(net(x, clock, y, torch.tensor([True, False, True])), asked([3, 10, 9]))
        assert (asked([3, 0, 9]) - asked([10, 10, 10])).abs().max() > 1e-4
        plain, rgb = DiffusersUNet(3, OPTIONS), x.expand(-1, 3, -1, -1)
        torch.testing.assert_close(plain(rgb, clock), plain.body(rgb, clock).sample)
    again = build(spec(net))
    assert isinstance(again, DiffusersUNet) and again.options == OPTIONS and again.num_classes == 10


def test_diffusers_unet_rejects_invalid_options():
    with pytest.raises(ValueError, match="in_channels follow from the data"):
        DiffusersUNet(1, OPTIONS | {"in_channels": 2})
    with pytest.raises(ValueError, match="expected arguments of UNet2DModel"):
        DiffusersUNet(1, OPTIONS | {"widths": 2})
    with pytest.raises(ValueError, match="9x9 is not divisible by 2"):
        DiffusersUNet(1, OPTIONS)(torch.zeros(1, 1, 9, 9), torch.zeros(1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("name, net", [
    pytest.param("mine", "model: {net: {class_path: mine.Tiny, init_args: {width: 32}}}", id="mine"),
    pytest.param("theirs", f"model: {{net: {{class_path: diffusion.nets.diffusers_unet.DiffusersUNet, "
               f"init_args: {{options: {OPTIONS}}}}}}}",
                 id="theirs", marks=pytest.mark.slow),
])  # fmt: skip
def test_networks_train_by_import_path(name, net, folder, capsys):
    """From a configuration: channels and classes follow from the data; it trains, loads again, and samples."""
    config = folder / f"{name}.yaml"
    config.write_text(f"experiment: {name}\n{net}\n")
    assert main(["fit", "-c", str(config), *RUN, "--out", str(folder / "runs")]) == 0
    run = str(folder / "runs" / name)
    assert main(["validate", run]) == 0
    model = Pipeline.load(run, weights="raw")
    assert (model.num_classes, model.denoiser.net.channels) == (10, 1)
    assert not torch.equal(model.sample(2, torch.tensor([0, 0]), seed=1), model.sample(2, torch.tensor([1, 2]), seed=1))
    assert main(["sample", run, "--n", "4", "--label", "3", "--scale", "2", "--out", str(folder / "x.npz")]) == 0


def test_every_net_argument_is_an_option_with_help(capsys):
    """Documented once in Net, and available for each network that passes them on."""
    from jsonargparse import ArgumentParser

    for kind in (nets.AttentionUNet, nets.BlockUNet, nets.ContextUNet, nets.DiT, nets.ResidualMLP, nets.UNet):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind, "net")
        found = parser.format_help()
        for name in ("learn_variance", "self_condition", "num_classes", "context_dim", "image_channels"):
            assert f"--net.{name}" in found, (kind, name)
            assert name in arguments(kind)
        told = ("output 2C channels", "receive 2C channels", "classes of the labels", "width D of", "channels K of")
        for words in told:
            assert words in found, (kind, words)
        assert "facts" not in found
        with pytest.raises(TypeError, match="num_clases"):
            kind(num_clases=3)
