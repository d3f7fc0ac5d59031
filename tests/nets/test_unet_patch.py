"""A U-Net on patches is the same U-Net on the pixels of each patch as channels."""

import pytest
import torch
from torch.nn import functional as F

from diffusion.exchange.exporting.unet2d import unmapped
from diffusion.nets import UNet

SMALL = {"width": 16, "mults": [1, 2], "blocks": 1, "head_width": 16}


def filled(net: UNet, seed: int = 0) -> UNet:
    random = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=random)
    return net.double()


@pytest.mark.parametrize("patch", [2, 4])
def test_patches_are_channels(patch):
    patched = filled(UNet(3, **SMALL, num_classes=4, patch=patch))
    plain = UNet(3 * patch**2, **SMALL, num_classes=4).double()
    plain.load_state_dict(patched.state_dict())
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    clock, y = torch.tensor([0.1, 0.9], dtype=torch.float64), torch.tensor([1, 3])
    expected = F.pixel_shuffle(plain(F.pixel_unshuffle(x, patch), clock, y), patch)
    torch.testing.assert_close(patched(x, clock, y), expected, rtol=0, atol=0)


def test_a_patched_network_may_receive_images_and_output_variances():
    net = UNet(3, **SMALL, patch=2, image_channels=1, learn_variance=True)
    assert net(torch.randn(2, 4, 8, 8), torch.rand(2)).shape == (2, 6, 8, 8)


def test_sides_must_be_divisible_by_patch_and_levels():
    with pytest.raises(ValueError, match="6x8 is not divisible by 4; pad to 8x8"):
        UNet(1, **SMALL, patch=2)(torch.randn(1, 1, 6, 8), torch.rand(1))


def test_diffusers_has_no_patches():
    assert "patches of 2" in unmapped(UNet(3, **SMALL, patch=2))
