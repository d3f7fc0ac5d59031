"""Augmentation that does not leak: the network is told how a training image was changed, and sampling says "not"."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

GEOMETRY = {"x_flip": 1, "y_flip": 1, "scale": 1, "rotate": 2, "stretch": 2, "shift": 2}  # numbers that tell of each
COLOUR = {"brightness": 1, "contrast": 1, "saturation": 1}
CHANGES = GEOMETRY | COLOUR


class NonLeaking:
    """Random changes of the training images, each with probability p, and the numbers that tell of them.

        x_flip, y_flip   mirrored                                    told: 1
        scale            by 2^(size a)                               a ~ N(0, 1)
        rotate           by a, uniform in (-pi, pi)                  cos a - 1, sin a
        stretch          by 2^(size b) along the direction a and     b cos a, b sin a;  b ~ N(0, 1)
                         by its inverse across
        shift            by reach a of the height and width          a, both ~ N(0, 1)
        brightness       x + 2 strength a                            a ~ N(0, 1)
        contrast         x 2^(2.5 strength a)                        a ~ N(0, 1)
        saturation       grey + 2^(5 strength a) (x - grey)          a ~ N(0, 1)

    The numbers are 0 where nothing is changed, and images that nothing changes are left as they are to the bit. The
    network receives the numbers as constant channels beside x, zeros when it samples; its weights for them begin at 0.
    Geometry is one bicubic resampling with reflected borders; colours, of bounded images only, are clamped to [-1, 1].
    Source: Karras et al. 2022, arXiv:2206.00364, app. F.2 (written from its table; stretch is called anisotropy there).

    Args:
        changes: names of changes. x_flip, scale and so on; colours are not in the paper's recipe.
        p: probability of each change, in (0, 1]; the paper's is .12 to .15.
        size: binary logarithm of the standard deviations of scale and stretch, > 0.
        reach: standard deviation of the shift, > 0.
        strength: of the colours, > 0.
    Raises:
        ValueError: an unknown or repeated change, none, or a number out of range.
    """

    def __init__(
        self,
        changes: Sequence[str] = ("x_flip", "y_flip", "scale", "rotate", "stretch", "shift"),
        p: float = 0.12,
        size: float = 0.2,
        reach: float = 0.125,
        strength: float = 0.1,
    ) -> None:
        unknown = [name for name in changes if name not in CHANGES]
        if unknown or not changes or len(set(changes)) < len(changes):
            raise ValueError(f"NonLeaking: wanted different changes of {', '.join(CHANGES)}; got {list(changes)}")
        if not 0 < p <= 1 or min(size, reach, strength) <= 0:
            raise ValueError(
                "NonLeaking: wanted p in (0, 1], and size, reach and strength above 0; "
                f"got {p}, {size}, {reach} and {strength}"
            )
        self.changes, self.p, self.size = tuple(changes), float(p), float(size)
        self.reach, self.strength = float(reach), float(strength)

    @property
    def numbers(self) -> int:
        """Numbers per image that the network is told."""
        return sum(CHANGES[name] for name in self.changes)

    def __call__(
        self,
        x0: Tensor,
        uniform: Callable[[int], Tensor],
        normal: Callable[[Tensor], Tensor],
        bounded: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The changed images (B, C, H, W), and the numbers (B, numbers) that tell of the changes.

        Args:
            uniform: returns n uniform numbers in [0, 1).
            normal: returns N(0, I) of a tensor's shape.
            bounded: whether x0 lies in [-1, 1].
        """
        told = self.draw(len(x0), uniform, normal).to(x0, non_blocking=True)
        return self.apply(x0, told, bounded), told

    def draw(self, n: int, uniform: Callable[[int], Tensor], normal: Callable[[Tensor], Tensor]) -> Tensor:
        """The numbers (n, numbers) of n images."""
        found = []
        for name in self.changes:
            on, turn = uniform(2 * n).view(2, n)
            a, angle = normal(torch.empty(n, CHANGES[name])), 2 * math.pi * turn[:, None] - math.pi
            if name in ("x_flip", "y_flip"):
                a = torch.ones(n, 1)
            elif name == "rotate":
                a = torch.cat([angle.cos() - 1, angle.sin()], dim=1)
            elif name == "stretch":
                a = a[:, :1] * torch.cat([angle.cos(), angle.sin()], dim=1)
            found.append(torch.where(on[:, None] < self.p, a, 0.0))
        return torch.cat(found, dim=1).float()

    def apply(self, x: Tensor, told: Tensor, bounded: bool = True) -> Tensor:
        """The images changed as their numbers tell."""
        columns = told.split([CHANGES[name] for name in self.changes], dim=1)
        of = dict(zip(self.changes, columns, strict=True))
        geometry = [of[name] for name in GEOMETRY if name in of]
        if geometry:
            still = (torch.cat(geometry, dim=1) == 0).all(1).view(-1, 1, 1, 1)
            x = torch.where(still, x, self.moved(x, of, bounded))
        return self.coloured(x, of) if any(name in of for name in COLOUR) else x

    def moved(self, x: Tensor, of: dict[str, Tensor], bounded: bool) -> Tensor:
        """The images resampled at M p for the pixels p, M being the inverse of the changes one after the other."""
        B, H, W = len(x), *x.shape[-2:]
        inverse = torch.eye(2, device=x.device).expand(B, 2, 2)
        for k, name in enumerate(("x_flip", "y_flip")):
            if name in of:
                mirror = torch.ones(B, 2, device=x.device)
                mirror[:, k] -= 2 * of[name][:, 0]
                inverse = inverse @ mirror.diag_embed()
        if "scale" in of:
            inverse = inverse * (2 ** (-self.size * of["scale"])).view(B, 1, 1)
        if "rotate" in of:
            cos, sin = of["rotate"][:, 0] + 1, of["rotate"][:, 1]
            inverse = inverse @ torch.stack([cos, sin, -sin, cos], 1).view(B, 2, 2)
        if "stretch" in of:
            b = of["stretch"].norm(dim=1)
            along = of["stretch"] / b.clamp(min=1e-12)[:, None]  # a negative b along a is the opposite direction
            across = torch.stack([-along[:, 1], along[:, 0]], 1)
            frame = torch.stack([along, across], 2)
            factors = torch.stack([2 ** (-self.size * b), 2 ** (self.size * b)], 1)
            inverse = inverse @ (frame * factors[:, None]) @ frame.mT
        shift = self.reach * of["shift"] * 2 if "shift" in of else torch.zeros(B, 2, device=x.device)
        sides = torch.ones(2, 2, device=x.device)  # grid_sample's axes go from -1 to 1
        sides[0, 1], sides[1, 0] = H / W, W / H
        inverse = inverse * sides
        grid = F.affine_grid(torch.cat([inverse, -(inverse @ shift[:, :, None])], 2), [B, 1, H, W], align_corners=False)
        out = F.grid_sample(x, grid.to(x), mode="bicubic", padding_mode="reflection", align_corners=False)
        return out.clamp(-1, 1) if bounded else out

    def coloured(self, x: Tensor, of: dict[str, Tensor]) -> Tensor:
        """The images with changed colours; saturation is defined for three channels."""
        before, zero = x, torch.zeros(len(x), 1, device=x.device)
        a = {name: of.get(name, zero).view(-1, 1, 1, 1) for name in COLOUR}
        x = (x + 2 * self.strength * a["brightness"]) * 2 ** (2.5 * self.strength * a["contrast"])
        grey = x.mean(1, keepdim=True)
        x = grey + 2 ** (5 * self.strength * a["saturation"]) * (x - grey)
        still = (a["brightness"] == 0) & (a["contrast"] == 0) & (a["saturation"] == 0)
        return torch.where(still, before, x.clamp(-1, 1))

    def refuse(self, changed_by: Sequence[str], channels: int, bounded: bool, name: str) -> None:
        """Check that the changes suit the data.

        Args:
            changed_by: changes after which an image may belong to another class.
            name: of the data set.
        Raises:
            ValueError: a change that alters classes, or colours of images without a range or without three channels.
        """
        if wrong := [change for change in self.changes if change in changed_by]:
            raise ValueError(f"NonLeaking: {', '.join(wrong)} would change the classes of {name}; leave it out")
        if any(change in COLOUR for change in self.changes) and not bounded:
            raise ValueError(f"NonLeaking: colours are for images of a limited range, {name} has none; leave them out")
        if "saturation" in self.changes and channels != 3:
            raise ValueError(f"NonLeaking: saturation is for 3 channels, {name} has {channels}; leave it out")
