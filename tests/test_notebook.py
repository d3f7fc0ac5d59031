"""`diffusion.notebook`: training in cells, missing data, TensorBoard's address."""

import json

import pytest
import torch

from diffusion import Pipeline, notebook
from diffusion.data import DataNotFound
from diffusion.denoiser import Condition, Denoiser
from diffusion.guidance import ClassifierFree, ClassifierGuidance, Plain
from diffusion.nets import ContextUNet
from diffusion.nets.half_unet import HalfUNet
from diffusion.noise import Cosine
from diffusion.samplers import DDIM
from diffusion.support import paths, runs
from diffusion.training.systems import NoisyClassifier


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_OUT", str(tmp_path))
    return tmp_path


def step(run):
    return runs.read_checkpoint(runs.find_checkpoint(run))["global_step"]


def test_training_resumes_and_reports_it(root, capsys):
    first = notebook.train("Digits", preset="smoke")
    assert first == root / "digits_smoke" / "version_0" and step(first) == 10
    assert "starting a new run" in capsys.readouterr().out
    assert notebook.train("Digits", preset="smoke") == first
    assert "this run is complete" in capsys.readouterr().out
    assert notebook.train("Digits", {"trainer.max_epochs": 3}, preset="smoke", resume="version_0") == first
    said = capsys.readouterr().out
    assert "resuming from" in said and "step 10" in said and "15 steps" in said and step(first) == 15


@pytest.mark.slow
def test_a_different_model_starts_a_new_run(root, capsys):
    first = notebook.train("Digits", preset="smoke")
    other = notebook.train("Digits", {"model.schedule.T": 100}, preset="smoke")
    said = capsys.readouterr().out
    assert other.name == "version_1" and "T: 1000 -> 100): starting a new run" in said
    assert Pipeline.load(other).denoiser.schedule.T == 100 and step(first) == 10
    with pytest.raises(ValueError, match="its model differs from the configured one"):
        notebook.train("Digits", preset="smoke", resume="version_1")


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("digits_unet", {"model.net.width": 16, "model.net.head_width": 16}),
        ("sprites_course", {"model.net.width": 8}),
        ("cifar10_autoencoder", {}),
    ],
)
def test_smoke_preset_narrows_the_configured_network(name, wanted):
    found = notebook.smoke(notebook.config(name))
    assert {k: v for k, v in found.items() if k.startswith("model.net")} == wanted


def test_an_interrupted_cell_prints_how_to_resume(root, capsys, monkeypatch):
    def fit(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebook, "fit", fit)
    assert notebook.train("Digits") == root / "digits"
    assert capsys.readouterr().out == "stopped before the first checkpoint; run this cell again to start over\n"
    made = root / "digits" / "version_3"
    (made / "checkpoints").mkdir(parents=True)
    (made / "checkpoints" / "last.ckpt").touch()
    (root / "digits" / "version_4").mkdir()
    assert notebook.train("Digits") == made
    assert capsys.readouterr().out.startswith("run this cell again to resume; the next cells use ")
    notebook.train("Digits", resume="")
    assert 'set resume = "auto" and run this cell again' in capsys.readouterr().out


def test_open_or_train_uses_the_newest_finished_run(root, capsys):
    first = notebook.open_or_train("", "Digits", preset="smoke")
    assert "there is no finished run" in capsys.readouterr().out
    half = root / "digits_smoke" / "version_1" / "checkpoints"
    half.mkdir(parents=True)
    (half / "step00000003.ckpt").touch()  # newer, but unfinished
    assert notebook.open_or_train("", "Digits", preset="smoke") == first
    assert "version_0, step 10" in capsys.readouterr().out
    assert notebook.open_or_train(str(half.parent), "Digits") == half.parent
    with pytest.raises(FileNotFoundError):
        notebook.open_or_train(str(root / "nothing"), "Digits")


def test_unknown_data_sets_and_presets_are_refused():
    assert notebook.config("Digits").stem == "digits" and notebook.config("sprites_classifier").exists()
    with pytest.raises(ValueError, match="wanted one of Digits, Sprites, MNIST"):
        notebook.config("Mnist")
    with pytest.raises(ValueError, match="wanted full or smoke, got 'quick'"):
        notebook.train("Digits", preset="quick")


def test_missing_data_suggests_the_built_in_sets(tmp_path, monkeypatch):
    def offline(source, folder):
        raise OSError("no route to host")

    monkeypatch.setattr("diffusion.data.mnist._download", offline)
    with pytest.raises(DataNotFound, match='no route to host.*set data = "Digits" or data = "Sprites"'):
        notebook.opened("MNIST", root=str(tmp_path))
    assert len(notebook.opened("Digits").arrays("train")[0]) == 1437


@pytest.mark.parametrize(
    ("facts", "names", "path"),
    [
        ({}, {}, ""),
        ({"DomainId": "d", "AppType": "JupyterLab"}, {}, "/jupyterlab/default/proxy/%PORT%/"),
        ({"ResourceName": "mine", "ResourceArn": "arn:aws:sagemaker:eu-west-1:1:x"}, {}, "/proxy/%PORT%/"),
        ({"ResourceName": "mine"}, {}, "/proxy/%PORT%/"),
        ({}, {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/"}, "/user/me/proxy/%PORT%/"),
        ({"DomainId": "d"}, {"TENSORBOARD_PROXY_URL": "/mine/%PORT%/"}, "/mine/%PORT%/"),
    ],
)
def test_tensorboard_address_follows_the_environment(facts, names, path, monkeypatch, capsys, tmp_path):
    for name in ("TENSORBOARD_PROXY_URL", "SM_MODEL_DIR", "JUPYTERHUB_SERVICE_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "metadata.json").write_text(json.dumps(facts))
    monkeypatch.setattr(paths, "METADATA", tmp_path / "metadata.json")
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert notebook.proxy() == path
    monkeypatch.setenv("TENSORBOARD_PROXY_URL", path)  # so that it is put back
    notebook.tensorboard(tmp_path / "digits", start=False)
    said = capsys.readouterr().out
    assert (
        path.replace("%PORT%", "6006") or "http://localhost:6006/"
    ) in said and f"--logdir {tmp_path}/digits" in said


def test_unlabelled_model_gives_the_null_prediction(float64):
    torch.manual_seed(0)
    net = ContextUNet(channels=3, width=8, pool=2, context_dim=2)
    model = Pipeline(Denoiser(net, Cosine(50)).eval(), DDIM(2), shape=(3, 8, 8), class_names=["a", "b"])
    free, x, t = notebook.unlabelled(model), torch.randn(2, 3, 8, 8), Cosine(50).level(torch.tensor(0.5).double())
    y = torch.eye(2)
    judge = NoisyClassifier(HalfUNet(3, 8, (1, 2), attention=(), num_classes=2), Cosine(50), shape=(3, 8, 8),
                            class_names=["a", "b"]).eval()  # fmt: skip

    def guess(model, guidance):
        with torch.no_grad():
            return guidance(model.denoiser, Condition(y))(x, t).x0

    null = guess(model, ClassifierFree(0))
    torch.testing.assert_close(guess(free, Plain()), null)
    torch.testing.assert_close(guess(free, ClassifierGuidance(judge, 0)), null)
    assert not torch.allclose(guess(model, Plain()), null)
    assert not torch.allclose(guess(free, ClassifierGuidance(judge, 50)), null)
    still, moved = (free.sample(2, y, guidance=ClassifierGuidance(judge, scale)) for scale in (0, 50))
    assert not torch.allclose(still, moved)
    with pytest.raises(ValueError, match="without labels"):
        free.in_turn(1, "a")


def test_agreement_is_the_share_of_correct_classes():
    class Sign(torch.nn.Module):
        schedule = Cosine(50)

        def forward(self, x, t):
            mean = x.mean((1, 2, 3))
            return torch.stack([-mean, mean], 1)

    x = torch.tensor([-1.0, -0.5, 0.5, 1.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert notebook.agreement(Sign(), x, torch.eye(2)[[0, 1, 1, 1]]) == 0.75
