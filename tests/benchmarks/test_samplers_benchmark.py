"""The benchmark of samplers: counted evaluations, resumption, and the verdict against the reference."""

import json

import pytest
import torch

from benchmarks import report
from benchmarks.samplers import Counted, cells, evaluations, main
from diffusion import Diffusion, samplers
from diffusion.denoiser.targets import V
from diffusion.guidance import ClassifierFree
from diffusion.nets import AttentionUNet
from diffusion.noise import Linear
from diffusion.samplers import DDIM, DDPM, AnnealedLangevin, Heun, Sampler
from diffusion.support.specs import concrete


def tiny(**options):
    torch.manual_seed(0)
    net = AttentionUNet(1, (8, 16), heads=2, attention=1, num_classes=10)
    return Diffusion(net, Linear(50), V(), sampler=DDIM(5), shape=(1, 8, 8), **options).eval()


def test_table_has_every_sampler_of_denoisers_and_the_reference_last():
    every = list(cells([3], 7))
    assert {type(s) for s in every} >= {k for k in concrete(Sampler, "diffusion.") if not k.maps}
    assert type(every[-1]) is DDPM and every[-1].steps == 7


@pytest.mark.parametrize(
    ("sampler", "expected"), [(DDIM(4), 4), (Heun(4), 7), (AnnealedLangevin(3, inner=2), 7), (samplers.DPM2(3), 5)]
)
def test_counted_evaluations_equal_the_network_calls(sampler, expected):
    """n, 2n - 1, n inner + 1 and 2n - 1 evaluations; a guided call on a doubled batch counts as one."""
    model, calls = tiny().pipeline, []
    model.denoiser.net.register_forward_pre_hook(lambda net, args: calls.append(len(args[0])))
    guidance = Counted(ClassifierFree(2.0))
    model.sample(6, sampler=sampler, guidance=guidance, batch_size=4)
    assert guidance.images == 6 * expected and sum(calls) == 12 * expected
    assert evaluations(sampler, model.denoiser.schedule) == expected


def test_interrupted_measurement_resumes(tmp_path, monkeypatch):
    class Judge:  # the real judge takes seconds to train and has its own tests
        net = torch.nn.Flatten()
        floor, accuracy = 2.0, 1.0

        def __init__(self, *sets):
            self.net.features = lambda x: x.flatten(1)

        def agrees(self, x, y):
            return torch.ones(len(x), dtype=torch.bool)

        def distance(self, features):
            return float(features.square().mean())

        error = distance

        def spread(self, x, y):
            return torch.ones(10)

    class Stop(Exception):
        pass

    def stopping(model, sampler, *rest):
        if len(made) == 3:
            raise Stop
        made.append(type(sampler).__name__)
        return real(model, sampler, *rest)

    pytest.importorskip("matplotlib")
    monkeypatch.setattr("benchmarks.samplers.Judge", Judge)
    from benchmarks import samplers as script

    real, made = script.row, []
    path = tmp_path / "tiny.ckpt"
    model = tiny()
    torch.save(
        {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "global_step": 0, "epoch": 0}, path
    )
    places = [f"--{k}={tmp_path / v}" for k, v in (("json", "a.json"), ("out", "a.md"), ("plot", "a.png"))]
    argv = [str(path), "--n=20", "--steps", "2", "--reference=4", "--device=cpu", *places]
    monkeypatch.setattr(script, "row", stopping)
    with pytest.raises(Stop):
        main(argv)
    assert len(json.loads((tmp_path / "a.json").read_text())["rows"]) == 3
    monkeypatch.setattr(script, "row", lambda *a: made.append(type(a[1]).__name__) or real(*a))
    main(argv)
    assert sorted(made) == sorted(type(s).__name__ for s in cells([2], 4))  # each once, in the two runs together
    page = (tmp_path / "a.md").read_text()
    assert page.count("\n| ") == len(made) + 1 and (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="a different n;"):
        main([*argv, "--n=30"])


def row(kind, evaluations, frechet, agreement=0.99):
    return {
        "sampler": {"class_path": f"diffusion.samplers.{kind}", "init_args": {"steps": evaluations}},
        "evaluations": evaluations, "frechet": frechet, "frechet_error": 0.3, "agreement": agreement,
        "agreement_error": 0.003,
    }  # fmt: skip


def test_verdict_depends_on_the_interval_of_the_difference():
    """With two standard errors of .3, 95 % of the differences lie within 1.96 * .3 * sqrt 2 = .83; with .003, .0083."""
    reference = row("DDPM", 1000, 4.0)
    assert report.verdict(row("Heun", 19, 4.8), reference) == "equal"
    assert report.verdict(row("Heun", 19, 4.9), reference) == "worse"
    assert report.verdict(row("Heun", 19, 3.1), reference) == "better"
    assert report.verdict(row("Heun", 19, 3.1, 0.98), reference) == "worse"
    rows = [row("DDIM", 10, 9.0), row("UniPC", 20, 4.2), row("Heun", 49, 4.0), reference]
    said = report.sentence(rows, reference, 2.0)
    assert "at 20 UniPC. " in said and "DDIM" not in said and "Heun" not in said
    assert "UniPC with 20 is at 2.10 of the floor, +0.10 ± 0.42 from it, and 99.0%, +0.0 ± 0.8" in said
    assert "No sampler equals it" in report.sentence([rows[0], reference], reference, 2.0)
