import os
from pathlib import Path

import pytest


@pytest.fixture
def real_root():
    """The folder of real data: $DIFFUSION_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("DIFFUSION_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"REAL DATA NOT TESTED: no folder {folder}; name one with $DIFFUSION_DATA")
    return folder
