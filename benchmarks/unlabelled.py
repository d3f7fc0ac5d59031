"""Features that were learned from digits without their labels: what they know, and what distances in them notice.

    python -m benchmarks.unlabelled [--steps 1000] [--extractors untrained VICReg ...]

The probe is a linear (ridge) classifier of the features, fitted to the training labels, and 5-NN the vote of the five
nearest training digits; both in per cent of the 360 test digits. The rank is the exponential of the entropy of the
features' covariance spectrum: 1 is collapse. The other columns are distances of damaged test digits to the training
digits, in units of the distance of the test digits as they are. Damages: a Gaussian blur of s pixels, noise of standard
deviation s of the range [-1, 1], and the classes 0 to k - 1 left out.
"""

from argparse import ArgumentParser
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.data import Digits
from diffusion.metrics.base import Features
from diffusion.metrics.features import FeatureNet, train_classifier
from diffusion.metrics.frechet import Gaussian, frechet_distance
from diffusion.metrics.spectrum import Spectrum
from diffusion.metrics.swd import SWD
from diffusion.support.console import machine, rows_of
from diffusion.training.systems.vicreg import VICReg, terms

BATCH, EXPANDED = 128, 256
BLUR, NOISE, DROPPED = (0.4, 0.5, 0.7, 1.0), (0.05, 0.1, 0.2, 0.4), (1, 2, 3, 5)


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="of each training without labels")
    parser.add_argument("--extractors", nargs="+", default=list(EXTRACTORS), choices=list(EXTRACTORS))
    args = parser.parse_args(argv)
    (x, y), (unseen, its) = ((v.float() / 127.5 - 1, y) for v, y in map(Digits().arrays, ("train", "test")))
    damaged = list(damages(unseen, its))
    sets = [unseen, *(v for _, v in damaged)]
    rows = [("features", "probe", "5-NN", "rank", *(name for name, _ in damaged))]
    for name in args.extractors:
        features = EXTRACTORS[name](x, y, args.steps)
        found, theirs = features(x), features(unseen)
        known = (found, y, theirs, its)
        distances = [frechet_distance(Gaussian.of(found), Gaussian.of(features(v))) for v in sets]
        accuracies = (f"{share(*known):.1%}" for share in (probe, neighbours))
        rows.append((name, *accuracies, f"{rank(found):.1f}", *times(distances)))
        print(*rows[-1], flush=True)
    real = Features(x, x, x, None)
    for metric in (SWD(), Spectrum()):
        scores = [metric.scores(Features(v, v, v, None), real) for v in sets]
        for name in metric.better:
            values = [score[name].value for score in scores]
            told = times(values) if name != "spectrum_high" else [f"{v:.1f} dB" for v in values[1:]]
            rows.append((name, "", "", "", *told))
    print(f"{args.steps} steps of {BATCH} digits, {machine(torch.device('cpu'))}\n{rows_of(rows)}")
    return 0


# --- features -----------------------------------------------------------------------------------------------


def of(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The features of a trained network."""
    net = net.eval().requires_grad_(False)
    return lambda x: torch.cat([net.features(part) for part in x.split(500)])


def pixels(x: Tensor, y: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    return lambda v: v.flatten(1)


def untrained(x: Tensor, y: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    """A random network whose normalisation layers have seen the images."""
    torch.manual_seed(0)
    net = FeatureNet(num_classes=0).train()
    with torch.no_grad():
        for _ in range(50):
            net.features(x[torch.randperm(len(x))[:BATCH]])
    return of(net)


def classifier(x: Tensor, y: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    return of(train_classifier(x, y))


def taught(loss: Callable[[Tensor, Tensor, nn.Module], Tensor]) -> Callable:
    """Features trained by a loss of the embeddings of two crops, (B, E) each, and a predictor of one by the other."""

    def train(x: Tensor, y: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
        torch.manual_seed(0)
        model = VICReg(FeatureNet(num_classes=0), EXPANDED).train()
        predictor = nn.Sequential(nn.Linear(EXPANDED, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, EXPANDED))
        weights = [*model.parameters(), *predictor.parameters()]
        optimizer = torch.optim.AdamW(weights, model.lr, weight_decay=model.weight_decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, model.lr, total_steps=steps + 1, pct_start=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(*model.embeddings(x[torch.randperm(len(x))[:BATCH]]), predictor).backward()
            optimizer.step()
            cycle.step()
        return of(model.net)

    return train


def vicreg(a: Tensor, b: Tensor, predictor: nn.Module) -> Tensor:
    return sum(w * term for w, term in zip((25, 25, 1), terms(a, b), strict=True))


def simsiam(a: Tensor, b: Tensor, predictor: nn.Module) -> Tensor:
    """Source: Chen & He 2021, arXiv:2011.10566, eq. 4."""
    pairs = (predictor(a), b), (predictor(b), a)
    return -sum(F.cosine_similarity(p, z.detach()).mean() for p, z in pairs) / 2


def discrimination(a: Tensor, b: Tensor, predictor: nn.Module) -> Tensor:
    """Source: Chen et al. 2020, arXiv:2002.05709, eq. 1, temperature 0.2."""
    z = F.normalize(torch.cat([a, b]))
    alike = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
    return F.cross_entropy(alike, torch.arange(len(z)).roll(len(a)))


EXTRACTORS = {
    "pixels": pixels,
    "untrained": untrained,
    "classifier": classifier,
    "VICReg": taught(vicreg),
    "SimSiam": taught(simsiam),
    "SimCLR": taught(discrimination),
}


# --- figures ------------------------------------------------------------------------------------------------


def probe(x: Tensor, y: Tensor, unseen: Tensor, its: Tensor) -> float:
    """The accuracy of a ridge classifier of features (N, D) on unseen ones."""
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    a, b = (F.pad((v - mean) / std, (0, 1), value=1.0).double() for v in (x, unseen))
    weights = torch.linalg.solve(a.T @ a + torch.eye(a.shape[1]).double(), a.T @ F.one_hot(y).double())
    return float(((b @ weights).argmax(1) == its).float().mean())


def neighbours(x: Tensor, y: Tensor, unseen: Tensor, its: Tensor, k: int = 5) -> float:
    """The accuracy of the vote of the k nearest features."""
    near = torch.cdist(unseen, x).topk(k, largest=False).indices
    return float((y[near].mode(1).values == its).float().mean())


def rank(x: Tensor) -> float:
    """The effective rank of features (N, D). Source: Roy & Vetterli 2007, EUSIPCO, eq. 4, of the covariance."""
    share = torch.linalg.eigvalsh(torch.cov(x.T.double())).clamp(min=1e-12)
    share = share / share.sum()
    return float((-(share * share.log()).sum()).exp())


def damages(x: Tensor, y: Tensor):
    """The damaged images (N, C, H, W), each with its name."""
    for s in BLUR:
        yield f"blur {s:g}", gaussian(x, s)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for s in NOISE:
        yield f"noise {s:g}", (x + s * noise).clamp(-1, 1)
    for k in DROPPED:
        yield f"without {k}", x[y >= k]


def gaussian(x: Tensor, s: float, reach: int = 4) -> Tensor:
    """Images (N, C, H, W) blurred by a Gaussian of s pixels."""
    weight = torch.exp(-((torch.arange(-reach, reach + 1) / s) ** 2) / 2)
    weight = (weight / weight.sum()).view(1, 1, 1, -1)
    wide = F.pad(x.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, weight), weight.mT).view_as(x)


def times(values: list[float]) -> list[str]:
    """All values after the first in units of it."""
    return [f"{v / values[0]:.3g}" for v in values[1:]]


if __name__ == "__main__":
    raise SystemExit(main())
