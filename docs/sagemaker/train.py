"""Entry point of a SageMaker training job (docs/sagemaker.md): its options are the estimator's hyperparameters."""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent  # the package is beside this file in a job, two folders up in the repository
sys.path[:0] = [str(p) for p in (here, *here.parents[:2]) if (p / "diffusion" / "sagemaker.py").is_file()]

from diffusion.sagemaker import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
