"""Codecs: round trips, the error of the best linear codec, the scaling of latents, and the identity of weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.data import Digits
from diffusion.denoiser.codecs import PCA, Frozen, Identity
from diffusion.denoiser.codecs.frozen import fingerprint
from diffusion.support.specs import build, spec


def digits(n=1000):
    return Digits().arrays("train")[0][:n] / 127.5 - 1


def passes(x0, size=300):
    return lambda: iter(x0.split(size))


class Toy(nn.Module):
    """An autoencoder of random weights."""

    def __init__(self, channels: int = 1, latent: int = 3, factor: int = 2) -> None:
        super().__init__()
        self.channels, self.latent, self.factor = channels, latent, factor
        self.there, self.back = (kind(*io, factor, factor) for kind, io in (
            (nn.Conv2d, (channels, latent)), (nn.ConvTranspose2d, (latent, channels))))  # fmt: skip

    def encode(self, x):
        return self.there(x)

    def decode(self, z):
        return self.back(z)


def toy(**options):
    net = Toy(**options)
    return Frozen("runs/toy", hash=fingerprint(net), net=net)


def test_identity_returns_the_same_tensor_and_keeps_nothing():
    codec, x = Identity(), torch.randn(2, 3, 5, 7)
    codec.fit(lambda: 1 / 0)
    assert codec.encode(x) is x and codec.decode(x) is x
    assert codec.latent_shape((3, 5, 7)) == (3, 5, 7) and not codec.state_dict()


@pytest.mark.parametrize("latent", [1, 4, 16])
def test_linear_codec_has_the_error_of_pca(latent, float64):
    """The squared error of digits in 4x4 patches is the sum of the covariance's other eigenvalues."""
    x = digits().double()
    codec = PCA(1, latent, 4).double()
    codec.fit(passes(x))
    rows = F.unfold(x, 4, stride=4).transpose(1, 2).flatten(0, 1)
    values = torch.linalg.eigvalsh(rows.T.cov(correction=0)).flip(0)
    error = (codec.decode(codec.encode(x)) - x).square().sum((1, 2, 3)).mean() / 4  # 4 patches in an image
    # Latents are normalised in float32, hence the tolerance.
    torch.testing.assert_close(error, values[latent:].sum(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(codec.scale, values[:latent].sqrt(), rtol=1e-6, atol=0, check_dtype=False)


@pytest.mark.parametrize("make", [lambda: PCA(1, 4, 4), toy], ids=["PCA", "Frozen"])
def test_latents_have_mean_0_and_deviation_1_per_channel(make):
    x, codec = digits(), make()
    codec.fit(passes(x))
    z = torch.cat([codec.encode(part) for part in x.split(77)])
    assert z.shape[1:] == codec.latent_shape(x.shape[1:])
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(codec.latent), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(codec.latent), rtol=1e-4, atol=0)
    torch.testing.assert_close(codec.decode(z), codec.image(codec.code(x)), rtol=1e-4, atol=1e-5)


def test_fit_measures_once():
    codec = toy()
    codec.fit(passes(digits()))
    before = codec.scale.clone()
    codec.fit(passes(2 * digits()))
    assert torch.equal(codec.scale, before)


def test_a_constant_channel_is_only_shifted():
    net = Toy()
    with torch.no_grad():
        net.there.weight[1] = 0
    codec = Frozen("x", net=net)
    codec.fit(passes(digits()))
    assert codec.scale[1] == 1 and codec.encode(digits())[:, 1].abs().max() < 1e-6


@pytest.mark.parametrize("make", [lambda: PCA(1, 4, 4), toy, Identity], ids=["PCA", "Frozen", "Identity"])
def test_a_codec_goes_through_its_spec_and_state(make):
    codec, x = make(), digits(50)
    codec.fit(passes(x))
    again = build(spec(codec))
    again.load_state_dict(codec.state_dict())
    assert spec(again) == spec(codec)
    z = codec.encode(x)
    assert torch.equal(z, again.encode(x)) and torch.equal(codec.decode(z), again.decode(z))


def test_other_weights_than_the_recorded_ones_are_refused():
    """The state is loaded as part of a model, and one weight differs in its last bit."""
    codec = toy()
    state = {f"codec.{k}": v.clone() for k, v in codec.state_dict().items()}
    model = nn.ModuleDict({"codec": build(spec(codec))})
    model.load_state_dict(state)
    state["codec.net.there.bias"][0] = torch.nextafter(state["codec.net.there.bias"][0], torch.tensor(9.0))
    with pytest.raises(ValueError, match=f"runs/toy: has changed .* expected hash {codec.hash}, got"):
        model.load_state_dict(state)


@pytest.mark.parametrize(
    "shape, said",
    [((3, 8, 8), "a codec of 1 channels, got images of 3"), ((1, 9, 8), "9x8 is not divisible .* pad to 10x8")],
)
def test_images_that_do_not_fit_are_refused(shape, said):
    with pytest.raises(ValueError, match=said):
        toy().encode(torch.zeros(2, *shape))
    with pytest.raises(ValueError, match=said):
        toy().latent_shape(shape)


@pytest.mark.parametrize("options", [{"latent": 17, "factor": 4}, {"latent": 0}, {"channels": 0}, {"factor": 0}])
def test_pca_refuses_numbers_out_of_range(options):
    with pytest.raises(ValueError, match="PCA: channels and factor"):
        PCA(**options)


def test_a_codec_has_no_gradient_and_stays_in_evaluation_mode():
    codec = toy().train()
    assert not codec.training and not codec.net.training
    assert not any(p.requires_grad for p in codec.parameters())
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)  # of an image there is one
    codec.decode(codec.encode(x)).sum().backward()
    assert x.grad is not None
