"""Flow maps: a network that jumps from one noise level to another, for sampling in 1 to 4 evaluations."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffusion.denoiser import Condition, Denoiser
from diffusion.loss.dispersive import Dispersive
from diffusion.loss.intervals import ECT, Clean, End, Gap, levels
from diffusion.loss.objective import Noised, Objective, Terms, uniform
from diffusion.loss.pairing import Independent, Pairing
from diffusion.loss.paths import FromData, Path, known
from diffusion.loss.weights import MSE, Distance, Weight
from diffusion.noise.level import Level
from diffusion.noise.times import LogNormal, Times

Shape = Literal["norm", "huber", "distance"]
HUBER = 0.00054  # c of the pseudo-Huber loss, in units of sqrt(numbers of an image)


class FlowMap(Objective):
    """A flow map X_{t->r} learned from itself: from t it must lead where it leads from a level s in between.

        x_0* = (1 - c) x_0 + c stopgrad[x_0_hat(x_s, s -> r)],    c = (1 - rho_r / rho_s) / (1 - rho_r / rho_t)
        L = E |x_0_hat(x_t, t -> r) - x_0*| / (rho_t - rho_s),    rho = sigma / alpha,  t > s >= r

    x_s and x_t have the same x_0 and eps, which are the data's or a teacher's (`path`). By choice of the three parts:

        end       gap      path                      method
        Clean     ECT      FromData                  consistency tuning (ECT), the default; iCT with Even
        Clean     Even     FromTeacher               consistency distillation
        Strides   Halfway  FromTeacher(both=True)    progressive distillation
        Strides   Halfway  FromSelf                  shortcut models
        Anywhere  Even     FromData                  MeanFlow, discretised
        any       Whole    any                       the denoiser: `Objective`

    Any end but Clean, and FromSelf, need a network with `second_clock`. Where r = t, x_0* is x_0. All passes have the
    same dropout, and are float32 where the weights are, whatever the trainer's precision: their difference is small.
    The weights of the second pass are the live ones, not their average.
    Source: Geng et al. 2024, arXiv:2406.14548; Song & Dhariwal 2023, arXiv:2310.14189; Kim et al. 2024,
    arXiv:2310.02279; Boffi et al. 2024, arXiv:2406.07507.

    Args:
        end: law of the level r.
        gap: the level s, by the progress of training.
        path: where x_s comes from.
        shape: "norm" is the Euclidean norm of an image's error; "huber" is sqrt(norm^2 + k^2) - k with
            k = .00054 sqrt(numbers of an image) (iCT); "distance" is the mean over pixels of `distance`, as in
            Objective.
        weight: weight of each noise level on the squared error, by default 1 / (rho_t - rho_s)^2.
        times, distance, drop, offset, pairing, self_condition: see Objective.
        dispersive: see Objective; of the pass from t to r, the only one that has a gradient.
    Raises:
        ValueError: an unknown shape, an argument that Objective refuses, or no weight although r = t may occur.
    """

    advances = True

    def __init__(
        self,
        times: Times = LogNormal(-1.1, 2.0),
        end: End = Clean(),
        gap: Gap = ECT(),
        path: Path = FromData(),
        shape: Shape = "norm",
        weight: Weight | None = None,
        distance: Distance = MSE(),
        drop: float = 0.1,
        offset: float = 0.0,
        pairing: Pairing = Independent(),
        self_condition: float = 0.5,
        dispersive: Dispersive | None = None,
    ) -> None:
        super().__init__(times, weight, distance, drop, 0.0, offset, pairing, self_condition, dispersive)
        if shape not in Shape.__args__:
            raise ValueError(f"FlowMap: shape must be one of {', '.join(Shape.__args__)}, got {shape!r}")
        if weight is None and getattr(end, "share", 1.0) < 1:
            raise ValueError(
                f"FlowMap: {type(end).__name__} has r = t with probability {1 - end.share:g}, where "
                "1 / (rho_t - rho_s) is infinite; set a weight, e.g. Unit, or share 1"
            )
        self.end, self.gap, self.path, self.shape = end, gap, path, shape

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Condition = Condition(),
        noise: Callable[[Tensor], Tensor] = torch.randn_like,
        uniform: Callable[[int], Tensor] = uniform,
        progress: float = 0.0,
    ) -> Terms:
        """The loss of a batch x0 (B, C, H, W); see Objective.

        Raises:
            ValueError: the end or the path needs a second clock, which the network does not have.
        """
        needy = [type(part).__name__ for part in (self.end, self.path) if part.second_clock]
        if needy and not denoiser.second_clock:
            raise ValueError(
                f"FlowMap: {needy[0]} needs a network that receives the level of the end; "
                "set model.net.second_clock: true"
            )
        with torch.autocast(x0.device.type, enabled=False):
            batch = self.noised(denoiser, x0, cond, noise, uniform)
            r = levels(self.end(batch.level.t, uniform), denoiser.schedule)
            s = levels(self.gap(batch.level, r, denoiser.schedule, progress).maximum(r.t), denoiser.schedule)
            goal = self.goal(denoiser, batch, s, r)
            pred, hidden = self.predicted(denoiser, batch, r)
        return self.terms(denoiser, batch, pred, self.cost(denoiser, batch, pred.x0 - goal, s), hidden)

    @torch.no_grad()
    def goal(self, denoiser: Denoiser, batch: Noised, s: Level, r: Level) -> Tensor:
        """x_0*, (B, C, H, W), for levels s and r (B,) in float64; torch's random state is left as it was."""
        device = batch.x.device
        share = second_leg(batch.level, s, r)
        s = Level(*(torch.where(share > 0, a, b) for a, b in zip(s, batch.level, strict=True)))  # never clean
        there = s.like(batch.x)
        x0, eps = self.first(denoiser, batch, s)
        still = (r.t == batch.level.t).to(x0.device, non_blocking=True).reshape(-1, 1, 1, 1)
        x0 = torch.where(still, batch.x0, x0)
        if not bool((share > 0).any()):
            return x0
        leads = self.path.second(denoiser)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            onward = leads(there.alpha * x0 + there.sigma * eps, there, known(leads, batch.cond), r).x0
        return torch.lerp(x0, onward, share.to(x0, non_blocking=True).reshape(-1, 1, 1, 1))

    def first(self, denoiser: Denoiser, batch: Noised, s: Level) -> tuple[Tensor, Tensor]:
        """The path's first leg, with the dropout of the other passes."""
        device = batch.x.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return self.path.first(denoiser, batch, s)

    def cost(self, denoiser: Denoiser, batch: Noised, error: Tensor, s: Level) -> Tensor:
        """The weighted cost of each image's error, (B,)."""
        if self.weight is None:
            factor = 1 / (batch.level.ratio - s.ratio)
            factor = factor.to(error, non_blocking=True).reshape(-1, 1, 1, 1)
        else:
            factor = self.weight(batch.t, denoiser.target, denoiser.schedule).sqrt()
        if self.shape == "distance":
            return self.distance(factor * error).flatten(1).mean(1)
        factor, square = factor.reshape(-1), error.square().flatten(1).sum(1)
        least = HUBER**2 * error[0].numel()
        norm = (square + least).sqrt() - least**0.5 if self.shape == "huber" else (square + 1e-12).sqrt()
        return factor * norm


def second_leg(t: Level, s: Level, r: Level) -> Tensor:
    """c (B,), the second leg's share in x_0*: (1 - rho_r / rho_s) / (1 - rho_r / rho_t), and 0 where s = r."""
    kept = [1 - (r.sigma * v.alpha) / (r.alpha * v.sigma) for v in (s, t)]  # 1 - rho_r / rho, alpha = 0 included
    return torch.where(s.t > r.t, kept[0] / kept[1], 0.0)
