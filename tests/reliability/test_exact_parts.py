"""Parts of a training with a state of their own: a run that is killed and resumed is the uninterrupted run."""

import pytest
import torch

from diffusion import Diffusion, Pipeline
from diffusion.denoiser import averages
from diffusion.loss.augment import NonLeaking
from diffusion.loss.objective import Objective
from diffusion.nets import AttentionUNet
from diffusion.noise import Cosine
from diffusion.noise.times import LossAware
from diffusion.samplers import DDIM
from diffusion.support import runs
from diffusion.training.callbacks import PostHoc
from diffusion.training.systems.optimizers import Muon, RAdam
from tests.reliability.test_exact import BATCHES, EPOCHS, Killer, parts, same, state, train


def snapshots(run):
    """The bytes of each snapshot by its name."""
    return {s.path.name: s.path.read_bytes() for s in averages.snapshots(run)}


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 4}], ids=["each batch", "accumulation"])
def test_averages_and_their_snapshots_resume_exactly(options, tmp_path):
    """Killed between a snapshot and the next checkpoint: it is written again, to the bit."""
    (tmp_path / "whole").mkdir()
    train(tmp_path / "whole", also=[PostHoc(5)], every=4, **options)
    kills = [3, 4] if options else [3, 7, 9]
    for at in kills:
        assert train(tmp_path, Killer("on_before_optimizer_step", at), also=[PostHoc(5)], every=4, **options) is None
    assert train(tmp_path, also=[PostHoc(5)], every=4, **options)
    wanted, found = (folder / "x" / "version_0" for folder in (tmp_path / "whole", tmp_path))
    assert len(snapshots(wanted)) == 10 and snapshots(found) == snapshots(wanted)
    read = [runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["callbacks"]["PostHoc"] for run in (wanted, found)]
    assert read[0]["images"] == read[1]["images"] == 8 * BATCHES * EPOCHS
    for w, track in read[0]["tracks"].items():
        same(read[1]["tracks"][w], track)
    same(state(found), state(wanted))


def test_snapshots_hold_the_averages_of_the_weights(tmp_path):
    """Against the weights of every step and w_j = (j/n)^(g + 1) - ((j - 1)/n)^(g + 1)."""
    seen, name = [], "denoiser.net.inc.body.0.weight"

    class Record(PostHoc):
        state_key = "Record"

        def __init__(self):
            super().__init__()

        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(pl_module.get_parameter(name).detach().double().clone())

    train(tmp_path, also=[PostHoc(3, storage="fp32"), Record()], max_epochs=2)
    n = len(seen)
    assert n == 12
    for s in averages.snapshots(tmp_path / "x" / "version_0"):
        g, j = averages.exponent(s.sigma_rel), torch.arange(1, s.step + 1).double()
        weights = (j / s.step) ** (g + 1) - ((j - 1) / s.step) ** (g + 1)
        wanted = (weights.view(-1, 1, 1, 1, 1) * torch.stack(seen[: s.step])).sum(0)
        found = runs.open_checkpoint(s.path)[name]
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", [Muon(), RAdam()])
def test_optimizers_resume_exactly(optimizer, tmp_path):
    """Killed within an epoch; the state of every optimizer is restored."""

    def make(data, hint):
        return parts(data, hint, optimizer=optimizer, decay="wsd")

    (tmp_path / "whole").mkdir()
    train(tmp_path / "whole", make=make, every=4)
    assert train(tmp_path, Killer("on_before_optimizer_step", 7), make=make, every=4) is None
    assert train(tmp_path, make=make, every=4)
    wanted, found = (state(folder / "x" / "version_0") for folder in (tmp_path / "whole", tmp_path))
    names = {name.split()[-1] for name in wanted if name.startswith("adam")}
    assert names == {"exp_avg", "exp_avg_sq", "step"} | ({"momentum_buffer"} if isinstance(optimizer, Muon) else set())
    same(found, wanted)


def test_augmentation_resumes_exactly_and_leaves_no_trace_in_samples(tmp_path):
    """Killed within an epoch; the file is then sampled from without the inputs that tell of changes."""

    def make(data, hint):
        torch.manual_seed(0)
        augment = NonLeaking(["scale", "stretch", "shift"], p=0.5)
        net = AttentionUNet(1, (8, 8), heads=2, attention=1, num_classes=10, image_channels=augment.numbers)
        facts = {"shape": (1, 8, 8), "class_names": list("0123456789"), "lr": 1e-2, "sampler": DDIM(2)}
        return Diffusion(net, Cosine(20), objective=Objective(LossAware(bins=2, history=4)), augment=augment, **facts)

    (tmp_path / "whole").mkdir()
    model, _, _ = train(tmp_path / "whole", make=make, every=4)
    assert train(tmp_path, Killer("on_before_optimizer_step", 7), make=make, every=4) is None
    assert train(tmp_path, make=make, every=4)
    wanted, found = (folder / "x" / "version_0" for folder in (tmp_path / "whole", tmp_path))
    same(state(found), state(wanted))
    pipeline = Pipeline.load(wanted, weights="raw")
    assert pipeline.denoiser.net.image_channels == 0 and pipeline.denoiser.told == 0
    assert model.denoiser.net.inc.body[0].weight[:, 1:6].any()  # it has listened
    x, t = torch.randn(2, 1, 8, 8), pipeline.denoiser.schedule.level(torch.tensor(0.5))
    cond = pipeline.condition(torch.tensor([1, 2]))
    model.eval()
    torch.testing.assert_close(pipeline.denoiser(x, t, cond).x0, model.denoiser(x, t, cond).x0, rtol=1e-5, atol=1e-6)
