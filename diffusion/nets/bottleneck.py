"""Bottlenecks of autoencoders: the latent's distribution (KL) or its codebook (VQ)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

BITS = 1 / math.log(2)  # per nat


class Coded(NamedTuple):
    """Latents in training, and what they cost.

    Attributes:
        z: latents (B, latent, h, w), which the decoder receives.
        loss: weighted cost of each image (B,), in units of a sum over the numbers of an image.
        bits: information in the latent of each image (B,): the KL divergence, or log2 of the codes' perplexity.
    """

    z: Tensor
    loss: Tensor
    bits: Tensor


class Bottleneck(nn.Module, ABC):
    """What is between encoder and decoder."""

    @abstractmethod
    def outputs(self, latent: int) -> int:
        """Number of channels that the encoder outputs for latents of `latent` channels."""

    @abstractmethod
    def forward(self, h: Tensor, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Coded:
        """The latents of the encoder's output h (B, outputs, h, w) in training.

        Args:
            noise: returns N(0, I) of a tensor's shape.
        """

    @abstractmethod
    def mode(self, h: Tensor) -> Tensor:
        """The latents (B, latent, h, w) of the encoder's output without noise, which diffusion works on."""

    def snap(self, z: Tensor) -> Tensor:
        """What the decoder receives for latents z, which may be generated ones."""
        return z

    def made_for(self, latent: int) -> None:
        """Allocate what depends on the number of channels of the latents; nothing by default."""


class Gaussian(Bottleneck):
    """The latent is a draw of N(mean, std^2), mean and log std^2 being the encoder's output, near N(0, I).

        loss = weight KL,    KL = sum (mean^2 + std^2 - 1 - log std^2) / 2

    Linear networks with the loss |x - decoded|^2 + weight KL, on Gaussian data with the eigenvalues lam, have at the
    optimum the error min(lam, weight / 2) and the KL divergence max(0, log(2 lam / weight) / 2) in each eigenvector.
    Source: Kingma and Welling 2014, arXiv:1312.6114, app. B; the weight: Rombach et al. 2022, arXiv:2112.10752, app. G.

    Args:
        weight: of the KL divergence (nats per image) against the error summed over an image's numbers, >= 0.
    Raises:
        ValueError: a negative weight.
    """

    def __init__(self, weight: float = 1e-6) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"Gaussian: weight must be at least 0, got {weight}")
        self.weight = float(weight)

    def outputs(self, latent: int) -> int:
        return 2 * latent

    def forward(self, h: Tensor, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Coded:
        mean, log_var = h.chunk(2, 1)
        log_var = log_var.clamp(-30, 20)
        z = mean + (log_var / 2).exp() * noise(mean)
        kl = (mean.square() + log_var.exp() - 1 - log_var).sum((1, 2, 3)) / 2
        return Coded(z, self.weight * kl, kl.detach() * BITS)

    def mode(self, h: Tensor) -> Tensor:
        return h.chunk(2, 1)[0]


class Codebook(Bottleneck):
    """Each vector of the latent is replaced by the nearest of K codes; gradients pass straight through.

        loss = beta sum |h - code|^2,    count <- lerp(n, count, decay),    code = average of its vectors, decayed alike

    The codes follow the encoder without gradients. A code whose share of the vectors falls below `dead` / K restarts at
    a random vector of the batch, as every code does that the first batch does not use. Diffusion works on vectors
    before replacement, and the decoder replaces what it receives.
    Source: van den Oord et al. 2017, arXiv:1711.00937, eq. 3 and app. A.1; restarts: Dhariwal et al. 2020,
    arXiv:2005.00341, sec. 3.1; latents before replacement: Rombach et al. 2022, arXiv:2112.10752, sec. 3.1.

    Args:
        codes: K, >= 2.
        beta: weight of the encoder's distance from its codes, >= 0.
        decay: of the averages, in [0, 1).
        dead: share below which a code restarts, in units of the mean share 1 / K, in [0, 1); 0 never restarts.
    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, codes: int = 512, beta: float = 0.25, decay: float = 0.99, dead: float = 0.02) -> None:
        super().__init__()
        if codes < 2 or beta < 0 or not 0 <= decay < 1 or not 0 <= dead < 1:
            raise ValueError(
                "Codebook: codes must be at least 2, beta at least 0, decay and dead in [0, 1); "
                f"got {codes}, {beta}, {decay} and {dead}"
            )
        self.codes, self.beta, self.decay, self.dead = codes, beta, decay, dead

    def made_for(self, latent: int) -> None:
        self.register_buffer("book", torch.randn(self.codes, latent))  # (K, latent)
        self.register_buffer("counts", torch.zeros(self.codes))  # averaged vectors per batch
        self.register_buffer("sums", torch.zeros(self.codes, latent))

    def outputs(self, latent: int) -> int:
        return latent

    def nearest(self, h: Tensor) -> Tensor:
        """The numbers of the nearest codes (B, h, w)."""
        rows = h.movedim(1, -1)
        return (self.book.square().sum(1) - 2 * rows @ self.book.T).argmin(-1)

    def snap(self, z: Tensor) -> Tensor:
        return self.book[self.nearest(z)].movedim(-1, 1).to(z.dtype)

    def mode(self, h: Tensor) -> Tensor:
        return h

    def forward(self, h: Tensor, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Coded:
        index = self.nearest(h.detach())
        code = self.book[index].movedim(-1, 1)
        loss = self.beta * (h - code).square().sum((1, 2, 3))
        flat = index.flatten()
        n = h.new_zeros(self.codes).index_add_(0, flat, h.new_ones(len(flat)))
        if self.training:
            self.follow(h.detach().movedim(1, -1).flatten(0, -2), flat, n, noise)
        share = n / n.sum()
        bits = -(share * share.clamp(min=1e-12).log2()).sum() * index[0].numel()
        return Coded(h + (code - h).detach(), loss, bits.expand(len(h)))

    @torch.no_grad()
    def follow(self, rows: Tensor, index: Tensor, n: Tensor, noise: Callable[[Tensor], Tensor]) -> None:
        """Move the codes towards the batch's vectors (N, latent) with code numbers (N,), and restart dead ones.

        The statistics are those of all processes; vectors for restarts are those of the first one, whose buffers
        Lightning's strategies broadcast.
        """
        sums = torch.zeros_like(self.sums).index_add_(0, index, rows)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for value in (n, sums):
                torch.distributed.all_reduce(value)
        self.counts.lerp_(n, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        least = self.dead * self.counts.mean()
        # Positions in [0, N) without synchronising: the normal CDF of normal numbers is uniform.
        at = (torch.special.ndtr(noise(self.counts)) * len(rows)).long().clamp(max=len(rows) - 1)
        fresh = rows[at]
        dead = (self.counts <= least) & (self.dead > 0)
        mean = self.counts.mean()
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead[:, None], mean * fresh, self.sums))
        # An unused code of a book without restarts stays where it is.
        used = self.counts > 0
        self.book.copy_(torch.where(used[:, None], self.sums / self.counts.clamp(min=1e-12)[:, None], self.book))

    def unused(self) -> Tensor:
        """The number of codes whose share is below `dead` / K, or 0.01 / K without restarts."""
        return (self.counts < (self.dead or 0.01) * self.counts.mean()).sum()
