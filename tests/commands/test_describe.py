"""`diffusion describe`: parameters, FLOPs and memory of networks, against counts by hand."""

import pytest
import torch
from torch import nn

import diffusion
from diffusion.cli import main
from diffusion.nets import BlockUNet, DiT, UNet
from diffusion.nets.describe import Description, describe, parts, work


class Two(nn.Module):
    """A convolution and a gain, whose FLOPs, parameters and memory are easy to count."""

    def __init__(self):
        super().__init__()
        self.conv, self.gain = nn.Conv2d(2, 4, 3, padding=1), nn.Parameter(torch.ones(()))

    def forward(self, x, clock, y=None, keep=None):
        return self.gain * self.conv(x)[:, :2].exp()


def test_describe_matches_flops_and_memory_counted_by_hand():
    net = Two()
    flops, kept = work(net, (2, 8, 6))
    assert flops[""] == flops["conv"] == 2 * (3 * 3 * 2) * (4 * 8 * 6)  # a multiply-add is two operations
    # Kept for the backward pass: the convolution's input (2 channels) and the exponential (2); the gain is a weight.
    assert kept == 4 * (2 + 2) * 8 * 6
    assert list(parts(net, flops)) == [
        ("conv", "Conv2d", 4 * 18 + 4, flops[""]),
        ("(own)", "Parameter", 1, 0),
    ]


@pytest.mark.parametrize("net", [
    lambda: UNet(1, 8, (1, 2), 1, num_classes=3),
    lambda: BlockUNet(1, ("res", "clsAtn", "atn"), 8, layers=1, t_dim=8, c_dim=8, num_classes=3),
    lambda: DiT(1, 2, 16, 2, 2, context_dim=5),
])  # fmt: skip
def test_describe_parts_sum_to_the_whole(net):
    net = net().eval()
    flops, kept = work(net, (1, 8, 8))
    rows = list(parts(net, flops))
    assert sum(r[2] for r in rows) == sum(p.numel() for p in net.parameters()) and not net.training
    assert sum(r[3] for r in rows) == flops[""] > 0 and kept > 8 * 8 * 4


def test_dit_s_2_has_the_published_flops():
    """DiT-S/2 on 4x32x32: 6.06 G multiply-adds. Source: Peebles and Xie 2023, arXiv:2212.09748, tab. 1 and 4."""
    assert work(DiT(4, 2, 384, 12, 6, num_classes=1000), (4, 32, 32)).flops[""] / 2e9 == pytest.approx(6.06, abs=0.006)


def test_describe_takes_a_configuration_or_a_run(tiny, capsys):
    net = ["--model.net.widths", "[8,16]", "--model.net.attention", "1"]
    assert main(["describe", "configs/digits.yaml", *net]) == 0
    configured = capsys.readouterr().out.splitlines()
    assert main(["describe", str(tiny)]) == 0
    run = capsys.readouterr().out.splitlines()
    assert configured[0].startswith("AttentionUNet on 1x8x8, 10 classes: ") and "GFLOPs per image" in configured[0]
    assert run[:-1] == configured[-len(run) : -1]
    assert configured[-1].startswith(run[-1]) and configured[-1].endswith("at batch 64")


def test_describe_counts_the_channels_of_self_conditioning_and_hint():
    net = UNet(1, 8, (1, 2), 1, self_condition=True, image_channels=2)
    found = describe(net, (1, 8, 8), hint="Masked")
    assert isinstance(found, Description) and found.flops > work(UNet(1, 8, (1, 2), 1), (1, 8, 8)).flops[""]
    assert str(found).startswith(f"UNet on 1x8x8, Masked: {found.parameters:,} parameters, ")


def test_describe_in_python_equals_the_command(capsys):
    found = diffusion.describe("configs/digits.yaml", {"model.net.widths": [8, 16], "model.net.attention": 1})
    assert main(["describe", "--model.net.widths=[8,16]", "configs/digits.yaml", "--model.net.attention", "1"]) == 0
    assert capsys.readouterr().out == f"{found}\n" and found.batch_size == 64


def test_ddpms_network_has_the_published_size(capsys):
    """configs/cifar10.yaml without labels: 35.7 million parameters, 6.2 G multiply-adds."""
    assert main(["describe", "configs/cifar10.yaml", "--data.labels", "false"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("UNet on 3x32x32: 35,746,307 parameters, 12.444 GFLOPs per image\n")
    assert "weights 143 MB; training 715 MB" in said and said.endswith(" at batch 128\n")


def test_a_prepared_folder_gives_the_size(tmp_path, capsys):
    from PIL import Image

    for k in range(4):
        (tmp_path / "found").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (k, 0, 0)).save(tmp_path / "found" / f"{k}.png")
    assert main(["prepare", str(tmp_path / "found"), "--out", str(tmp_path / "made"), "--size", "16"]) == 0
    capsys.readouterr()
    assert main(["describe", "-c", "configs/jit64.yaml", "--data", str(tmp_path / "made")]) == 0
    assert "DiT on 3x16x16" in capsys.readouterr().out


@pytest.mark.parametrize("config", ["digits_autoencoder", "features_digits", "digits_classifier"])
def test_networks_of_other_systems_are_described(config, capsys):
    assert main(["describe", f"configs/{config}.yaml"]) == 0
    said = capsys.readouterr().out
    assert " on 1x8x8" in said and "GFLOPs per image" in said and "0.000 GFLOPs" not in said


def test_later_configurations_override_earlier_ones(capsys):
    for words in (
        ["configs/digits.yaml", "configs/digits_dit.yaml"],
        ["-c", "configs/digits.yaml", "-c", "configs/digits_dit.yaml"],
    ):
        assert main(["describe", *words, "--model.net.depth", "2"]) == 0
        said = capsys.readouterr().out
        assert "DiT on 1x8x8, 10 classes" in said and "blocks.1 " in said and "blocks.2 " not in said


@pytest.mark.parametrize("words, said", [
    (["nowhere"], "nowhere: no such checkpoint file or run directory"),
    (["nowhere.yaml"], "nowhere.yaml"),
    ([], "a configuration file or a run is required"),
    (["nowhere", "--model.net.depth", "2"], "model.net.depth: describe one run at a time, without options"),
    (["configs/digits.yaml", "--model.net.depth"], "--model.net.depth needs a value"),
    (["configs/digits.yaml", "--model.net.widthz", "3"], "did you mean 'widths'"),
])  # fmt: skip
def test_describe_refuses_bad_input(words, said, capsys):
    assert main(["describe", *words]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffusion")]
    assert len(err) == 1 and said in err[0]
