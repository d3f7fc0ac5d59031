"""Augmentations and class balance: their geometry, their bounds, and that they depend on (seed, epoch, place) alone."""

import pytest
import torch

from diffusion.data import Sprites
from diffusion.data.augment import Augmentation, Colour, PadCrop, Rotate
from diffusion.data.batches import Batches
from diffusion.data.order import balanced, class_weights
from diffusion.support.scaling import Scaling
from diffusion.support.specs import build, concrete, spec
from diffusion.training.build import DiffusionCLI

X = torch.rand(6, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
EVERY = sorted(concrete(Augmentation), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", EVERY)
def test_augmentations_keep_shape_range_and_spec(kind):
    augmentation = build(spec(kind()))
    u = torch.rand(len(X), kind.numbers, generator=torch.Generator().manual_seed(1))
    y = augmentation(X, u)
    assert y.shape == X.shape and y.dtype == torch.float32 and y.abs().max() <= 1
    assert not torch.equal(y, X)
    torch.testing.assert_close(torch.cat([augmentation(X[i : i + 1], u[i : i + 1]) for i in range(6)]), y)


def test_pad_crop_shifts_by_whole_pixels():
    middle = torch.full((6, 2), 4.5 / 9)
    assert torch.equal(PadCrop(4)(X, middle), X)
    shifted = PadCrop(2)(X, torch.tensor([[0.0, 0.999]]).expand(6, 2))  # two rows up, two columns to the right
    assert torch.equal(shifted[..., 2:, :-2], X[..., :-2, 2:])
    assert torch.equal(shifted[..., 0, :-2], X[..., 2, 2:]) and torch.equal(shifted[..., 1, :-2], X[..., 1, 2:])


@pytest.mark.parametrize(("u", "turns"), [(0.5, 0), (0.0, 1), (1.0, -1)])
def test_rotation_by_right_angles_is_exact(u, turns):
    """Of a square image, by 90 degrees; u = 1/2 is no rotation, also of a wide one."""
    square = X[..., :8]
    turned = Rotate(90)(square, torch.full((6, 1), u))
    torch.testing.assert_close(turned, torch.rot90(square, turns, (-1, -2)), rtol=0, atol=1e-5)
    torch.testing.assert_close(Rotate(30)(X, torch.full((6, 1), 0.5)), X, rtol=0, atol=1e-5)


def test_rotation_of_a_wide_image_keeps_distances():
    """A horizontal line through the centre becomes a vertical one of the same thickness."""
    x = torch.zeros(1, 1, 9, 15)
    x[..., 4, 4:11] = 1.0
    turned = Rotate(90)(x, torch.zeros(1, 1))
    torch.testing.assert_close(turned[0, 0, 1:8, 7], torch.ones(7), rtol=0, atol=1e-5)
    assert turned[0, 0, :, 9:].abs().max() < 1e-5 and turned[0, 0, :, :6].abs().max() < 1e-5


def test_colour_changes_the_moments_by_its_numbers():
    x = X * 0.4
    u = torch.tensor([[1.0, 0.0, 0.5]]).expand(6, 3)  # b = 0.1, c = 0.9, s = 1
    y = Colour(0.1)(x, u)
    torch.testing.assert_close(y.mean((1, 2, 3)), x.mean((1, 2, 3)) + 0.1)
    torch.testing.assert_close(y.std((1, 2, 3)), 0.9 * x.std((1, 2, 3)))
    grey = Colour(0.5)(x, torch.tensor([[0.5, 0.5, 0.0]]).expand(6, 3))  # half of the saturation
    torch.testing.assert_close(grey - x.mean(1, keepdim=True), 0.5 * (x - x.mean(1, keepdim=True)))


@pytest.mark.parametrize("make", [
    lambda: PadCrop(0), lambda: Rotate(0), lambda: Rotate(181), lambda: Colour(1.0),
    lambda: PadCrop(8)(X, torch.rand(6, 2)),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="wanted"):
        make()


# --- balance ---------------------------------------------------------------------------------------------------


def test_balanced_counts_are_exact_in_the_mean():
    """n_i is N w_i / sum(w), rounded up or down, and the mean over u is that number."""
    w = torch.tensor([1, 5, 2, 2, 10, 4])
    wanted = 6 * w.double() / w.sum()
    counts = torch.stack([balanced(w, (k + 0.5) / 1000) for k in range(1000)])
    assert (counts.sum(1) == 6).all() and ((counts - wanted).abs() < 1).all()
    torch.testing.assert_close(counts.double().mean(0), wanted, rtol=0, atol=2e-3)
    assert torch.equal(balanced(torch.full((7,), 3), 0.999), torch.ones(7, dtype=torch.long))


@pytest.mark.parametrize(("power", "shares"), [(0.0, (0.8, 0.15, 0.05)), (1.0, (1 / 3, 1 / 3, 1 / 3))])
def test_classes_are_drawn_by_their_weights(power, shares):
    y = torch.arange(3).repeat_interleave(torch.tensor([800, 150, 50]))
    for targets in (y, torch.eye(3)[y]):
        batches = Batches(
            torch.zeros(1000, 1, 2, 2, dtype=torch.uint8),
            targets,
            100,
            True,
            True,
            weights=class_weights(targets, power),
        )
        drawn = torch.bincount(y[batches.plan(3)[0]], minlength=3) / 1000
        torch.testing.assert_close(drawn, torch.tensor(shares), rtol=0, atol=2e-3)


# --- in Batches ------------------------------------------------------------------------------------------------


def passed(world, weights, seed=0, epoch=2, resumed=None):
    """The batches of an epoch as all processes see them together: images (N, ...) in the order of the epoch."""
    images = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    y = torch.arange(48)
    parts = []
    for rank in range(world):
        augment = [PadCrop(2), Rotate(20), Colour(0.2)]
        batches = Batches(images, y, 12 // world, True, True, True, seed, rank, world, augment=augment, weights=weights)
        batches.set_epoch(epoch)
        if resumed:
            batches.load_state_dict({"epoch": epoch, "batches": resumed // 12, "images": resumed})
        parts.append([torch.cat([v.flatten(1), its[:, None]], 1) for v, its in batches])
    return torch.cat([torch.stack(step, 1).flatten(0, 1) for step in zip(*parts, strict=True)])


@pytest.mark.parametrize("weights", [None, torch.arange(1, 49)])
def test_augmented_images_depend_on_seed_epoch_and_place_alone(weights):
    """Not on the number of processes, nor on where a run was resumed."""
    whole = passed(1, weights)
    torch.testing.assert_close(passed(2, weights), whole)
    torch.testing.assert_close(passed(2, weights, resumed=24), whole[24:])
    assert not torch.equal(passed(1, weights, epoch=3), whole) and not torch.equal(passed(1, weights, seed=1), whole)


def test_images_without_augmentation_are_as_before():
    """The order and the flips of an epoch do not depend on augmentations."""
    images, y = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8), torch.arange(20)
    plain = Batches(images, y, 4, True, True, True)
    other = Batches(images, y, 4, True, True, True, augment=[Colour(0.1)])
    for a, b in zip(plain.plan(1), other.plan(1), strict=True):
        assert torch.equal(a, b)


def test_augmentations_and_balance_of_a_data_set():
    """By configuration; not in validation, and colour changes are refused for values without bounds."""
    data = Sprites(drawn=True, batch_size=50, augment=[PadCrop(2)], balance=1.0)
    loader = data.train_dataloader()
    assert spec(data)["init_args"]["augment"] == [spec(PadCrop(2))] and loader.augment[0].pixels == 2
    y = data.store("train")[1].argmax(1)
    drawn = torch.bincount(y[loader.plan(0)[0]]) / len(y)
    torch.testing.assert_close(drawn, torch.full((5,), 0.2), rtol=0, atol=2e-3)
    assert not data.val_dataloader().augment and data.val_dataloader().weights is None
    scaling = Scaling("float32", (0.0,), (1.0,), bounded=False)
    with pytest.raises(ValueError, match="Colour is for images of a limited range, not for float32"):
        Batches(torch.zeros(4, 1, 8, 8), torch.zeros(4), augment=[Colour()], scaling=scaling)


def test_augmentations_on_the_command_line():
    words = ["--data", "Digits", "--data.balance", "0.5", "--data.augment", "[{class_path: Rotate}, PadCrop]"]
    data = DiffusionCLI(words).datamodule
    rotate, crop = data.augment
    assert (rotate.degrees, crop.pixels, data.balance) == (10.0, 4, 0.5)
