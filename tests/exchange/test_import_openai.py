"""Imported checkpoints of improved-diffusion and guided-diffusion, checked against UNet2DModel and published tables.

Neither is a package of an index, so their states are made from those of UNet2DModel by their published names.
"""

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.cli import main
from diffusion.denoiser.targets import X0, Eps
from diffusion.exchange import unet2d
from diffusion.exchange.importing import openai
from diffusion.exchange.importing.found import by_part
from diffusion.exchange.importing.run import import_run, load
from diffusion.exchange.rows import write
from diffusion.generation.pipeline import Pipeline
from diffusion.nets import UNet
from diffusion.noise import Cosine, Linear

diffusers = pytest.importorskip("diffusers", reason="pip install -e '.[test]'")

ADM = {  # ours, and UNet2DModel's
    "width": 32, "mults": (1, 2, 2), "blocks": 1, "attention": (1, 2), "groups": 32, "sinusoids": "adm",
}  # fmt: skip


def by_head(value, heads):
    """Rows in the order (q k v, head, channel) in the older order (head, q k v, channel)."""
    return value.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def published(net, new_order=False):
    """The state of a UNet as UNetModel's, with its convolutions in place of Linear, and its order of heads."""
    state = {}
    for row in openai.table(net, new_order):
        value = net.state_dict()[row.ours]
        if ".attend." in row.ours:
            heads = net.middle[0].attention.attend.heads
            if ".qkv." in row.ours and not new_order:
                at = row.ours.partition(".attend")[0]
                heads = net.get_submodule(at).attend.heads
                value = by_head(value, heads)
            value = value[..., None] if row.ours.endswith("weight") else value
        state[row.theirs[0]] = value.clone()
    return state


def randomised(net):
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.05) if p.ndim > 1 else nn.init.uniform_(p, -0.5, 1.0)
    return net.eval()


def saved(folder, net, new_order=False):
    torch.save(published(net, new_order), folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("adm, new_order", [(False, False), (True, False), (True, True)])
def test_an_imported_network_equals_unet2d_model(adm, new_order, tmp_path):
    """The same weights under guided-diffusion's names, in ours and in diffusers' network."""
    net = randomised(UNet(3, **ADM, head_width=16, scale_shift=adm, resample_in_blocks=adm, learn_variance=adm))
    types = ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    theirs = diffusers.UNet2DModel(
        in_channels=3, out_channels=6 if adm else 3, block_out_channels=(32, 64, 64), layers_per_block=1,
        down_block_types=types if adm else ("DownBlock2D", *types[1:]),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D" if adm else "UpBlock2D"),
        attention_head_dim=16, attn_norm_num_groups=32, resnet_time_scale_shift="scale_shift" if adm else "default",
        downsample_type="resnet" if adm else "conv", upsample_type="resnet" if adm else "conv",
    ).eval()  # fmt: skip
    theirs.load_state_dict(write(unet2d.table(net), net.state_dict()))
    flags = {"image_size": "16", "num_head_channels": "16", "use_new_attention_order": str(new_order)}
    run = import_run(
        saved(tmp_path, net, new_order), tmp_path / "run", source="guided-diffusion", flags=flags, tell=lambda note: 0
    )
    ours, x, t = Pipeline.load(run).denoiser.net, torch.randn(2, 3, 16, 16), torch.tensor([3.0, 977.0])
    with torch.no_grad():
        a, b = ours(x, t), theirs(x, t).sample
    assert (a - b).norm() / b.norm() < 1e-5


def test_the_older_order_of_heads_is_their_published_reshape():
    """Theirs reshapes (B, heads 3 c, N) to (B heads, 3 c, N) and splits that in three."""
    heads, c = 2, 3
    qkv = torch.randn(heads * 3 * c, 5)
    q, k, v = qkv.view(heads, 3 * c, 5).split(c, dim=1)
    torch.testing.assert_close(by_part(qkv, heads), torch.cat([x.flatten(0, 1) for x in (q, k, v)]))


@pytest.mark.parametrize("options, millions", [
    # Dhariwal and Nichol 2021, arXiv:2105.05233, tab. 4: ADM on ImageNet 64, 128 and 256 pixels, 1,000 classes.
    ({"width": 192, "mults": (1, 2, 3, 4), "blocks": 3, "attention": (1, 2, 3)}, 296),
    ({"width": 256, "mults": (1, 1, 2, 3, 4), "blocks": 2, "attention": (2, 3, 4)}, 422),
    ({"width": 256, "mults": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (3, 4, 5)}, 554),
    ({"width": 256, "mults": (0.5, 1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (4, 5, 6)}, 559),
])  # fmt: skip
def test_networks_of_the_published_flags_have_the_published_size(options, millions):
    with torch.device("meta"):
        net = UNet(3, **options, resample_in_blocks=True, learn_variance=True, num_classes=1000)
        state = published(net, new_order=True)
    found = openai.options_of(state, "x")
    wanted = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    assert {k: found[k] for k in options} == wanted and found["num_classes"] == 1000 and found["resample_in_blocks"]
    count = sum(v.numel() for v in state.values())
    assert round(count / 1e6) == millions


def test_flags_become_schedule_target_sampler_and_heads(tmp_path):
    file = saved(tmp_path, randomised(UNet(3, **ADM, heads=4, scale_shift=True)))
    model = load(file, "improved-diffusion", {"image_size": "16"})
    assert isinstance(model.schedule, Linear) and model.net.heads == 4 and isinstance(model.target, Eps)
    assert (model.sampler.variance, model.sampler.steps, model.net.clock_scale) == ("large", 1000, 1.0)
    assert "noise_schedule linear" in model.notes[0]
    flags = {
        "image_size": "16", "diffusion_steps": "4000", "noise_schedule": "cosine", "predict_xstart": "True",
        "sigma_small": "True", "timestep_respacing": "250", "use_fp16": "True",
    }  # fmt: skip
    model = load(file, "improved-diffusion", flags)
    assert isinstance(model.schedule, Cosine) and model.schedule.T == 4000 and isinstance(model.target, X0)
    assert (model.sampler.variance, model.sampler.steps, model.net.clock_scale) == ("small", 250, 0.25)
    model = load(file, "guided-diffusion", flags | {"timestep_respacing": "ddim25"})
    assert (type(model.sampler).__name__, model.sampler.steps, model.net.clock_scale) == ("DDIM", 25, 1.0)


def test_a_clock_scale_gives_the_network_the_scaled_index():
    net = randomised(UNet(3, **ADM, clock_scale=0.25))
    plain = UNet(3, **ADM).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(net(x, torch.tensor([2000.0])), plain(x, torch.tensor([500.0])))


@pytest.mark.parametrize("words, at", [
    ((), "say which with --from"),
    (("--from", "guided-diffusion"), "--image_size 64"),
    (("--from", "guided-diffusion", "--image_size", "16", "--num_channels", "64"), "the weights are of 32"),
    (("--from", "guided-diffusion", "--image_size", "16", "--class_cond", "True"), "the weights are of False"),
    (("--from", "guided-diffusion", "--image_size", "big"), "wanted int"),
    (("--from", "guided-diffusion", "--image_size", "16", "--num_hads", "4"), "did you mean 'num_heads'"),
    (("--from", "guided-diffusion", "--image_size", "16", "--noise_schedule", "sqrt"), "linear or cosine"),
])  # fmt: skip
def test_missing_and_wrong_flags_are_named(words, at, tmp_path, capsys):
    file = saved(tmp_path, UNet(3, **ADM))
    assert main(["import", str(file), "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and at in error and [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_super_resolution_network_is_refused_by_name(tmp_path):
    state = published(UNet(3, **ADM, image_channels=3))
    with pytest.raises(ValueError, match="super-resolution"):
        openai.options_of(state, "x")
    np.testing.assert_equal(len(openai.options_of(published(UNet(3, **ADM)), "x")), 9)
