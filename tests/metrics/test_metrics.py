import numpy as np
import pytest
import torch

from diffusion.metrics import Gaussian, frechet_distance


def test_frechet_of_known_gaussians():
    """Diagonal covariances: sum (m - m')^2 + sum (s - s')^2."""
    a = Gaussian(torch.tensor([1.0, 2, 3]).double(), torch.diag(torch.tensor([1.0, 4, 9])).double())
    b = Gaussian(torch.tensor([0.0, 2, 5]).double(), torch.diag(torch.tensor([4.0, 4, 1])).double())
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


def test_frechet_matches_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, 12, generator=g) @ torch.randn(12, 12, generator=g) + k for k in (0, 0.3))
    a, b = Gaussian.of(x), Gaussian.of(y)
    root = linalg.sqrtm(a.cov.numpy() @ b.cov.numpy()).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * torch.from_numpy(root))
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-8)
    np.testing.assert_allclose(a.cov, np.cov(x.double().numpy(), rowvar=False), rtol=1e-10)


def test_frechet_with_constant_features_is_finite():
    x = torch.randn(50, 4) * torch.tensor([1.0, 1, 0, 0])
    assert frechet_distance(Gaussian.of(x), Gaussian.of(x + torch.tensor([2.0, 0, 0, 0]))) == pytest.approx(4, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        Gaussian.of(x[:1])
