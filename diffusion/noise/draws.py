"""Reproducible randomness: a function of (seed, step, rank) or of (seed, image) only."""

import torch
from torch import Tensor

from diffusion.noise.philox import normals

GOLDEN = 0.6180339887498949  # frac(k * GOLDEN) is evenly spread over [0, 1) for any run of consecutive k


def seed_of(*key: int) -> int:
    """One 63-bit seed from a whole key, hashed (splitmix64), so that neighbouring keys are unrelated."""
    state = 0
    for part in key:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _generator(device: torch.device | str, *key: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_streams(device: torch.device, *key: int) -> None:
    """Seed torch's global generators on the CPU and on this device, which dropout draws from.

    Equivalent to `torch.manual_seed` for these generators, without the millisecond it spends on other backends.
    """
    seed = seed_of(*key)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


class StepDraws:
    """The randomness of one training step, from (seed, step, rank).

    Args:
        device: where the noise is drawn; the uniform numbers are always drawn on the CPU.
    """

    def __init__(self, seed: int, step: int, rank: int, device: torch.device | str = "cpu") -> None:
        self._uniform = _generator("cpu", seed, step, rank, 0)
        self._normal = _generator(device, seed, step, rank, 1)

    def normal(self, x: Tensor) -> Tensor:
        """N(0, I) of x's shape, float32 whatever x's precision."""
        return torch.randn(x.shape, generator=self._normal, device=x.device)

    def uniform(self, n: int) -> Tensor:
        """n uniform numbers in [0, 1), float64 on the CPU."""
        return torch.rand(n, generator=self._uniform, dtype=torch.float64)


class FixedDraws:
    """The same noise and evenly spread times in every validation, so that curves are comparable between runs.

    Image k of the validation set always gets the same noise and the uniform number frac((k + 1/2) GOLDEN).

    Args:
        indices: (B,) positions of the batch's images in the validation set.
    """

    def __init__(self, seed: int, indices: Tensor) -> None:
        self.seed, self.indices = seed, indices

    def normal(self, x: Tensor) -> Tensor:
        return ImageDraws(self.seed, self.indices.tolist())(x)

    def uniform(self, n: int) -> Tensor:
        return ((self.indices[:n].double() + 0.5) * GOLDEN) % 1


class ImageDraws:
    """Per-image sampling noise from (seed, index): an image depends neither on its batch nor on the device.

    Each call is the next draw of the same images. The numbers come from a counter (`noise.philox`) and are calculated
    on x's device, one operation for the whole batch.

    Args:
        indices: the images' positions in the full set of samples, >= 0.
    """

    def __init__(self, seed: int, indices: list[int] | range) -> None:
        self.key, self.draw = seed_of(seed), 0
        self._rows = torch.tensor(list(indices), dtype=torch.int64)

    def __call__(self, x: Tensor) -> Tensor:
        """N(0, I) of x's shape (B, ...), row i of the i-th image: float32 numbers, as float64 if x is."""
        self._rows = self._rows.to(x.device, non_blocking=True)
        numbers = normals(self.key, self._rows, self.draw, x[:1].numel())
        self.draw += 1
        return numbers.view(x.shape).to(torch.promote_types(x.dtype, torch.float32))
