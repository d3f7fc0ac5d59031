import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a source tree that is not installed
ALONE = "PYTEST_XDIST_WORKER" not in os.environ
if not ALONE:  # tests run in parallel, with one thread each, also in the processes that they start
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

from diffusion.support.specs import PACKAGES, gather  # noqa: E402

for package in (*PACKAGES, "metrics"):  # tests over all classes of a kind need every file of its package
    if package != "data":  # which imports Lightning
        gather(f"diffusion.{package}")

torch.set_num_threads(min(2, torch.get_num_threads()) if ALONE else 1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seed the random numbers, so that a test does not depend on those before it."""
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """Make float64 the default type: what is equal in exact arithmetic then is to 1e-9, on every processor."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
