"""Every network learns: it memorises digits, trains from the command line, and fits the ideal output on known data.

Slow. The bounds on the losses are about 1.3 times the measured values.
"""

from pathlib import Path

import pytest
import torch
import yaml

from diffusion import nets
from diffusion.bench.analytic import Mixture
from diffusion.cli import main
from diffusion.data import Digits
from diffusion.denoiser import Condition, Denoiser
from diffusion.denoiser.targets import Eps, V
from diffusion.loss.objective import Objective
from diffusion.nets import ResidualMLP
from diffusion.noise import Cosine
from diffusion.noise.draws import FixedDraws

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
pytestmark = pytest.mark.slow


def train(denoiser, batch, steps, lr):
    """Adam, ten steps of warm-up, then linearly to 0."""
    optimizer = torch.optim.Adam(denoiser.parameters(), lr, betas=(0.9, 0.99))
    objective = Objective(drop=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 10) * (1 - step / steps)
        optimizer.zero_grad()
        objective(denoiser, *batch()).loss.backward()
        optimizer.step()
    return denoiser.eval()


@pytest.mark.parametrize("name, steps, bound", [
    ("unet", 60, 0.31), ("blocks", 60, 0.30), ("dit", 120, 0.31), ("context", 120, 0.24), ("mlp", 400, 0.13),
])  # fmt: skip
def test_networks_memorise_eight_digits(name, steps, bound):
    """The network of each configuration; the loss of v starts near 1."""
    torch.manual_seed(0)
    spec = yaml.safe_load((CONFIGS / f"digits_{name}.yaml").read_text())["model"]["net"]
    net = getattr(nets, spec["class_path"])(**{"channels": 1, "num_classes": 10} | spec["init_args"])
    images, y = (v[:8].repeat(4, *(1,) * (v.ndim - 1)) for v in Digits().arrays("train"))
    x0, cond, denoiser = images.float() / 127.5 - 1, Condition(y), Denoiser(net, Cosine(), V())
    draws = FixedDraws(0, torch.arange(len(x0)))

    def loss():
        with torch.no_grad():
            return float(Objective(drop=0.0)(denoiser.eval(), x0, cond, draws.normal, draws.uniform).loss)

    first = loss()
    train(denoiser.train(), lambda: (x0, cond), steps, 2e-3)
    print(f"{name}: {first:.3f} -> {loss():.4f} in {steps} steps")
    assert first > 0.7 and loss() < bound


@pytest.mark.parametrize(
    "name, bound", [("unet", 0.43), ("blocks", 0.42), ("dit", 0.58), ("context", 0.46), ("mlp", 0.6)]
)
def test_networks_learn_digits_from_the_command_line(name, bound, tmp_path, capsys):
    """Four epochs, 88 steps, of configurations that differ in the network only: val/loss of the raw weights."""
    files = ["-c", str(CONFIGS / "digits.yaml"), "-c", str(CONFIGS / f"digits_{name}.yaml")]
    options = "--trainer.max_epochs 4 --model.warmup 20 --trainer.accelerator cpu --samples.every_n_epochs 0".split()
    little = "--samples.n 10 --gif.n 4 --model.sampler.steps 5".split()
    assert main(["fit", *files, *options, *little, "--out", str(tmp_path)]) == 0
    assert main(["validate", str(tmp_path / f"digits_{name}"), "--weights", "raw"]) == 0
    loss = float(capsys.readouterr().out.split("val/loss ")[-1].split()[0])
    print(f"{name}: val/loss {loss:.4f}")
    assert loss < bound


def test_residual_mlp_learns_the_ideal_denoiser_of_a_mixture():
    """Four clusters in the plane: its eps against the known E[eps | x_t], at five levels."""
    torch.manual_seed(0)
    means = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-0.3, -0.3]]).view(4, 2, 1, 1)
    data = Mixture(means, 0.2)
    denoiser = Denoiser(ResidualMLP(2, width=64, depth=3), Cosine(), Eps())
    train(denoiser, lambda: (data.sample(512).float(), Condition()), 800, 3e-3)
    errors = []
    for u in (0.1, 0.3, 0.5, 0.7, 0.9):
        t = denoiser.schedule.level(torch.tensor(u, dtype=torch.float64))
        x0 = data.sample(2000)
        x = t.alpha * x0 + t.sigma * torch.randn_like(x0)
        with torch.no_grad():
            errors.append(float((denoiser(x.float(), t).eps - data(x, t).eps).square().mean()))
    print([round(e, 4) for e in errors])
    assert max(errors) < 0.01
