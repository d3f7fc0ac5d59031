"""Augmentation that the network is told of: each change, its numbers, and that nothing leaks."""

import math

import pytest
import torch

from diffusion import Diffusion, nets
from diffusion.data import CIFAR10, Digits, FashionMNIST
from diffusion.denoiser import Condition
from diffusion.denoiser.saved import trimmed, untold
from diffusion.loss.augment import CHANGES, NonLeaking
from diffusion.nets import AttentionUNet, ContextUNet
from diffusion.noise import Cosine
from diffusion.noise.draws import StepDraws
from diffusion.support.specs import build, spec
from diffusion.training.systems.told import prepare, refuse_changes


def picture(n=2, H=16, W=16, channels=1):
    """Smooth images, which bicubic interpolation (not exact for ramps) changes by less than 3e-3."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    return (0.5 * torch.sin(2 * x + y) + 0.3 * torch.cos(1.5 * y)).expand(n, channels, H, W).contiguous()


def inner(x, k=4):
    return x[..., k:-k, k:-k]


def changed(name, told, x=None, **options):
    x = picture() if x is None else x
    return NonLeaking([name], **options).apply(x, torch.tensor([told] * len(x), dtype=torch.float32))


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_flips_and_right_angles_are_exact():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    close(changed("x_flip", [1], x), x.flip(-1))
    close(changed("y_flip", [1], x), x.flip(-2))
    close(changed("rotate", [math.cos(math.pi / 2) - 1, 1.0], x), x.rot90(-1, (-2, -1)))
    close(changed("rotate", [-2.0, 0.0], x), x.flip(-1, -2))


def test_a_shift_moves_by_a_share_of_the_sides():
    x = picture(H=16, W=32)
    found = changed("shift", [1.0, -1.0], x, reach=0.125)  # 4 pixels to the right, 2 up
    close(found[..., :14, 4:], x[..., 2:, :-4])


def test_scale_enlarges_and_stretch_does_so_in_one_direction():
    H = 33
    ramp = torch.linspace(-0.5, 0.5, H).expand(1, 1, H, H)
    close(inner(changed("scale", [1.0], ramp, size=1.0)), inner(ramp / 2), 3e-3)
    close(inner(changed("stretch", [1.0, 0.0], ramp, size=1.0)), inner(ramp / 2), 3e-3)  # along x
    found = changed("stretch", [0.0, 1.0], ramp, size=0.1)  # along y: narrower along x
    close(inner(found, 6), inner(ramp * 2**0.1, 6), 3e-3)


def test_the_same_numbers_mean_the_same_change_for_pictures_of_any_shape():
    """A turn of a wide picture is a turn, not a shear: distances from the centre are kept."""
    H, W = 17, 33
    y, x = torch.meshgrid(torch.arange(H) - 8.0, torch.arange(W) - 16.0, indexing="ij")
    radius = ((x**2 + y**2) / 400).view(1, 1, H, W)
    found = changed("rotate", [math.cos(0.7) - 1, math.sin(0.7)], radius)
    close(found[..., 4:-4, 12:-12], radius[..., 4:-4, 12:-12], 3e-3)


def test_colours():
    x = torch.rand(2, 3, 4, 4) - 0.5
    close(changed("brightness", [1.0], x, strength=0.1), x + 0.2)
    close(changed("contrast", [-1.0], x, strength=0.1), x * 2**-0.25)
    grey = x.mean(1, keepdim=True)
    close(changed("saturation", [1.0], x, strength=0.1), grey + 2**0.5 * (x - grey))
    assert changed("brightness", [9.0], x, strength=0.1).max() == 1


def test_nothing_leaks():
    """Images whose numbers are all 0 are unchanged to the bit, and each change occurs with probability p."""
    augment = NonLeaking(tuple(CHANGES), p=0.2)
    x = torch.rand(2000, 3, 8, 8) * 2 - 1
    draws = StepDraws(0, 0, 0)
    found, told = augment(x, draws.uniform, draws.normal)
    assert told.shape == (2000, augment.numbers) == (2000, 12)
    still = (told == 0).all(1)
    assert torch.equal(found[still], x[still]) and float(still.float().mean()) == pytest.approx(0.8**9, abs=0.02)
    assert not (found[~still] == x[~still]).flatten(1).all(1).any()
    columns = dict(zip(CHANGES, told.split(list(CHANGES.values()), dim=1), strict=True))
    for name, column in columns.items():
        on = (column != 0).any(1)
        assert float(on.float().mean()) == pytest.approx(0.2, abs=0.03), name
        if name in ("scale", "shift", "contrast"):
            assert float(column[on].std()) == pytest.approx(1, abs=0.15), name
    assert float(columns["stretch"].norm(dim=1).square().sum() / (2000 * 0.2)) == pytest.approx(1, abs=0.25)
    again = augment(x, StepDraws(0, 0, 0).uniform, StepDraws(0, 0, 0).normal)
    assert again[1].shape == told.shape and found.abs().max() <= 1


def test_the_numbers_are_a_function_of_seed_step_and_rank():
    augment = NonLeaking()

    def told(*key):
        draws = StepDraws(*key)
        return augment.draw(8, draws.uniform, draws.normal)

    assert torch.equal(told(1, 2, 0), told(1, 2, 0))
    assert not torch.equal(told(1, 2, 0), told(1, 3, 0)) and not torch.equal(told(1, 2, 0), told(1, 2, 1))


@pytest.mark.parametrize("data, changes, message", [
    (Digits(), ["x_flip"], "x_flip would change the classes of Digits"),
    (Digits(), ["shift", "rotate"], "rotate would change"),
    (Digits(labels=False), ["saturation"], "saturation is for 3 channels, Digits has 1"),
])  # fmt: skip
def test_changes_of_classes_are_refused(data, changes, message):
    with pytest.raises(ValueError, match=message):
        refuse_changes(NonLeaking(changes), data, True)


def test_other_changes_are_accepted():
    refuse_changes(NonLeaking(["scale", "stretch", "shift"]), Digits(), True)
    refuse_changes(NonLeaking(), Digits(labels=False), True)
    refuse_changes(NonLeaking(), FashionMNIST(), True)
    refuse_changes(NonLeaking(tuple(CHANGES)), CIFAR10(), True)
    with pytest.raises(ValueError, match="colours are for images of a limited range"):
        refuse_changes(NonLeaking(["contrast"]), CIFAR10(), False)


@pytest.mark.parametrize("options", [{"changes": ["flip"]}, {"changes": []}, {"changes": ["shift", "shift"]},
                                     {"p": 0}, {"size": 0}, {"reach": -1}])  # fmt: skip
def test_invalid_settings_are_refused(options):
    with pytest.raises(ValueError, match="NonLeaking: wanted"):
        NonLeaking(**options)


def model(told=True, **options):
    augment = NonLeaking(["scale", "shift"]) if told else None
    net = AttentionUNet(1, (8, 8), heads=2, attention=1, image_channels=3 * told)
    return Diffusion(net, Cosine(20), augment=augment, shape=(1, 8, 8), **options)


SMALL = {
    "AttentionUNet": {"widths": (8, 8), "heads": 2, "attention": 1}, "ResidualMLP": {"size": (8, 8), "width": 16},
    "DiT": {"patch": 2, "width": 32, "depth": 1, "heads": 2}, "UNet": {"width": 8, "mults": (1, 2)},
    "LinearUNet": {"width": 8, "mults": (1, 2)}, "BlockUNet": {"width": 8}, "ContextUNet": {"width": 8, "pool": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_an_untrained_network_ignores_the_numbers_and_without_them_is_the_same(name):
    """Its weights for them are 0; cutting them off, as loading does, changes nothing."""
    kind, options, augment = getattr(nets, name), SMALL[name], NonLeaking()
    net, cut = (kind(channels=2, image_channels=K, **options) for K in (augment.numbers + 1, 1))
    prepare(net, augment, paired=False)
    for p in net.parameters():
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.1)  # zero-initialised ends
    prepare(net, augment, paired=False)
    net.eval(), cut.eval()
    x, clock = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 5.0])
    told = torch.randn(2, augment.numbers, 1, 1).expand(-1, -1, 8, 8)
    out = [net(torch.cat([x, v], 1), clock) for v in (told, torch.zeros_like(told))]
    torch.testing.assert_close(*out, rtol=1e-5, atol=1e-6)
    state = {f"denoiser.net.{k}": v for k, v in net.state_dict().items()}
    fewer = trimmed(state, cut, augment.numbers)
    cut.load_state_dict({k.removeprefix("denoiser.net."): v for k, v in fewer.items()})
    torch.testing.assert_close(cut(x, clock), out[1], rtol=1e-5, atol=1e-6)


def test_the_denoiser_uses_zeros_unless_it_is_told():
    made = model()
    made.denoiser.net.inc.body[0].weight.data.normal_()
    made.eval()
    x, t = torch.randn(2, 1, 8, 8), made.denoiser.schedule.level(torch.tensor(0.5))
    a, b, c = (made.denoiser(x, t, Condition(told=v)).x0 for v in (None, torch.zeros(2, 3), torch.ones(2, 3)))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert made.denoiser.image_channels == 0 and made.pipeline.hint is None


def test_files_of_models_without_augmentation_are_as_they_were():
    assert "augment" not in model(False).hparams
    assert untold(dict(model(False).hparams))[1] == 0
    assert build(spec(NonLeaking(["shift"], p=0.3))).p == 0.3


@pytest.mark.parametrize("options, message", [
    ({"image_channels": 2}, "tells the network 9 numbers; make it with image_channels 9 more, not 2"),
    ({"image_channels": 12}, None),
])  # fmt: skip
def test_a_network_without_inputs_for_the_numbers_is_refused(options, message):
    net = AttentionUNet(1, (8, 8), heads=2, attention=1, **options)
    if message:
        with pytest.raises(ValueError, match=message):
            Diffusion(net, Cosine(20), augment=NonLeaking())
    else:
        assert Diffusion(net, Cosine(20), augment=NonLeaking()).denoiser.image_channels == 3


def test_a_network_whose_inputs_for_the_numbers_cannot_be_cut_off_is_refused():
    with pytest.raises(ValueError, match="ContextUNet has other weights without the 3 numbers"):
        prepare(ContextUNet(1, width=4, pool=2, image_channels=3), NonLeaking(["scale", "shift"]), paired=False)
    net = torch.nn.Conv2d(4, 1, 1)
    net.image_channels = 3
    with pytest.raises(ValueError, match="needs a network derived from nets.base.Net, got Conv2d"):
        prepare(net, NonLeaking(["scale", "shift"]), paired=False)


@pytest.mark.parametrize("augment", ["samplers.DDIM", "loss.augment.NonLeaking"])
def test_a_file_whose_augmentation_does_not_fit_its_network_is_refused(augment):
    net = {"class_path": "diffusion.nets.ResidualMLP", "init_args": {"size": [8, 8], "width": 16}}
    with pytest.raises(ValueError, match="augment: .* the network has 0 image_channels for them"):
        untold({"net": net, "augment": {"class_path": f"diffusion.{augment}"}})
