import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a source tree that is not installed
ALONE = "PYTEST_XDIST_WORKER" not in os.environ
if not ALONE:  # tests run side by side: a thread each, for the processes that they start too
    os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

torch.set_num_threads(min(2, torch.get_num_threads()) if ALONE else 1)
