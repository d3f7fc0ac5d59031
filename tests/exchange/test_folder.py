"""The folder of diffusers: its own pipelines give our pictures from the same noise."""

from dataclasses import replace

import pytest
import torch

import diffusion
from diffusion.denoiser.targets import EDM, X0, Eps, V
from diffusion.guidance import APG, Clamp, ClassifierFree, Plain, Unbounded
from diffusion.nets import AttentionUNet, ContextUNet, UNet
from diffusion.noise import Cosine, Flow, Linear, Quadratic, Shifted
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
    "shifted": (lambda: pipeline(unet(**DDPMS), Shifted(Linear(), 128), V(), sampler=DDIM(10)), DDIMS),
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


def conditional(name):
    """A pipeline of a conditional network, its condition, and what the folder's pipeline receives as class_labels."""
    names = ("zero", "one", "two", "three")
    more = {"class_names": names, "guidance": ClassifierFree(2.5), "sampler": DDIM(10)}
    mapped, wrapped = unet(**DDPMS, num_classes=4), AttentionUNet(1, (8, 16), 2, 1, num_classes=4)
    y, labels = torch.tensor([3, 0, 1]), ["three", 0, "one"]
    if name == "mapped":
        return pipeline(mapped, Linear(), Eps(), **more), y, labels
    if name == "mapped walk":
        return pipeline(mapped, Quadratic(), Eps(), **more | {"sampler": DDPM(20)}), y, torch.tensor([3, 0, 1])
    if name == "wrapped":
        return pipeline(wrapped, Cosine(), V(), **more | {"sampler": DDIM(10, 0.5, "leading")}), y, labels
    if name == "learned":
        net = AttentionUNet(1, (8, 16), 2, 1, num_classes=4, learn_variance=True)
        return pipeline(net, **more | {"sampler": DDPM(10, "learned", "leading")}), y, labels
    if name == "names of features":
        return context(), torch.eye(3)[[2, 0, 0]], ["spell", "hero", 0]
    vectors = torch.tensor([[0.2, 0.0, 0.9], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    return context(), vectors, vectors


def guided(model, y, scale):
    """Our pictures from the draws of `theirs`, by a batch of conditions and a scale of guidance."""
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(3, *model.shape, generator=draw)
    denoise = model.clamp(ClassifierFree(scale)(model.denoiser, model.condition(y)))
    noise = lambda x: torch.randn(x.shape, generator=draw, dtype=torch.float32).to(x)  # noqa: E731
    return model.sampler.sample(denoise, x, model.denoiser.schedule, noise).clamp(-1, 1)


@pytest.mark.parametrize(
    "name",
    [
        "mapped", pytest.param("mapped walk", marks=pytest.mark.slow), "wrapped", "learned", "names of features",
        "vectors",
    ],
)  # fmt: skip
def test_the_folders_pipeline_gives_our_pictures_of_labels(name, tmp_path):
    """Guided as the run by default, unguided, and without a condition; to 2e-4 of a range of 2."""
    model, y, labels = conditional(name)
    made = diffusion.export(model, tmp_path / "folder")
    assert f"class_labels=..., guidance_scale={model.guidance.scale:g}" in made.notes[0]
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "folder", trust_remote_code=True)
    assert opened.config.class_names == list(model.class_names)
    opened.set_progress_bar_config(disable=True)

    def theirs(*args, **options):
        pictures = opened(*args, generator=torch.Generator().manual_seed(5), output_type="pt", **options).images
        return 2 * pictures - 1

    asked = {model.guidance.scale: {}, 1.0: {"guidance_scale": 1.0}, 0.0: {"guidance_scale": 0.0}}
    found = {scale: theirs(labels, **options) for scale, options in asked.items()}
    for scale, pictures in found.items():
        difference = float((pictures - guided(model, y, scale)).abs().max())
        print(f"{name}, scale {scale:g}: {difference:.1e}")
        assert difference < 2e-4
    if name != "learned":  # its variance is that of the condition
        torch.testing.assert_close(theirs(batch_size=3), found[0.0], rtol=0, atol=1e-4)
    assert (found[1.0] - found[model.guidance.scale]).abs().max() > 0.01 < (found[1.0] - found[0.0]).abs().max()


def test_the_folders_pipeline_refuses_wrong_labels(tmp_path):
    for name, wrong, words in (
        ("mapped", 4, "labels are 0 .. 3 or of zero, one, two, three"),
        ("mapped", "five", "'five': labels are 0 .. 3"),
        ("vectors", torch.zeros(2, 4), r"expected vectors \(B, 3\), got \(2, 4\)"),
        ("mapped", [0, 1], "2 for batch_size 3"),
    ):
        folder = tmp_path / name
        if not folder.exists():
            diffusion.export(conditional(name)[0], folder)
        opened = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        with pytest.raises(ValueError, match=words):
            opened(wrong, batch_size=3)
        if name == "mapped":
            assert len(opened(2, batch_size=2, num_inference_steps=1).images) == 2  # one label for all


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
    assert one == two and len(one) == 6
    with pytest.raises(ValueError, match="is not an empty folder"):
        diffusion.export(model, tmp_path / "a")


@pytest.mark.parametrize("change, words", [
    ({"schedule": Flow(), "sampler": DDIM(10)}, "Flow: .* this schedule is continuous; export to .onnx"),
    ({"schedule": Shifted(Flow(), 128), "sampler": DDIM(10)}, "Shifted: .* this schedule is continuous"),
    ({"target": EDM(), "sampler": DDIM(10)}, "EDM: the targets of diffusers' schedulers are Eps, X0, V"),
    ({"sampler": UniPC(10)}, "UniPC: the folder has DDIM or DDPM; export with --sampler DDIM"),
    ({"sampler": DDIM(30)}, "do not divide 1000; export with --steps 25"),
    ({"sampler": DDIM(10, grid="karras")}, "karras: .* --grid trailing or leading"),
    ({"sampler": DDPM(10, "large")}, "adds noise in the last step of a trailing grid"),
    ({"sampler": DDIM(10), "guidance": APG(3)}, "APG: .* --guidance ClassifierFree or Plain"),
    ({"sampler": DDIM(10), "guidance": ClassifierFree(3, rescale=0.7)}, "got rescale 0.7; export with --rescale 0"),
    ({"sampler": DDIM(10), "clamp": Clamp(0, 1)}, r"limits x_0 to \[-a, a\]"),
])  # fmt: skip
def test_what_diffusers_cannot_do_is_refused(tmp_path, change, words):
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=2)
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
