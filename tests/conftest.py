import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a source tree that is not installed

import torch  # noqa: E402

torch.set_num_threads(min(2, torch.get_num_threads()))
