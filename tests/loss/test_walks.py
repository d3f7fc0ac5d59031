"""Walks: the exact flow map has no loss, a linear network learns the teacher's walk, and a run needs its teacher."""

import math
import shutil

import pytest
import torch
from torch import nn

from diffusion import Pipeline
from diffusion.bench.analytic import CLEAN, Gaussian, Map
from diffusion.cli import main
from diffusion.denoiser import Condition, Denoiser, predict
from diffusion.denoiser.targets import X0, V
from diffusion.guidance import ClassifierFree, Plain
from diffusion.loss.objective import Objective
from diffusion.loss.walks import Walks
from diffusion.nets import UNet
from diffusion.noise import Cosine, Flow, Karras
from diffusion.noise.draws import StepDraws
from diffusion.samplers import DDIM, Consistency

STD = 0.5
schedules = pytest.mark.parametrize("schedule", [Flow(), Cosine(), Karras()], ids=lambda s: type(s).__name__)


class Teacher(nn.Module):
    """An exact denoiser of Gaussian data, or its flow map, with the attributes of a denoiser that are read."""

    self_condition, conditional, target, second_clock = False, False, X0(), True

    def __init__(self, schedule, exact):
        super().__init__()
        self.schedule, self.exact, self.data = schedule, exact, Gaussian(0.3 if exact else 0.0, STD)
        self.register_buffer("x", torch.zeros(()))

    def forward(self, x, t, cond=Condition(), to=None):
        return Map(self.data)(x, t) if self.exact else self.data(x, t)

    def bind(self, cond):
        return self


class Exact(Walks):
    """Taught by an oracle, which is not a Denoiser."""

    def __init__(self, teacher, sampler):
        Objective.__init__(self, drop=0.0)
        self._teacher, self.sampler, self.guidance = teacher, sampler, Plain()


class Straight(Teacher):
    """The exact map to the clean image, which a network that learns from walks should become."""

    def forward(self, x, t, cond=Condition(), to=None):
        return Map(self.data)(x, t.until(CLEAN))


@schedules
def test_exact_flow_map_has_no_loss(schedule):
    """The teacher's steps are exact, so every state's exact map leads to the end of its walk."""
    objective = Exact(Teacher(schedule, True), DDIM(5))
    terms = objective(Straight(schedule, True), torch.zeros(40, 1, 2, 2).double(), noise=StepDraws(1, 2, 0).normal)
    assert float(terms.loss) < 1e-5 and len(terms.mse) == 5 * 40 == len(terms.t.t.flatten())


@pytest.mark.parametrize("n, factor", [(4, 0.6811), (8, 0.8296), (16, 0.9114), (32, 0.9547)])
def test_linear_network_learns_the_teachers_walk_with_its_bias(n, factor):
    """N(0, .5^2), DDIM with n even steps of Flow; the gain of level i is .5 prod_{j < i} cos(theta_j+1 - theta_j) / sd.

    sd is the standard deviation of the walk at level i: the normal equations' solution has no residual.
    """
    schedule = Flow()
    objective = Exact(Teacher(schedule, False), DDIM(n))
    x0 = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    batch = objective.walked(
        Teacher(schedule, False), x0, Condition(), lambda x: torch.tensor([1.0, -2.0]).to(x).view(x.shape)
    )
    theta = [math.atan2(k / n, (1 - k / n) * STD) for k in range(n + 1)]
    turns = [math.cos(b - a) for a, b in zip(theta, theta[1:], strict=False)]
    for i, (x, end) in enumerate(zip(batch.x.split(2), batch.x0.split(2), strict=True)):  # from t = 1 down
        gain = float((end * x).sum() / x.square().sum())
        v = ((n - i) / n) ** 2 + (i / n * STD) ** 2
        assert gain == pytest.approx(STD * math.prod(turns[: n - i]) / math.sqrt(v), rel=1e-6)
        torch.testing.assert_close(end, gain * x, rtol=1e-6, atol=1e-9)
    first = float(batch.x0[0] / batch.x[0]) / STD
    assert first == pytest.approx(math.prod(turns), rel=1e-6) and math.prod(turns) == pytest.approx(factor, abs=5e-5)


@schedules
def test_states_lie_on_their_walks_at_their_levels(schedule):
    """x = alpha x_0 + sigma eps at every level, and the walk from the first state is the sampler's."""
    objective, live = Exact(Teacher(schedule, False), DDIM(6)), Teacher(schedule, False)
    x0 = torch.zeros(3, 1, 2, 2).double()
    draw = StepDraws(1, 2, 0).normal(x0).double()
    batch = objective.walked(live, x0, Condition(torch.arange(3)), lambda x: draw)
    torch.testing.assert_close(batch.t.alpha * batch.x0 + batch.t.sigma * batch.eps, batch.x)
    assert torch.equal(batch.cond.y, torch.arange(3).repeat(6))
    start = schedule.prior_std * draw
    end = DDIM(6).sample(Gaussian(0.0, STD), start, schedule)
    assert torch.equal(batch.x[:3], start) and all(torch.equal(e, end) for e in batch.x0.split(3))
    assert torch.equal(
        batch.level.t.view(6, 3)[:, 0], torch.stack([level.t for level in DDIM(6).levels(schedule)[:-1]])
    )


def net(seed, **options):
    torch.manual_seed(seed)
    found = UNet(1, 8, (1, 2), 1, head_width=8, num_classes=3, **options)
    for p in found.parameters():
        nn.init.normal_(p, std=0.1) if not p.any() else None
    return Denoiser(found, Cosine(), V())


def test_loss_is_a_function_of_labels_and_draws_and_trains_the_network_alone():
    """Images do not matter, labels and guidance do; the teacher receives no gradient and keeps its mode."""
    teacher, live, y = net(1).eval(), net(2), torch.arange(4) % 3

    def loss(x0, y, guidance=ClassifierFree(1.5)):
        objective = Walks(teacher, DDIM(3), guidance)
        return objective(live, x0, Condition(y), StepDraws(3, 5, 0).normal).loss

    one, other = loss(torch.zeros(4, 1, 8, 8), y), loss(torch.ones(4, 1, 8, 8), y)
    assert torch.equal(one, other) and not torch.equal(one, loss(torch.zeros(4, 1, 8, 8), y.flip(0)))
    assert not torch.equal(one, loss(torch.zeros(4, 1, 8, 8), y, ClassifierFree(3.0)))
    one.backward()
    assert all(p.grad is None for p in teacher.parameters()) and any(p.grad.any() for p in live.parameters())


def test_gradient_is_that_of_the_distance_to_the_ends():
    """For one pixel: the mean of x_0_hat's sign of error, by hand."""
    schedule, w = Flow(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    class Scaled(Teacher):
        def forward(self, x, t, cond=Condition(), to=None):
            return predict(x, w * x, t.like(x))

    objective, draw = Exact(Teacher(schedule, False), DDIM(2)), torch.tensor([[[[1.5]]]], dtype=torch.float64)
    terms = objective(Scaled(schedule, False), draw, noise=lambda x: draw)
    terms.loss.backward()
    batch = objective.walked(Scaled(schedule, False), draw, Condition(), lambda x: draw)
    x, end = batch.x.flatten(), batch.x0.flatten()
    assert float(terms.loss.detach()) == pytest.approx(float((0.1 * x - end).abs().mean()), rel=1e-4)
    assert float(w.grad) == pytest.approx(float((x * (0.1 * x - end).sign()).mean()))


def fit(folder, *more):
    """A short training of a small network of the digits."""
    small = ["--model.net.widths", "[8,16]", "--model.net.attention", "1", "--trainer.accelerator", "cpu"]
    short = [
        "--trainer.max_epochs",
        "-1",
        "--trainer.max_steps",
        "4",
        "--trainer.limit_val_batches",
        "0",
        "--samples.n",
        "1",
    ]
    assert main(["fit", "-c", "configs/digits.yaml", *more, *small, *short, "--out", str(folder), "--gif.n", "1"]) == 0


@pytest.mark.slow
def test_run_tuned_from_a_run_samples_without_its_teacher_and_refuses_another(tmp_path, capsys):
    """The recipe's commands on a small network; the teacher's hash is kept, and only training needs the teacher."""
    fit(tmp_path)
    base = tmp_path / "digits" / "version_0"
    walks = ["-c", "configs/digits_walks.yaml", "--init", str(base)]
    fit(tmp_path, *walks, "--data.batch_size", "2")
    run = tmp_path / "digits_walks" / "version_0"
    kept = Pipeline.load(run).sample(3, seed=1)
    fit(tmp_path, *walks, "--data.batch_size", "2", "--resume", str(run), "--trainer.max_steps", "6")
    shutil.move(base, tmp_path / "gone")
    assert Pipeline.load(run).sampler.steps == 2 and isinstance(Pipeline.load(run).sampler, Consistency)
    assert Pipeline.load(run / "checkpoints" / "step00000004.ckpt").sample(3, seed=1).equal(kept)
    capsys.readouterr()
    assert main(["fit", "-c", str(run / "config.yaml"), "--resume", str(run)]) == 2
    assert str(base) in capsys.readouterr().err
    fit(tmp_path, "--seed_everything", "1", "--experiment", "other")
    shutil.move(tmp_path / "other" / "version_0", base)
    assert main(["fit", "-c", str(run / "config.yaml"), "--resume", str(run)]) == 2
    assert "not the file" in capsys.readouterr().err
