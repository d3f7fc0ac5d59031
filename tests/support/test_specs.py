import json
from importlib import import_module

import pytest

from diffusion.denoiser.targets import Target
from diffusion.guidance import ClassifierFree
from diffusion.loss.objective import Objective
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine, Schedule, Stratified
from diffusion.samplers import DDPM, Sampler
from diffusion.support.files import atomic
from diffusion.support.specs import build, complete, concrete, is_part, named, spec, suggest

PARTS = {kind for base in (Schedule, Target, Sampler) for kind in concrete(base, "diffusion")}


@pytest.mark.filterwarnings("ignore:ScaledLinear. alpha-bar")
@pytest.mark.parametrize("kind", sorted(PARTS, key=str))
def test_every_component_survives_a_round_trip_through_its_spec(kind):
    plain = spec(kind())
    assert json.loads(json.dumps(plain)) == plain  # plain types only
    again = build(plain)
    assert type(again) is kind and spec(again) == plain


def test_spec_preserves_constructor_arguments():
    objective = build(spec(Objective(times=Stratified(), drop=0.3)))
    assert objective.drop == 0.3 and isinstance(objective.times, Stratified)
    assert build(spec(DDPM(7, "large", "leading"))).__dict__ == {"steps": 7, "variance": "large", "grid": "leading"}
    assert build(spec(Cosine(77, s=0.02))).alphas.equal(Cosine(77, s=0.02).alphas)
    assert build(spec(ClassifierFree(3))).scale == 3
    net = build(spec(AttentionUNet(3, (8, 16), num_classes=4, ones=True)))
    assert net.widths == (8, 16) and net.num_classes == 4 and net.ones


def test_spec_refuses_a_class_that_hides_an_argument():
    class Bad(Cosine):
        def __init__(self, secret: int = 3):
            super().__init__()

    with pytest.raises(ValueError, match="must keep its argument 'secret'"):
        spec(Bad())


@pytest.mark.parametrize("bad", [{"class_path": "nowhere.Thing"}, {"class_path": "diffusion.noise.Nothing"},
                                 {"class_path": "diffusion.noise.Linear", "init_args": {"Q": 3}}])  # fmt: skip
def test_build_refuses_bad_specs(bad):
    with pytest.raises(ValueError):
        build(bad)


@pytest.mark.parametrize("path", [
    "os.system", "pathlib.Path", "diffusion.compat.lucidrains.Trainer", "diffusion.exchange.serving.shelf.Shelf",
    "diffusion.commands.options.parser.Parser", "diffusion.preparing.settings.Settings",
])  # fmt: skip
def test_a_file_may_name_only_parts_of_a_model(path):
    module, _, name = path.rpartition(".")
    assert not is_part(getattr(import_module(module), name))
    assert is_part(Cosine) and is_part(AttentionUNet) and is_part(DDPM)


def test_atomic_leaves_either_the_old_or_the_new_file(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic(path) as temporary:
        temporary.write_text("one")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_suggest_finds_the_closest_word():
    assert suggest("lrr", ["lr", "betas"]) == "; did you mean 'lr'?" and suggest("xyz", ["lr"]) == ""


def test_named_finds_classes_by_short_name_or_path():
    assert named("DDPM", Sampler, "diffusion.samplers") is DDPM
    assert named("diffusion.samplers.ddpm.DDPM", Sampler, "diffusion.samplers") is DDPM
    mine = type("Mine", (DDPM,), {"__module__": "elsewhere"})
    assert mine in concrete(Sampler) and mine not in concrete(Sampler, "diffusion")
    assert named("Mine", Sampler, "diffusion.samplers") is mine
    for name, words in [
        ("Mime", "no sampler 'Mime'; did you mean 'Mine'"),
        ("json.dumps", "is not a subclass of Sampler"),
        ("json.x.Y", "cannot import"),
    ]:
        with pytest.raises(ValueError, match=words):
            named(name, Sampler, "diffusion.samplers")
    with pytest.raises(ValueError, match="is abstract: implement step"):
        named("diffusion.samplers.base.Sampler", Sampler, "diffusion.samplers")


def test_a_spec_older_than_an_argument_is_completed_with_its_default():
    """At any depth; what cannot be imported stays as it is."""
    old = {"net": {"class_path": "diffusion.nets.unet.UNet", "init_args": {"width": 8, "channels": 1}}, "lr": 0.1}
    found = complete(old)["net"]["init_args"]
    assert (found["width"], found["heads"], found["sinusoids"], found["learn_variance"]) == (8, 0, "any", False)
    assert old["net"]["init_args"] == {"width": 8, "channels": 1} and complete(complete(old)) == complete(old)
    foreign = {"class_path": "nowhere.Net", "init_args": {"a": 1}}
    assert complete([foreign]) == [foreign]
