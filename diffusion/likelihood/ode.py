"""An adaptive solver of ordinary differential equations; every row of a batch has its own step size."""

from collections.abc import Callable

import torch
from torch import Tensor

# Dormand & Prince 1980, J. Comput. Appl. Math. 6(1), tab. 2: nodes, stages, and the difference of orders 5 and 4.
C = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def rk45(
    f: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    first: float = 0.1,
    limit: int = 10_000,
) -> Tensor:
    """y(1) of dy/du = f(u, y) from y(0), by Dormand and Prince's method of order 5.

    A row's step size depends on that row alone, so that results do not depend on the composition of the batch.

    Args:
        f: (u (B,) float64 on the CPU, y (B, N)) -> dy/du (B, N).
        y: (B, N), the initial value.
        rtol, atol: a step's error, relative to atol + rtol |y| and root mean square over a row, is at most 1.
        first: length of the first trial step, in (0, 1].
        limit: maximum number of steps.
    Raises:
        RuntimeError: `limit` steps were not enough, or the derivative is not finite.
    """
    u = torch.zeros(len(y), dtype=torch.float64)
    h = torch.full_like(u, first)
    k0 = f(u, y)
    for _ in range(limit):
        h = torch.minimum(h, 1 - u)
        step = h.to(y)[:, None]
        k = [k0]
        for c, row in zip(C[1:], A[1:], strict=True):
            to = y + step * sum(a * v for a, v in zip(row, k, strict=True) if a)
            k.append(f(u + c * h, to))
        error = step * sum(e * v for e, v in zip(E, k, strict=True) if e)
        size = atol + rtol * torch.maximum(y.abs(), to.abs())
        worst = (error / size).square().mean(1).sqrt().double().cpu()  # <= 1 is accepted
        if not worst.isfinite().all():
            raise RuntimeError("rk45: the derivative is not finite")
        good = worst <= 1
        u = torch.where(good, u + h, u)
        if bool((u >= 1 - 1e-12).all()):
            return torch.where(good.to(y.device)[:, None], to, y)
        y = torch.where(good.to(y.device)[:, None], to, y)
        k0 = torch.where(good.to(y.device)[:, None], k[-1], k0)  # first same as last: reuse the last stage
        h = h * (0.9 * worst.clamp(min=1e-10) ** -0.2).clamp(0.2, 10.0)
    raise RuntimeError(f"rk45: {limit} steps were not enough; raise rtol and atol")
