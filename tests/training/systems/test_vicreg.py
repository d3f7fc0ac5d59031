"""Self-supervised features: the loss in closed form, no labels seen, and features that know the classes."""

from pathlib import Path

import pytest
import torch

from benchmarks.unlabelled import damages, neighbours, probe, rank
from diffusion.cli import main
from diffusion.data import Digits
from diffusion.metrics.base import mixed
from diffusion.metrics.extractor import Extractor, load_extractor
from diffusion.metrics.features import FeatureNet, crop
from diffusion.metrics.frechet import Gaussian, frechet_distance
from diffusion.support.runs import read_checkpoint
from diffusion.training.systems.vicreg import VICReg, terms

CONFIG = ["fit", "-c", "configs/features_unlabelled.yaml", "--trainer.accelerator", "cpu"]


def digits(split):
    images, y = Digits().arrays(split)
    return images.float() / 127.5 - 1, y


# --- loss and crops ---------------------------------------------------------------------------------------------------


def test_loss_of_spread_and_uncorrelated_embeddings_is_zero():
    """Three columns of a Hadamard matrix: mean 0, variance 4/3, no covariance."""
    z = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double()
    assert [float(v) for v in terms(z, z)] == [0, 0, 0]
    invariance, variance, covariance = terms(z, z + 0.5)
    assert float(invariance) == pytest.approx(0.25) and float(variance) == float(covariance) == 0


def test_loss_of_collapsed_embeddings_is_their_missing_deviation():
    z = torch.ones(8, 5).double()
    invariance, variance, covariance = terms(z, z)
    assert float(invariance) == float(covariance) == 0 and float(variance) == pytest.approx(0.99)  # 1 - eps^(1/2)


def test_covariance_of_equal_dimensions():
    """E equal columns of variance v: E (E - 1) v^2 / E from each of the two batches."""
    column = torch.tensor([3.0, -3.0, 3.0, -3.0]).double()[:, None]
    v = float(column.var())
    assert float(terms(column.expand(-1, 6), column.expand(-1, 6))[2]) == pytest.approx(2 * 5 * v**2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 48, 80), (2, 9, 5)])
def test_a_crop_is_a_part_of_the_image_of_the_stated_size(shape):
    """On images that are their own coordinates, a crop is a ramp whose slopes are its height and width."""
    C, H, W = shape
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    image = torch.stack([y / H, x / W] + [y * 0] * C)[:C] if C > 1 else (x / W)[None]
    found = crop(image.expand(400, -1, -1, -1), 0.3)
    assert found.shape == (400, C, H, W) and float(found.min()) >= 0 and float(found.max()) <= 1
    middle = found[..., H // 4 : -(H // 4) or None, W // 4 : -(W // 4) or None]  # without the border's clamping
    wide = (middle[:, -1 if C == 1 else 1].diff(dim=-1) * W).mean((1, 2))
    assert 0.4 < float(wide.min()) < 0.65 and 0.95 < float(wide.max()) < 1.001
    if C > 1:
        high = (middle[:, 0].diff(dim=-2) * H).mean((1, 2))
        area = high * wide
        assert 0.299 < float(area.min()) < 0.4 and 0.9 < float(area.max()) < 1.001
        assert 0.74 < float((wide / high).min()) and float((wide / high).max()) < 1.34


@pytest.mark.parametrize("options, words", [
    ({"lr": 0}, "lr must be positive"),
    ({"covariance": -1}, "weights and weight_decay at least 0"),
    ({"area": 0}, "area in"),
    ({"net": FeatureNet(num_classes=10)}, "sees no labels; give the network num_classes 0, not 10"),
])  # fmt: skip
def test_vicreg_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        VICReg(**options)


def test_vicreg_refuses_batches_of_one():
    with pytest.raises(ValueError, match="at least 2 images per batch, got 1; raise data.batch_size"):
        VICReg().embeddings(torch.zeros(1, 1, 8, 8))


# --- training ---------------------------------------------------------------------------------------------------------


def trained(out, *options):
    assert main([*CONFIG, "--out", str(out), *map(str, options)]) == 0
    return sorted(Path(out, "digits").glob("version_*"))[-1]


@pytest.mark.slow
def test_training_depends_on_the_seed_and_not_on_labels(tmp_path, monkeypatch):
    short = ("--trainer.max_steps", 6, "--trainer.val_check_interval", 3)
    load = Digits.load

    def weights(name, seed=0):
        run = trained(tmp_path / name, *short, "--seed_everything", seed)
        return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]

    first, other = weights("first"), weights("other", seed=1)
    monkeypatch.setattr(Digits, "load", lambda self, split: (load(self, split)[0], load(self, split)[1] * 0))
    hidden = weights("hidden")  # no digit has a label
    assert all(torch.equal(first[k], hidden[k]) for k in first)
    assert not torch.equal(first["net.features.0.0.weight"], other["net.features.0.0.weight"])


def test_extractor_of_a_run(tmp_path):
    run = trained(tmp_path, "--trainer.max_steps", 2)
    extractor = load_extractor(run)
    assert (extractor.name, extractor.shape, extractor.class_names) == ("VICReg", (1, 8, 8), ())
    assert "not comparable with FID" in extractor.note
    found = extractor.describe(Digits().arrays("test")[0], None)
    assert found.features.shape == (360, 64) and found.logits.shape == (360, 0) and found.labels is None


@pytest.mark.slow
def test_features_know_the_classes_and_notice_damage(tmp_path):
    """Digits with labels hidden: a linear probe and neighbours of few labels far better than in untrained features and
    pixels, and a Frechet distance that rises with every further blur, noise and missing class."""
    net = load_extractor(trained(tmp_path)).net
    torch.manual_seed(0)
    before = Extractor.of(FeatureNet(num_classes=0), "untrained").net
    (x, y), (unseen, its) = digits("train"), digits("test")
    order = mixed(y)  # any fifty in a row are five of each class
    linear, nearest = {}, {}
    for name, features in (("VICReg", net.features), ("untrained", before.features), ("pixels", torch.nn.Flatten())):
        a, b = features(x)[order], features(unseen)
        linear[name] = 1 - probe(a, y[order], b, its)
        draws = [slice(first, first + 50) for first in range(0, 500, 50)]
        nearest[name] = sum(1 - neighbours(a[part], y[order][part], b, its, 1) for part in draws) / len(draws)
    assert linear["VICReg"] < 0.03 and linear["untrained"] > 4 * linear["VICReg"] and linear["pixels"] > 0.06
    assert nearest["VICReg"] < 0.16 and nearest["untrained"] > 2 * nearest["VICReg"]
    assert rank(net.features(x)) > 6  # not collapsed
    real = Gaussian.of(net.features(x))
    distance = {name: frechet_distance(real, Gaussian.of(net.features(v))) for name, v in damages(unseen, its)}
    floor = frechet_distance(real, Gaussian.of(net.features(unseen)))
    for kind in ("blur", "noise", "without"):
        rising = [floor, *(v for name, v in distance.items() if name.startswith(kind))]
        assert all(a < b for a, b in zip(rising, rising[1:], strict=False)), (kind, rising)
        assert rising[-1] > 5 * floor
