import pytest

from diffusion.cli import main

TINY = [
    "-c", "configs/digits.yaml", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2",
    "--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "5",
    "--model.net.widths", "[8,16]", "--model.net.attention", "1", "--model.sampler.steps", "5",
    "--data.limit", "320", "--samples.n", "20", "--samples.every_n_epochs", "1", "--checkpoint.every_n_steps", "3",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A finished run of two tiny epochs on digits, and its folder of runs."""
    out = tmp_path_factory.mktemp("runs")
    assert main(["fit", *TINY, "--out", str(out)]) == 0
    return out / "digits" / "version_0"
