"""The folder of diffusers: its own pipelines give our pictures from the same noise."""

from dataclasses import replace

import pytest
import torch

import diffusion
from diffusion.denoiser.targets import EDM, X0, Eps, V
from diffusion.guidance import Clamp, Plain, Unbounded
from diffusion.nets import AttentionUNet, ContextUNet, UNet
from diffusion.noise import Cosine, Flow, Linear, Quadratic
from diffusion.samplers import DDIM, DDPM, UniPC

from .conftest import context, digits, pipeline

diffusers = pytest.importorskip("diffusers", reason="pip install -e '.[test]'")

DDPMS = {"width": 128, "mults": (1, 1), "blocks": 1, "scale_shift": False}
ADMS = {"width": 128, "mults": (1, 2), "blocks": 1, "attention": (0, 1), "resample_in_blocks": True}


def unet(channels=1, **options):
    torch.manual_seed(0)
    return UNet(channels, **options)


def theirs(folder, kind, **options):
    """Pictures in [-1, 1] of a pipeline of diffusers from a seed."""
    opened = kind.from_pretrained(folder, trust_remote_code=True)
    opened.set_progress_bar_config(disable=True)
    made = opened(batch_size=3, generator=torch.Generator().manual_seed(5), output_type="pt", **options)
    return 2 * made.images - 1


def ours(model):
    """Our pictures from the same draws: the start, then the noise of each step; without a condition."""
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(3, *model.shape, generator=draw)
    denoise = model.clamp(Plain()(model.denoiser, model.condition(None)))
    noise = lambda x: torch.randn(x.shape, generator=draw, dtype=torch.float32).to(x)  # noqa: E731
    return model.sampler.sample(denoise, x, model.denoiser.schedule, noise).clamp(-1, 1)


DDIMS = {"eta": 0.0, "use_clipped_model_output": True}
CASES = {
    "ddpm": (lambda: pipeline(unet(**DDPMS), Linear(), Eps(), sampler=DDIM(10)), DDIMS),
    "adm": (lambda: pipeline(unet(3, **ADMS), Cosine(), V(), sampler=DDIM(10)), DDIMS),
    "zero SNR": (lambda: pipeline(unet(**DDPMS), Linear(zero_snr=True), V(), sampler=DDIM(20)), DDIMS),
    "wide head": (lambda: pipeline(unet(**DDPMS, head_width=256), Linear(), X0(), sampler=DDIM(10)), DDIMS),
    "walk": (lambda: pipeline(unet(**DDPMS), Quadratic(), Eps(), sampler=DDPM(20), clamp=Clamp(-2, 2)), {}),
    "large": (lambda: pipeline(unet(**DDPMS), Cosine(T=20), V(), sampler=DDPM(20, "large"), clamp=Unbounded()), {}),
    "leading": (lambda: pipeline(unet(**DDPMS), Linear(), V(), sampler=DDIM(10, 0.5, "leading")), DDIMS | {"eta": 0.5}),
    "learned": (
        lambda: pipeline(unet(**DDPMS, learn_variance=True), Linear(), V(), sampler=DDPM(10, "learned", "leading")), {},
    ),
    "variance unused": (lambda: pipeline(unet(**DDPMS, learn_variance=True), Linear(), V(), sampler=DDIM(10)), DDIMS),
    "wrapped": (lambda: replace(digits(), sampler=DDIM(10)), DDIMS),
    "context": (context, DDIMS),
    "wrapped learned": (
        lambda: pipeline(AttentionUNet(1, (8, 16), 2, 1, learn_variance=True), sampler=DDPM(10, "learned", "leading")),
        {},
    ),
    "small groups": (lambda: pipeline(unet(width=16, mults=(1, 2), blocks=1, head_width=16), sampler=DDIM(10)), DDIMS),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_their_pipelines_give_our_pictures(case, tmp_path):
    """To 2e-4 of a range of 2: their tables are float32, ours float64."""
    make, options = CASES[case]
    model, folder = make(), tmp_path / "deep" / "folder"
    made = diffusion.export(model, folder)
    mapped = case not in ("wrapped", "context", "wrapped learned", "small groups")
    assert (folder / "unet" / "litdiffusion_unet.py").exists() != mapped
    kind = diffusers.DDIMPipeline if isinstance(model.sampler, DDIM) else diffusers.DDPMPipeline
    found = theirs(folder, kind, num_inference_steps=model.sampler.steps, **options)
    wanted = ours(model)
    assert wanted.std() > 0.1
    difference = float((found - wanted).abs().max())
    print(f"{case}: {difference:.1e}")
    assert difference < 2e-4
    assert f"num_inference_steps={model.sampler.steps}" in made.notes[0]


def test_a_class_conditional_unet_takes_labels_there(tmp_path):
    model = pipeline(unet(**DDPMS, num_classes=4), Linear(), Eps(), sampler=DDIM(10))
    made = diffusion.export(model, tmp_path / "folder")
    assert any("no condition is class_labels 4" in note for note in made.notes)
    net = diffusers.UNet2DModel.from_pretrained(tmp_path / "folder" / "unet")
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999])
    y, keep = torch.tensor([3, 1, 0, 2]), torch.tensor([True, True, True, False])
    with torch.no_grad():
        found = net(x, t, torch.where(keep, y, 4)).sample
        torch.testing.assert_close(found, model.denoiser.net(x, t.float(), y, keep), rtol=1e-5, atol=1e-5)


def test_schedules_of_diffusers_are_named(tmp_path):
    import json

    for schedule, name in ((Linear(), "linear"), (Cosine(), None), (Linear(zero_snr=True), None)):
        folder = tmp_path / f"{type(schedule).__name__}{schedule.zero_snr}"
        diffusion.export(pipeline(unet(**DDPMS), schedule, V(), sampler=DDIM(10)), folder)
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        assert (config["trained_betas"] is None) == bool(name) and (not name or config["beta_schedule"] == name)


def test_the_folder_is_the_same_twice_and_not_overwritten(tmp_path):
    model = replace(digits(), sampler=DDIM(10))
    for name in ("a", "b"):
        diffusion.export(model, tmp_path / name)
    one, two = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in tmp_path.iterdir())
    assert one == two and len(one) == 5
    with pytest.raises(ValueError, match="is not an empty folder"):
        diffusion.export(model, tmp_path / "a")


@pytest.mark.parametrize("change, words", [
    ({"schedule": Flow(), "sampler": DDIM(10)}, "Flow: .* this schedule is continuous; export to .onnx"),
    ({"target": EDM(), "sampler": DDIM(10)}, "EDM: the targets of diffusers' schedulers are Eps, X0, V"),
    ({"sampler": UniPC(10)}, "UniPC: the folder has DDIM or DDPM; export with --sampler DDIM"),
    ({"sampler": DDIM(30)}, "do not divide 1000; export with --steps 25"),
    ({"sampler": DDIM(10, grid="karras")}, "karras: .* --grid trailing or leading"),
    ({"sampler": DDPM(10, "large")}, "adds noise in the last step of a trailing grid"),
    ({"sampler": DDIM(10), "clamp": Clamp(0, 1)}, r"limits x_0 to \[-a, a\]"),
])  # fmt: skip
def test_what_diffusers_cannot_do_is_refused(tmp_path, change, words):
    net = AttentionUNet(1, (8, 16), heads=2, attention=1)
    with pytest.raises(ValueError, match=words):
        diffusion.export(pipeline(net, **change), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_networks_with_more_inputs_are_refused(tmp_path):
    for more in ({"self_condition": True}, {"image_channels": 2}):
        net = ContextUNet(1, 16, 2, **more)
        with pytest.raises(ValueError, match="neither images nor previous predictions"):
            diffusion.export(pipeline(net, sampler=DDIM(10)), tmp_path / "folder")


def test_nothing_is_left_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.exchange.exporting.diffusers_folder.size_of", lambda source: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        diffusion.export(replace(digits(), sampler=DDIM(10)), tmp_path / "folder")
    assert not list(tmp_path.iterdir())
