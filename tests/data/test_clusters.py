"""k-means: partitions with a known answer, the sum of squares, seeds, empty clusters, reduced images."""

from itertools import combinations

import pytest
import torch

from diffusion.data import clusters
from diffusion.data.clusters import Assigned, assigned, kmeans, moved, nearest, reduced, seeded


def squares(x, centres):
    """The sum that k-means minimises, by direct differences."""
    apart = (x.double().flatten(1)[:, None] - centres.flatten(1)).square().sum(2)
    return float(apart.min(1).values.sum())


def blobs(k=7, each=30, seed=0):
    """Images in well separated groups, uint8, in a mixed order, and their groups."""
    random = torch.Generator().manual_seed(seed)
    middle = torch.randperm(25, generator=random)[:k, None, None, None] * 10
    y = torch.arange(k).repeat_interleave(each)[torch.randperm(k * each, generator=random)]
    return (middle[y] + torch.randint(0, 3, (k * each, 2, 4, 4), generator=random)).to(torch.uint8), y


def same_partition(a, b):
    """Whether two labellings differ in the names of the clusters alone."""
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len({p[0] for p in pairs}) == len({p[1] for p in pairs})


def test_separated_groups_are_found_exactly():
    x, y = blobs()
    centres = kmeans(x, 7)
    assert centres.shape == (7, 2, 4, 4) and centres.dtype == torch.float64
    found = nearest(x, centres)
    assert same_partition(found, y)
    for k in range(7):
        torch.testing.assert_close(centres[k], x[found == k].double().mean(0))


def test_the_optimum_of_points_on_a_line():
    """Clusters on a line are intervals, so the best of all partitions is found by trying all borders."""
    x = torch.tensor([0, 1, 4, 9, 10, 11, 17, 30, 31, 35, 36, 60], dtype=torch.float32)[:, None]
    for k in (2, 3, 4):
        best = min(
            sum(float((p - p.mean()).square().sum()) for p in x.tensor_split(cuts))
            for cuts in combinations(range(1, len(x)), k - 1)
        )
        assert min(squares(x, kmeans(x, k, seed)) for seed in range(10)) == pytest.approx(best)


def test_no_pass_raises_the_sum_of_squares():
    x = torch.rand(400, 1, 5, 5, generator=torch.Generator().manual_seed(3))
    sums = [squares(x, kmeans(x, 12, seed=1, most=n)) for n in range(1, 40)]
    assert all(b <= a * (1 + 1e-12) for a, b in zip(sums, sums[1:], strict=False)) and sums[-1] < 0.9 * sums[0]
    assert sums[-1] == sums[-2]  # nothing changes any more
    centres = kmeans(x, 12, seed=1)
    torch.testing.assert_close(centres, torch.stack([x[nearest(x, centres) == k].double().mean(0) for k in range(12)]))


def test_labels_are_of_the_nearest_centre_and_parts_do_not_matter(monkeypatch):
    random = torch.Generator().manual_seed(5)
    x, centres = (torch.rand(n, 3, 4, 4, generator=random) for n in (300, 20))
    direct = (x.double()[:, None] - centres.double()).square().flatten(2).sum(2).argmin(1)
    assert torch.equal(nearest(x, centres.double()), direct)
    whole = kmeans(x, 9)
    monkeypatch.setattr(clusters, "NUMBERS", 100)
    assert torch.equal(nearest(x, centres.double()), direct)
    torch.testing.assert_close(kmeans(x, 9), whole)


def test_the_largest_cluster_comes_first_and_a_seed_determines_all():
    x, _ = blobs(k=3, each=10)
    x = torch.cat([x, x[:1].repeat(50, 1, 1, 1)])
    counts = nearest(x, kmeans(x, 3)).bincount()
    assert counts.tolist() == sorted(counts.tolist(), reverse=True) and counts[0] == 60
    noise = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kmeans(noise, 8, seed=4), kmeans(noise, 8, seed=4))
    assert not torch.equal(kmeans(noise, 8, seed=4), kmeans(noise, 8, seed=5))


def test_the_order_of_separated_images_does_not_matter():
    x, _ = blobs()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    first, second = nearest(x, kmeans(x, 7)), nearest(x, kmeans(x[order], 7))
    assert same_partition(first, second)


def test_the_number_of_threads_does_not_matter():
    x, _ = blobs(k=9, each=300)  # integers, whose sums are exact
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(kmeans(x, 9, most=5))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_an_empty_cluster_takes_the_farthest_row_that_is_not_alone():
    rows = torch.tensor([[0.0], [1.0], [8.0], [100.0]])
    centres = torch.tensor([[0.0], [60.0], [-9.0], [-99.0]], dtype=torch.float64)
    found = Assigned(torch.tensor([0, 0, 0, 1]), torch.tensor([[9.0], [100.0], [0.0], [0.0]]).double(),
                     torch.tensor([3, 1, 0, 0]))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(assigned(rows, centres), found, strict=True))
    after = moved(rows, centres, found)  # 100 is farthest, but alone
    assert after.flatten().tolist() == [0.0, 100.0, 8.0, 1.0]


@pytest.mark.parametrize("k", [2, 5, 19, 20])
def test_no_cluster_is_empty(k):
    """Also where copies leave few different images, and with as many clusters as there are of those."""
    random = torch.Generator().manual_seed(k)
    different = torch.randint(0, 256, (20, 1, 3, 3), generator=random, dtype=torch.uint8)
    x = different[torch.cat([torch.arange(20), torch.zeros(300, dtype=torch.int64)])]
    for seed in range(5):
        centres = kmeans(x, k, seed, most=3)
        assert nearest(x, centres).bincount(minlength=k).min() > 0
    if k == 20:
        assert squares(x, centres) == 0


def test_first_centres_are_drawn_by_squared_distance():
    """From 0 with 98 copies, 1 and 3: the second centre is 3 nine times as often as 1, and never a copy."""
    rows = torch.tensor([0.0] * 98 + [1.0, 3.0])[:, None]
    drawn = [seeded(rows, 2, torch.Generator().manual_seed(seed)).flatten().tolist() for seed in range(500)]
    of_zero = [second for first, second in drawn if first == 0]
    assert len(of_zero) > 470 and 0.0 not in of_zero
    assert 0.9 - 0.055 < of_zero.count(3.0) / len(of_zero) < 0.9 + 0.055  # 4 standard deviations


def test_what_is_refused():
    x, _ = blobs(k=2, each=3)
    with pytest.raises(ValueError, match="wanted at least 2, got 1"):
        kmeans(x, 1)
    with pytest.raises(ValueError, match="wanted 5, and the 40 images have 4 different values; choose at most 4"):
        kmeans(torch.arange(40.0)[:, None] // 10, 5)


def test_large_images_are_reduced_to_means_of_blocks():
    x = torch.randint(0, 256, (5, 3, 40, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    small = reduced(x)  # blocks of 3x3; 2x2 in the last column, 1x... in the last row
    assert small.shape == (5, 3, 14, 7) and small.dtype == torch.float32
    torch.testing.assert_close(small[2, 1, 4, 3], x[2, 1, 12:15, 9:12].float().mean())
    torch.testing.assert_close(small[2, 1, 13, 6], x[2, 1, 39:, 18:].float().mean())
    assert reduced(x[..., :16, :16]).shape == (5, 3, 16, 16) and reduced(x[..., :16, :16]).dtype == torch.uint8
