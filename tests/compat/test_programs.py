"""Programs written for other packages run with their import line changed; their results are runs of ours."""

import glob

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

from diffusion.cli import main
from diffusion.compat import said
from diffusion.exchange.importing import origin as format_of_origin
from diffusion.exchange.rows import write
from diffusion.generation.pipeline import Pipeline
from diffusion.nets.linear_unet import LinearUNet


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(said, "_SAID", set())


# --- the origin -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_program_of_the_origin(tmp_path, monkeypatch, capsys):
    from diffusion.compat import origin
    from diffusion.compat.origin import DiffSet, DiffusionModel

    class Few(origin.DATA["MNIST"]):
        """Random images in place of a download."""

        def prepare_data(self):
            pass

        def load(self, split):
            images = torch.randint(256, (8, 1, 32, 32), dtype=torch.uint8)
            return images, torch.zeros(8, dtype=torch.int64)

    monkeypatch.setitem(origin.DATA, "MNIST", Few)
    monkeypatch.chdir(tmp_path)

    train_dataset, val_dataset = DiffSet(True, "MNIST"), DiffSet(False, "MNIST")
    train_loader, val_loader = DataLoader(train_dataset, batch_size=4), DataLoader(val_dataset, batch_size=4)
    model = DiffusionModel(train_dataset.size * train_dataset.size, 1000, train_dataset.depth)
    logger = pl.loggers.TensorBoardLogger("lightning_logs", name="mnist")
    trainer = pl.Trainer(max_epochs=1, logger=logger, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(model, train_loader, val_loader)
    last = glob.glob("./lightning_logs/mnist/version_0/checkpoints/*.ckpt")[-1]
    model = DiffusionModel.load_from_checkpoint(last, in_size=32 * 32, t_range=1000, img_depth=1)
    x = torch.randn(2, 1, 32, 32)
    for t in torch.arange(model.t_range - 1, 0, -400):
        x = model.denoise_sample(x, t)

    assert x.shape == (2, 1, 32, 32) and x.isfinite().all()
    image = train_dataset[0]
    assert image.shape == (1, 32, 32) and -1 <= image.min() < -0.9 and len(train_dataset) == 8
    assert capsys.readouterr().out.count("diffusion fit -c configs/mnist.yaml") == 1
    pipeline = Pipeline.load(last, "raw")
    assert pipeline.shape == (1, 32, 32) and pipeline.denoiser.schedule.T == 999
    with torch.no_grad():
        ours = pipeline.denoiser.net(x, torch.tensor([4.0, 4.0]))
        torch.testing.assert_close(model(x, torch.full((2, 1), 5.0)), ours)


@pytest.mark.filterwarnings("ignore:Linear. alpha-bar")
def test_a_walk_of_single_steps_is_the_samplers_walk():
    """denoise_sample from t_range - 1 to 1 is DDPM with all steps, the last one to the image."""
    from diffusion.compat.origin import DiffusionModel

    model = DiffusionModel(32 * 32, 5, 1).eval()
    x = torch.randn(1, 1, 32, 32)
    torch.manual_seed(1)
    denoise = model.pipeline.clamp(model.pipeline.steered(None))
    expected = model.pipeline.sampler.sample(denoise, x, model.denoiser.schedule)
    torch.manual_seed(1)
    for t in range(4, 0, -1):
        x = model.denoise_sample(x, torch.tensor(t))
    torch.testing.assert_close(x, expected)
    with pytest.raises(ValueError, match=r"1 .. 4"):
        model.denoise_sample(x, torch.tensor(0))


@pytest.mark.filterwarnings("ignore:Linear. alpha-bar")
def test_a_checkpoint_of_the_origin_itself_is_loaded(tmp_path):
    from diffusion.compat.origin import DiffusionModel

    made = DiffusionModel(32 * 32, 100, 1).eval()
    state = write(format_of_origin.table(), made.denoiser.net.state_dict())
    torch.save({"state_dict": state, "pytorch-lightning_version": pl.__version__}, tmp_path / "a.ckpt")
    read = DiffusionModel.load_from_checkpoint(tmp_path / "a.ckpt", in_size=1024, t_range=100, img_depth=1).eval()
    x, t = torch.randn(1, 1, 32, 32), torch.tensor([[7.0]])
    with torch.no_grad():
        assert torch.equal(read(x, t), made(x, t))


# --- the course -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Linear. alpha-bar")
def test_the_program_of_the_course(tmp_path, monkeypatch, capsys):
    from diffusion.compat import course
    from diffusion.compat.course import (
        ContextUnet,
        CustomDataset,
        sample_ddim,
        sample_ddim_context,
        sample_ddpm,
        sample_ddpm_context,
        transform,
    )

    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    np.save(tmp_path / "y.npy", np.eye(5)[[0, 1, 2, 3, 4, 0, 1, 2]])
    monkeypatch.setattr(course, "TIMESTEPS", 20)

    nn_model = ContextUnet(in_channels=3, n_feat=8, n_cfeat=5, height=16)
    dataset = CustomDataset(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), transform, null_context=False)
    optim, timesteps = torch.optim.Adam(nn_model.parameters(), lr=1e-3), 20
    for x, c in DataLoader(dataset, batch_size=4):
        optim.zero_grad()
        mask = torch.bernoulli(torch.zeros(len(c)) + 0.9)
        t = torch.randint(1, timesteps + 1, (len(x),))
        pred_noise = nn_model(x, t / timesteps, c=c * mask.unsqueeze(-1))
        torch.nn.functional.mse_loss(pred_noise, x).backward()
        optim.step()
    samples, intermediate = sample_ddpm(2, save_rate=5)
    few, steps = sample_ddim(2, n=4)
    ctx = torch.eye(5)[:2]
    mixed, _ = sample_ddpm_context(2, ctx)
    fast, _ = sample_ddim_context(2, ctx, n=4)

    for images in (samples, few, mixed, fast):
        assert images.shape == (2, 3, 16, 16) and images.isfinite().all()
    assert intermediate.shape[1:] == (2, 3, 16, 16) and (intermediate[-1] == samples.numpy()).all()
    assert len(steps) == 4 and dataset.getshapes() == ((8, 16, 16, 3), (8, 5))
    assert capsys.readouterr().out.count("configs/sprites_course.yaml") == 1
    run, out = course.save(nn_model, tmp_path / "run"), tmp_path / "x.npz"
    assert main(["sample", str(run), "--n", "2", "--steps", "2", "--out", str(out), "--device", "cpu"]) == 0


def test_a_context_of_zeros_is_no_context():
    from diffusion.compat.course import ContextUnet

    net = ContextUnet(3, 8, 5, 16).eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.9])[:, None, None, None]
    with torch.no_grad():
        without = net(x, t)
        torch.testing.assert_close(net(x, t, c=torch.zeros(2, 5)), without)
        assert (net(x, t, c=torch.eye(5)[:2]) - without).abs().max() > 1e-2


# --- denoising-diffusion-pytorch --------------------------------------------------------------------------------


def test_the_program_of_lucidrains(tmp_path, monkeypatch, capsys):
    from diffusion.compat.lucidrains import GaussianDiffusion, Trainer, Unet

    (tmp_path / "images" / "more").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for k in range(40):
        image = Image.fromarray(draw.integers(0, 256, (10, 12, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / ("more" if k % 2 else ".") / f"{k}.png")
    monkeypatch.chdir(tmp_path)

    model = Unet(dim=8, dim_mults=(1, 2))
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=100, sampling_timesteps=5, loss_type="l1")
    loss = diffusion(torch.rand(4, 3, 8, 8))
    loss.backward()
    sampled = diffusion.sample(batch_size=4)
    trainer = Trainer(
        diffusion, "images", train_batch_size=4, train_lr=8e-5, train_num_steps=4, gradient_accumulate_every=2,
        ema_decay=0.995, amp=False, save_and_sample_every=2, num_samples=4, calculate_fid=False,
    )  # fmt: skip
    trainer.train()
    trainer.save(1)
    trained = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.data.zero_()
    trainer.load(1)

    assert sampled.shape == (4, 3, 8, 8) and 0 <= sampled.min() and sampled.max() <= 1 and loss.ndim == 0
    assert trainer.step == 4 and all(map(torch.equal, trained, model.parameters()))
    said = capsys.readouterr().out
    assert said.count("diffusion prepare FOLDER") == 1 and said.count("leaves out calculate_fid") == 1
    pipeline = Pipeline.load("results/model-1.ckpt", "raw")
    assert isinstance(pipeline.denoiser.net, LinearUNet) and pipeline.shape == (3, 8, 8)
    ours = pipeline.denoiser.net.state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in model.net.state_dict().items())
    assert main(["sample", "results/run", "--n", "2", "--steps", "2", "--out", "x.png", "--device", "cpu"]) == 0


def test_the_loss_equals_theirs():
    """On equal weights, levels and noise, for each objective."""
    theirs = pytest.importorskip("denoising_diffusion_pytorch", reason="pip install -e '.[test]'")
    from diffusion.compat.lucidrains import GaussianDiffusion, Unet
    from diffusion.denoiser.prediction import Condition
    from diffusion.exchange.importing.lucidrains import table

    net = Unet(8, dim_mults=(1, 2)).eval()
    other = theirs.Unet(8, dim_mults=(1, 2)).eval()
    other.load_state_dict(write(table(net.net), net.net.state_dict()))
    images, i = torch.rand(4, 3, 8, 8), torch.tensor([0, 30, 60, 95])
    for objective in ("pred_noise", "pred_x0", "pred_v"):
        for capped in (False, True):
            options = {"image_size": 8, "timesteps": 100, "objective": objective, "beta_schedule": "cosine",
                       "min_snr_loss_weight": capped}  # fmt: skip
            a, b = GaussianDiffusion(net, **options), theirs.GaussianDiffusion(other, **options)
            eps = torch.randn(4, 3, 8, 8)
            expected = b.p_losses(images * 2 - 1, i, noise=eps)
            u = (i.double() + 0.5) / 100
            found = a.terms(a.pipeline.denoiser, images * 2 - 1, Condition(), lambda x, e=eps: e, lambda n, u=u: u)
            torch.testing.assert_close(found.loss, expected, rtol=1e-3, atol=1e-5)


def test_an_unknown_argument_is_named():
    from diffusion.compat.lucidrains import GaussianDiffusion, Unet

    with pytest.raises(ValueError, match="learned_sinusoidal_cond"):
        Unet(8, learned_sinusoidal_cond=True)
    with pytest.raises(ValueError, match="one of pred_noise"):
        GaussianDiffusion(Unet(8, dim_mults=(1,)), image_size=8, objective="noise")
