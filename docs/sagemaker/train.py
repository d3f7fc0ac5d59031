"""Entry point of a SageMaker training job (docs/sagemaker.md): the estimator's hyperparameters are its options."""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent  # a job has the package beside this file, the repository two folders up
sys.path[:0] = [str(p) for p in (here, *here.parents[:2]) if (p / "diffusion" / "sagemaker.py").is_file()]

from diffusion.sagemaker import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
