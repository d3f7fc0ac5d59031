"""Imported Lightning checkpoints of the origin: its network is written out here from the published table."""

import pytest
import torch
from torch import nn

from diffusion.cli import main
from diffusion.exchange.importing import origin
from diffusion.exchange.importing.run import import_run
from diffusion.exchange.rows import write
from diffusion.generation.pipeline import Pipeline
from diffusion.nets import AttentionUNet


def randomised(net):
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.05) if p.ndim > 1 else nn.init.uniform_(p, -0.5, 1.0)
    return net.eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    net = randomised(AttentionUNet())
    path = tmp_path_factory.mktemp("origin") / "epoch=9-step=100.ckpt"
    state = write(origin.table(), net.state_dict())
    torch.save({"state_dict": state, "global_step": 100, "epoch": 9, "callbacks": {}, "loops": {}}, path)
    return path, net


def test_the_table_has_the_published_counts_per_module(file):
    counts = {}
    for name, value in torch.load(file[0], weights_only=True)["state_dict"].items():
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + value.numel()
    assert counts == {
        "inc": 37_696, "down1": 295_680, "down2": 1_181_184, "down3": 2_361_344, "up1": 6_195_968, "up2": 1_549_696,
        "up3": 406_272, "outc": 65, "sa1": 395_776, "sa2": 395_776, "sa3": 99_584,
    }  # fmt: skip


def test_an_attention_layer_is_torchs_multi_head_attention(file):
    """Its rows name the parameters of nn.MultiheadAttention, whose output ours gives."""
    path, net = file
    state = torch.load(path, weights_only=True)["state_dict"]
    mha, ours = nn.MultiheadAttention(256, 4, batch_first=True), net.attentions[1]
    own = {k.removeprefix("sa1.sa.0.mha."): v for k, v in state.items() if k.startswith("sa1.sa.0.mha.")}
    mha.load_state_dict(own)
    x = torch.randn(2, 256, 8, 8)
    tokens = x.flatten(2).transpose(1, 2)
    with torch.no_grad():
        h = ours.norm(tokens)
        a = tokens + mha(h, h, h)[0]
        expected = (a + ours.mlp(a)).transpose(1, 2).reshape(x.shape)
        assert (ours(x) - expected).norm() / expected.norm() < 1e-5


@pytest.mark.filterwarnings("ignore:Linear. alpha-bar")
def test_an_imported_run_has_its_network_and_its_levels(file, tmp_path):
    """The network's clock is its t = 1 .. T-1, of which alpha-bar is the product of 1 - beta_j over j < t."""
    path, net = file
    T, run = 200, import_run(file[0], tmp_path / "run", flags={"t_range": "200"})
    pipeline = Pipeline.load(run)
    assert pipeline.shape == (1, 32, 32) and pipeline.sampler.variance == "large"
    schedule = pipeline.denoiser.schedule
    beta = 1e-4 + torch.arange(T).double() / T * (0.02 - 1e-4)
    for t in (1, 2, 100, T - 1):
        level = schedule.level(torch.tensor(t / (T - 1), dtype=torch.float64))
        torch.testing.assert_close(level.alpha**2, (1 - beta[:t]).prod())
        x = torch.randn(1, 1, 32, 32)
        with torch.no_grad():
            ours = pipeline.denoiser.net(x, schedule.clock(level.t).reshape(1))
            assert (ours - net(x, torch.tensor([float(t)]))).abs().max() < 1e-5
    assert schedule.T == T - 1


def test_a_missing_flag_and_damaged_files_are_named(file, tmp_path, capsys):
    def refused(path, at, *words):
        assert main(["import", str(path), "--out", str(tmp_path / "run"), *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and at in error, error
        assert not (tmp_path / "run").exists()

    refused(file[0], "--t_range 1000")
    refused(file[0], "use --from origin", "--from", "lucidrains")
    data, cut = file[0].read_bytes(), tmp_path / "cut.ckpt"
    cut.write_bytes(data[:10_000])
    refused(cut, "truncated", "--t_range", "1000")
    found = torch.load(file[0], weights_only=True)
    del found["state_dict"]["outc.conv.bias"]
    torch.save(found, cut)
    refused(cut, "outc.conv.bias are missing", "--t_range", "1000")
    torch.save({"x": torch.zeros(1)}, cut)
    refused(cut, "not a checkpoint of diffusers")
