import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a source tree that is not installed
ALONE = "PYTEST_XDIST_WORKER" not in os.environ
if not ALONE:  # tests run side by side: a thread each, for the processes that they start too
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

from diffusion.support.specs import PACKAGES, gather  # noqa: E402

for package in (*PACKAGES, "metrics"):  # the tests of a kind of parts have every file of its package
    if package != "data":  # which imports Lightning
        gather(f"diffusion.{package}")

torch.set_num_threads(min(2, torch.get_num_threads()) if ALONE else 1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Every test begins with the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """All that a test makes is in float64: what is equal in exact arithmetic then is to 1e-9, on every processor."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
