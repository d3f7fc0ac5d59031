"""Philox4x32-10, a counter-based generator: random numbers as a function of a key and a place, on any device.

Ten rounds turn a counter of four 32-bit words into four words that pass the usual batteries of tests. There is no
state, so any number can be calculated alone, in any order, on any device. Words are kept in int64: their products are
exact modulo 2^64, hence the same integers on CPUs and GPUs.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC'11, sec. 3.3; known answers of its library
Random123 in tests/noise/test_philox.py.
"""

import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: int) -> Words:
    """Four random words of each counter.

    Args:
        counter: four int64 tensors of words, of shapes that broadcast to one.
        key: 64 bits.
    """
    a, b, c, d = counter
    low, high = key & WORD, key >> 32 & WORD
    for _ in range(ROUNDS):
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a = ((second >> 32) ^ b).bitwise_xor_(low).bitwise_and_(WORD)
        c = ((first >> 32) ^ d).bitwise_xor_(high).bitwise_and_(WORD)
        b, d = second, first  # the low words; what is above them never reaches a word
        low, high = low + WEYL[0] & WORD, high + WEYL[1] & WORD
    return a, b & WORD, c, d & WORD


def normals(key: int, rows: Tensor, draw: int, size: int) -> Tensor:
    """N(0, 1) numbers (len(rows), size), float32; each row depends only on the key, its number and the draw.

        (u, v) = two words;  sqrt(-2 ln u) (cos, sin)(2 pi v),  u and v in (0, 1) by (word + 1/2) / 2^32

    The integers are the same on every device; logarithm and angle are calculated in float64, so the float32 numbers
    differ by rounding at most. Source: Box and Muller 1958.

    Args:
        key: 64 bits.
        rows: (B,) int64, >= 0, on the device of the numbers.
        draw: which of the successive draws of the same rows, 0 .. 2^32 - 1.
    """
    blocks = torch.arange(-(-size // 4), device=rows.device)
    row, high = (rows & WORD)[:, None], (rows >> 32)[:, None]
    words = philox((blocks, blocks.new_full((1,), draw), row, high), key)
    u, v, s, t = (word.double().add_(0.5).mul_(2.0**-32) for word in words)
    numbers = torch.empty(*u.shape, 4, device=rows.device)
    for k, (radius, angle) in enumerate(((u, v), (s, t))):
        radius, angle = radius.log_().mul_(-2).sqrt_(), angle.mul_(2 * math.pi)
        numbers[..., 2 * k] = radius * angle.cos()
        numbers[..., 2 * k + 1] = radius.mul_(angle.sin_())
    return numbers.flatten(1)[:, :size]
