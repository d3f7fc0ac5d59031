"""Extractors: shapes, errors, hashes, the cache of references, and Inception against the published code."""

import pytest
import torch
from torch import nn

from diffusion.metrics.evaluator import Evaluator, repeated
from diffusion.metrics.extractor import Extractor, fingerprint
from diffusion.metrics.features import FeatureNet
from diffusion.metrics.inception import Inception, prepared
from diffusion.pictures import to_uint8
from diffusion.support.scaling import Scaling


def images(n, shape, seed=0):
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_feature_net_accepts_every_size_and_number_of_channels(channels, size):
    extractor = Extractor.of(FeatureNet(channels, 5, (4, 8, 8), 6), "FeatureNet", (channels, size, size), "abcde")
    x = images(5, (channels, size, size))
    found = extractor.describe(x, torch.eye(5)[[0, 3, 1, 1, 2]], batch=2)
    assert found.features.shape == (5, 6) and found.logits.shape == (5, 5) and found.labels.tolist() == [0, 3, 1, 1, 2]
    torch.testing.assert_close(found.logits, extractor.net(x / 127.5 - 1))
    torch.testing.assert_close(found.pixels, x / 127.5 - 1)


def test_feature_net_without_classes_has_no_logits():
    found = Extractor.of(FeatureNet(2, 0, (4,), 6), "FeatureNet").describe(images(3, (2, 9, 14)), None)
    assert found.features.shape == (3, 6) and found.logits.shape == (3, 0)


def test_extractor_refuses_other_images_and_classes():
    extractor = Extractor.of(FeatureNet(1, 2), "FeatureNet", (1, 32, 32), ("cat", "dog"))
    assert extractor.refuse("Mine", (1, 32, 32), ("cat", "dog")) == ""
    assert "takes images of 1x32x32, and those of Mine are 3x32x32" in extractor.refuse("Mine", (3, 32, 32), ())
    assert "knows cat, dog, and the classes of Mine are 0, 1" in extractor.refuse("Mine", (1, 32, 32), ("0", "1"))


def test_extractor_hash_depends_on_the_weights():
    a, b = FeatureNet(1, 2, (4,), 3), FeatureNet(1, 2, (4,), 3)
    assert fingerprint(a) != fingerprint(b) and len(fingerprint(a)) == 12
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b)


def test_references_are_cached_with_their_provenance(tmp_path):
    net = FeatureNet(1, 3, (4,), 5)
    train, test = ((images(n, (1, 8, 8), n), torch.arange(n) % 3) for n in (30, 12))
    first = Evaluator(Extractor.of(net, "Net", (1, 8, 8), "abc"), "Mine", train, test, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert first.provenance["train"] | {"images": 0, "extractor_hash": 0} == {
        "data": "Mine", "split": "train", "n": 30, "images": 0, "extractor": "Net", "extractor_hash": 0,
        "augmentation": "none", "left_out": 0,
    }  # fmt: skip
    again = Evaluator(Extractor.of(net, "Net", (1, 8, 8), "abc"), "Mine", train, test, tmp_path)
    assert again.reference.hash == first.reference.hash and len(list(tmp_path.iterdir())) == 2
    torch.testing.assert_close(again.reference.train.features, first.reference.train.features)
    other = Evaluator(Extractor.of(FeatureNet(1, 3, (4,), 5), "Net"), "Mine", train, test, tmp_path)
    fewer = Evaluator(Extractor.of(net, "Net"), "Mine", [v[:20] for v in train], test, tmp_path)
    assert len({e.reference.hash for e in (first, other, fewer)}) == 3


def test_labels_have_the_training_sets_proportions():
    y = torch.cat([torch.zeros(60), torch.ones(30)]).long()
    judge = Evaluator(Extractor.of(FeatureNet(1, 2, (4,), 3), "Net"), "Mine", (images(90, (1, 8, 8)), y), (images(9, (1, 8, 8)), y[:9]))  # fmt: skip # noqa: E501
    asked = judge.labels(180)
    assert int((asked == 0).sum()) == 120 and int((asked[:45] == 0).sum()) == 30
    assert repeated(torch.arange(3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [len(judge.warnings(n)) for n in (10, 30)] == [1, 0]


def test_samples_are_measured_in_eight_bits():
    x = torch.linspace(-1.1, 1.1, 4 * 64).view(4, 1, 8, 8)
    assert torch.equal(Scaling().decode(x), torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def inception():
    torch.manual_seed(0)
    model = Inception()
    for name, value in model.state_dict().items():  # like trained ones: no activation vanishes
        if value.ndim > 1:
            nn.init.kaiming_normal_(value)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return model


def test_inception_is_the_published_network(inception, monkeypatch):
    """pytorch-fid's, on the same random weights: the same 2048 features of small images."""
    published = pytest.importorskip("pytorch_fid.inception")
    state = inception.state_dict()
    state = {k.removeprefix("body.").replace("head.", "fc."): v for k, v in state.items()}
    monkeypatch.setattr(published, "load_state_dict_from_url", lambda *args, **kwargs: state)
    theirs = published.InceptionV3().eval()
    x = torch.rand(2, 3, 32, 32)
    expected = theirs(x)[0].flatten(1)
    found = inception.features(2 * x - 1)
    assert found.shape == (2, 2048) and expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 48, 20), (3, 320, 400)])
def test_inception_prepares_images_as_published(shape):
    """clean-fid's own resizing in the mode of the published PyTorch figures: no antialiasing, no rounding."""
    resize = pytest.importorskip("cleanfid.resize").build_resizer("legacy_pytorch")
    x = images(2, shape)
    rgb = x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    theirs = torch.stack([torch.from_numpy(resize(image)).permute(2, 0, 1) for image in rgb])
    torch.testing.assert_close((prepared(x / 127.5 - 1) + 1) * 127.5, theirs, rtol=0, atol=1e-3)  # of 255


def test_inception_pools_exclude_their_padding(inception):
    """The two deviations on their own: averages exclude the padding, and the last block takes a maximum."""
    x, seen = torch.rand(1, 192, 7, 7), {}
    blocks = {"mean": inception.body.Mixed_5b, "max": inception.body.Mixed_7c}
    for name, block in blocks.items():
        block.branch_pool.conv.register_forward_pre_hook(lambda m, a, name=name: seen.__setitem__(name, a[0]))
    blocks["mean"](x)
    expected = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(seen["mean"], expected)
    x = torch.rand(1, 2048, 4, 4)
    blocks["max"](x)
    torch.testing.assert_close(seen["max"], nn.functional.max_pool2d(x, 3, 1, 1))


def test_inception_from_a_file(inception, tmp_path):
    state = {k.removeprefix("body.").replace("head.", "fc."): v for k, v in inception.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    loaded = Inception.load(str(tmp_path / "weights.pth"))
    grey = images(2, (1, 8, 8))
    found = loaded.extractor().describe(grey, None)
    torch.testing.assert_close(found.features, inception.features(grey / 127.5 - 1))
    assert found.logits.shape == (2, 1008) and not loaded.train().training
    assert "1 or 3 channels" in loaded.extractor().refuse("Mine", (4, 8, 8), ())
    for path, error in (("", FileNotFoundError), (str(tmp_path / "no.pth"), FileNotFoundError)):
        with pytest.raises(error, match="--features Inception:FILE"):
            Inception.load(path)
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="not the expected weights"):
        Inception.load(str(tmp_path / "bad.pth"))
