"""Every metric against known values, corner cases, and properties."""

import math

import pytest
import torch

from diffusion.metrics.base import Features, Metric, Reference, Score, bootstrap, known, metric, mixed
from diffusion.metrics.classes import Consistency, Diversity, InceptionScore
from diffusion.metrics.distances import nearest, radii
from diffusion.metrics.frechet import Frechet, Gaussian, frechet_distance, influence
from diffusion.metrics.kid import KID, mmd
from diffusion.metrics.manifold import DensityCoverage, PrecisionRecall
from diffusion.metrics.memory import Memory


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(x, labels=None, logits=None):
    """Features that are also the pixels."""
    logits = torch.zeros(len(x), 2) if logits is None else logits
    return Features(x[:, None, None, :], x, logits, labels)


def modes(n, seed, kinds=(0, 1, 2, 3), noise=0.1):
    """Narrow, distant clusters in equal shares, and the cluster of each point."""
    y = torch.tensor(kinds).repeat(n // len(kinds))
    return features(4 * torch.eye(4)[y] + noise * normal(len(y), 4, seed=seed), y)


def test_metrics_are_found_by_name():
    keys = ["background", "nll", "consistency", "dc", "diversity", "frechet", "is", "kid", "memory", "pr", "swd"]
    keys.append("spectrum")
    assert list(known()) == keys
    assert isinstance(metric("KID"), KID) and isinstance(metric("pr"), PrecisionRecall)
    assert isinstance(metric("diffusion.metrics.memory.Memory"), Memory)
    with pytest.raises(ValueError, match="there is no metric 'diffusion.metrics.memory.None'"):
        metric("diffusion.metrics.memory.None")
    with pytest.raises(ValueError, match="no metric 'frehcet'; did you mean 'frechet'"):
        metric("frehcet")


def test_frechet_of_gaussians_is_its_closed_form():
    """|m|^2 + sum (s_i - 1)^2 for N(m, diag s^2) against N(0, 1), from samples."""
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, 2.0])
    x = normal(50_000, 3) - normal(50_000, 3).mean(0)
    exact = (torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))) @ x.T).T  # mean 0 and variance 1, exactly
    real, fake = features(exact), features(normal(50_000, 3, seed=1) * scale + shift)
    score = Frechet().scores(fake, real)["frechet"]
    low, high = bootstrap(score)
    assert score.value == pytest.approx(5 + 0 + 1 + 0.25, rel=0.01) and low < 6.25 < high and high - low < 0.3


def test_frechet_influence_is_the_derivative():
    """The derivative by the weight of one image, by a finite difference of weighted moments."""
    real, x = Gaussian.of(normal(200, 4)), normal(50, 4, seed=1).double() * 2 + 1
    pull = influence(real, x)

    def weighted(w):
        mean = w @ x
        return Gaussian(mean, (w * (x - mean).T) @ (x - mean) * 50 / 49)

    even, step = torch.full((50,), 1 / 50).double(), 1e-6
    for k in (0, 17):
        moved = (1 - step) * even + step * torch.eye(50)[k].double()
        slope = (frechet_distance(real, weighted(moved)) - frechet_distance(real, weighted(even))) / step
        assert float(pull[k]) == pytest.approx(slope, rel=0.05, abs=0.05)


def test_frechet_intervals_cover_the_mean():
    """The standard deviation over 60 sets matches the intervals, also with labels in fixed shares."""
    centres = 3 * normal(5, 8, seed=9)
    y = torch.arange(400) % 5

    def draw(seed):
        return features(centres[y] + normal(400, 8, seed=seed), y)

    real = draw(10**6)
    scores = [Frechet().scores(draw(s), real)["frechet"] for s in range(60)]
    between = torch.tensor([s.value for s in scores]).std()
    half = torch.tensor([(lambda e: e[1] - e[0])(bootstrap(s)) / (2 * 1.96) for s in scores[:10]]).mean()
    assert 0.7 < float(half / between) < 1.4
    blind = bootstrap(scores[0]._replace(strata=None))
    assert blind[1] - blind[0] > 1.5 * (bootstrap(scores[0])[1] - bootstrap(scores[0])[0])


def test_kid_is_zero_on_average_for_equal_distributions():
    """Over 100 pairs of sets the mean is 0 within 3 standard errors, and the stated errors match the spread."""
    found = [mmd(normal(120, 5, seed=2 * s), normal(120, 5, seed=2 * s + 1)) for s in range(100)]
    values = torch.tensor([v for v, _ in found])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 10
    errors = torch.stack([((len(g) - 1) * g.var(correction=0)).sqrt() for _, g in found])
    assert 0.9 < float(errors.mean() / values.std()) < 1.8


def test_kid_matches_the_sum_over_all_pairs():
    x, y = normal(41, 3).double(), normal(33, 3, seed=1).double() + 0.5
    k = lambda a, b: (a @ b.T / 3 + 1) ** 3  # noqa: E731
    xx, yy = (k(v, v).fill_diagonal_(0).sum() / (len(v) * (len(v) - 1)) for v in (x, y))
    expected = float(xx + yy - 2 * k(x, y).mean())
    value, left_out = mmd(x, y)
    assert value == pytest.approx(expected, rel=1e-12)
    assert left_out[0] == pytest.approx(mmd(torch.cat([x[g::16] for g in range(1, 16)]), torch.cat([y[g::16] for g in range(1, 16)]))[0], rel=1e-9)  # fmt: skip # noqa: E501


@pytest.mark.parametrize("n, D", [(500, 8), (300, 64)])
def test_metrics_match_torchmetrics(n, D):
    """On the same features. Its Frechet distance takes complex eigenvalues; its KID, one subset."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = normal(n, D).double() * 2, normal(n, D, seed=1).double() + 0.2
    a, b = Gaussian.of(x), Gaussian.of(y)
    assert frechet_distance(a, b) == pytest.approx(float(fid._compute_fid(a.mean, a.cov, b.mean, b.cov)), rel=1e-6)
    assert mmd(x, y)[0] == pytest.approx(float(kid.poly_mmd(x, y)), rel=1e-6)


def test_metrics_of_equal_sets_are_perfect():
    x = modes(80, 0)
    for kind in (PrecisionRecall, DensityCoverage):
        for name, score in kind().scores(x, x).items():
            assert score.value >= 1 if name == "density" else score.value == 1
    assert Frechet().scores(x, x)["frechet"].value == pytest.approx(0, abs=1e-9)
    assert all(s.value == pytest.approx(1) for s in Diversity().scores(x, x).values())


def test_a_dropped_mode_lowers_recall_and_noise_lowers_precision():
    real, same = modes(400, 0), modes(400, 1)
    dropped, noisy = modes(400, 2, kinds=(0, 1)), modes(400, 3, noise=2.0)
    pr, dc = PrecisionRecall().scores, DensityCoverage().scores
    good, few, bad = (pr(x, real) for x in (same, dropped, noisy))
    assert good["precision"].value > 0.85 and good["recall"].value > 0.85
    assert few["precision"].value > 0.85 and few["recall"].value == pytest.approx(0.5, abs=0.1)
    assert bad["precision"].value < 0.1
    good, few, bad = (dc(x, real) for x in (same, dropped, noisy))
    assert good["density"].value == pytest.approx(1, abs=0.15) and good["coverage"].value > 0.9
    assert few["coverage"].value == pytest.approx(0.5, abs=0.05) and few["density"].value > 0.85
    assert bad["density"].value < 0.1 and bad["coverage"].value < 0.2


def test_coverage_of_equal_distributions_matches_its_closed_form():
    """1 - C(2n - k - 1, n) / C(2n - 1, n): some sample is among the k nearest. The mean density is 1.

    Source: Naeem et al. 2020, arXiv:2002.09797, the expected value of coverage.
    """
    n, k = 200, 5
    found = [DensityCoverage().scores(features(normal(n, 6, seed=s)), features(normal(n, 6, seed=s + 500))) for s in range(30)]  # fmt: skip # noqa: E501
    expected = 1 - math.comb(2 * n - k - 1, n) / math.comb(2 * n - 1, n)
    coverage = torch.tensor([f["coverage"].value for f in found])
    assert float(coverage.mean()) == pytest.approx(expected, abs=4 * float(coverage.std()) / 30**0.5)
    assert float(torch.tensor([f["density"].value for f in found]).mean()) == pytest.approx(1, abs=0.05)


def test_an_outlier_raises_recall_but_not_coverage():
    """The samples are from one mode of four, except one outlier nearer to the other three."""
    real, few = modes(400, 0), modes(400, 2, kinds=(0,)).features
    fake = features(torch.cat([torch.tensor([[-100.0, 0, 0, 0]]), few[1:]]))
    assert PrecisionRecall().scores(features(few), real)["recall"].value == pytest.approx(0.25, abs=0.05)
    assert PrecisionRecall().scores(fake, real)["recall"].value > 0.95
    assert DensityCoverage().scores(fake, real)["coverage"].value == pytest.approx(0.25, abs=0.05)


def test_inception_score_matches_its_formula():
    """1 for a classifier that is always undecided, K for one that is certain of K classes in equal shares."""
    sure = 100 * torch.eye(5)[torch.arange(50) % 5]
    score = InceptionScore().scores
    x = torch.zeros(50, 1)
    assert score(features(x, logits=torch.zeros(50, 5)), None)["inception_score"].value == pytest.approx(1)
    assert score(features(x, logits=sure), None)["inception_score"].value == pytest.approx(5)
    two = 100 * torch.eye(5)[torch.arange(50) % 2]
    assert score(features(x, logits=two), None)["inception_score"].value == pytest.approx(2)


def test_consistency_and_its_interval():
    """A share of 90 % of 1,000 has the interval +- 1.96 sqrt(0.9 0.1 / 1000)."""
    y = torch.arange(1000) % 2
    logits = torch.eye(2)[torch.where(torch.arange(1000) % 10 == 3, 1 - y, y)]
    score = Consistency().scores(features(torch.zeros(1000, 1), y, logits), None)["consistency"]
    assert score.value == 0.9
    low, high = bootstrap(score._replace(strata=None))
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.09 / 1000), rel=0.1)


def test_metrics_state_why_they_do_not_apply():
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    real = Reference(*[features(normal(6, 2), y, torch.zeros(6, 3))] * 2)
    with pytest.raises(ValueError, match="consistency: needs samples with labels"):
        Consistency().figures(features(normal(6, 2)), real)
    with pytest.raises(ValueError, match="3 classes; this extractor has 1008"):
        Consistency().figures(features(normal(6, 2), y, torch.zeros(6, 1008)), real)
    with pytest.raises(ValueError, match="pr: needs more than 3 samples"):
        PrecisionRecall().figures(features(normal(3, 2)), real)
    with pytest.raises(ValueError, match="diversity: needs at least two samples of a class"):
        Diversity().figures(features(normal(3, 2), torch.arange(3)), real)


def test_diversity_is_a_ratio_of_distances():
    real = modes(400, 0)
    half = features(real.features / 2, real.labels)
    score = Diversity().scores(half, real)["diversity_features"]
    assert score.value == pytest.approx(0.5) and float(score.terms.mean()) == pytest.approx(0.5)
    still = features(4 * torch.eye(4)[real.labels], real.labels)
    assert Diversity().scores(still, real)["diversity_pixels"].value == 0


def test_nearest_neighbours_are_exact():
    x, y = normal(700, 6), normal(900, 6, seed=1)
    d = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distance, index = nearest(x, y, size=100)
    torch.testing.assert_close(distance, d.min(1).values)
    assert torch.equal(index, d.argmin(1)) and float(nearest(y[:50], y)[0].max()) == 0
    own = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(radii(x, 3), own.sort(dim=1).values[:, 3])


def test_memory_alert_needs_many_close_copies():
    """Copies with little noise trigger it; new images, a fifth of copies and more distant copies do not."""
    train, test, new = (modes(n, s, noise=1.0) for n, s in ((400, 0), (200, 1), (400, 2)))
    real = Reference(train, test)
    copied = features(train.features + 0.02 * normal(400, 4), train.labels)
    few = features(torch.cat([new.features[:320], copied.features[320:]]), train.labels)

    def told(x):
        found = {f.name: f for f in Memory().figures(x, real)}
        return found, any(f.alert for f in found.values())

    found, alert = told(copied)
    assert alert and found["near_pixels"].value > 0.9 and found["nearest_features"].value < 0.2
    found, alert = told(new)
    assert not alert and found["nearest_pixels"].value == pytest.approx(1, abs=0.15)
    assert found["near_features"].value == pytest.approx(0.05, abs=0.05)
    assert not told(few)[1] and not told(features(3 * new.features, new.labels))[1]


def test_figures_match_the_test_set_at_equal_numbers():
    class Count(Metric):
        key, better = "count", {"count": "high"}

        def scores(self, images, real):
            return {"count": Score(float(len(images)), torch.ones(len(images)))}

    real = Reference(modes(400, 0), modes(80, 1))
    figure = Count().figures(modes(400, 2), real)[0]
    assert (figure.value, figure.floor, figure.matched, figure.m) == (400, 80, 80, 80)
    figure = Count().figures(modes(40, 2), real)[0]
    assert (figure.value, figure.floor, figure.matched, figure.m) == (40, 40, 40, 40)
    del Count


def test_every_part_of_a_mixed_order_has_all_classes_in_proportion():
    labels = torch.cat([torch.zeros(60), torch.ones(30), torch.full((10,), 2)]).long()
    order = mixed(labels)
    assert sorted(order.tolist()) == list(range(100)) and order.tolist() != mixed(labels, seed=1).tolist()
    for part in labels[order].split(20):
        assert [int((part == k).sum()) for k in range(3)] == [12, 6, 2]
