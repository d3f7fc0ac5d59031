"""The pictures of lessons 5 to 8."""

import torch
from matplotlib.figure import Figure

from diffusion import Pipeline
from diffusion.bench.analytic import Mixture
from diffusion.denoiser import Condition, predict
from diffusion.guidance import ClassifierFree
from diffusion.noise import Cosine, Flow
from diffusion.samplers import DDIM, DDPM, Heun, UniPC
from docs.learn.style import BLUE, GREEN, ORANGE, RED, TWO, WIDTH, at, beside, digits, seeded, show


def walks(sampler, n: int = 20, seed: int = 5) -> Figure:
    """Walks of a sampler over the density of the noisy data, from noise at the left to data at the right."""
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes, schedule = figure.subplots(), Cosine()
    x = torch.linspace(-3, 3, 300, dtype=torch.float64).reshape(-1, 1, 1, 1)
    t = torch.linspace(1, 0.005, 250, dtype=torch.float64)
    density = torch.stack([TWO.log_density(x, schedule.level(k)).exp() for k in t], 1)
    axes.imshow(
        (density / density.max(0).values) ** 0.7,
        extent=(1, 0, -3, 3),
        origin="lower",
        aspect="auto",
        cmap="Greys",
        vmax=2,
    )
    torch.manual_seed(seed)
    start = torch.randn(n, 1, 1, 1, dtype=torch.float64)
    states = [start, *(frame.x for frame in sampler.iterate(TWO, start, schedule))]
    times = [float(level.t) for level in sampler.levels(schedule)]
    for path in torch.stack(states, 1).flatten(1):
        axes.plot(times, path, color=BLUE if path[-1] > 0 else RED, lw=1, alpha=0.85)
    axes.set(xlim=(1, 0), ylim=(-3, 3), xlabel="time t: noise at the left, data at the right", ylabel="x")
    return figure


def ddpm() -> Figure:
    """Lesson 5: random walks."""
    return walks(DDPM(100))


def ddim() -> Figure:
    """Lesson 6: smooth paths from the same points."""
    return walks(DDIM(200))


def ddpm_digits() -> Figure:
    """Lesson 5: the states and the predictions of one walk of the bundled model."""
    model, walk, steps = Pipeline.load("zoo:digits"), DDPM(50), (1, 15, 25, 32, 38, 44, 50)
    frames = list(model.frames(1, torch.tensor([3]), seed=2, sampler=walk))
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    grid = figure.subplots(2, len(steps))
    for (above, below), k in zip(grid.T, steps, strict=True):
        show(above, frames[k - 1].x[0], 1 + 0.6 * float(frames[k - 1].t.sigma))
        show(below, frames[k - 1].x0[0])
        above.set_title(f"step {k}", fontsize=10.5)
    beside(grid[0, 0], "$x_t$", 13)
    beside(grid[1, 0], r"$\hat x_0$", 13)
    return figure


def orders() -> Figure:
    """Lesson 6: error against evaluations of the network."""
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes, schedule, counts = figure.subplots(), Flow(), (6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    start = torch.special.ndtri((torch.arange(500).double() + 0.5) / 500).reshape(-1, 1, 1, 1)
    exact = TWO.transport(start, at(schedule, 1.0))
    for name, kind, cost, colour in (("DDIM", DDIM, 1, ORANGE), ("Heun", Heun, 2, GREEN), ("UniPC", UniPC, 1, BLUE)):
        ends = [kind(n // cost).sample(TWO, start, schedule) for n in counts]
        axes.plot(counts, [float((x - exact).abs().mean()) for x in ends], "o-", ms=4, color=colour)
        axes.text(136, float((ends[-1] - exact).abs().mean()), name, color=colour, va="center")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="evaluations of the network",
        ylabel="error of the end point",
        xlim=(5.5, 190),
    )
    axes.set_xticks([8, 16, 32, 64, 128], ["8", "16", "32", "64", "128"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    return figure


def conditions() -> Figure:
    """Lesson 7: the prediction of a noisy 3 for no label and for each of the ten."""
    model, (x0, labels) = Pipeline.load("zoo:digits"), digits()
    clean, eps = x0[labels == 3][:1], torch.randn(1, 1, 8, 8, generator=seeded(1))
    times = (0.9, 0.7, 0.5, 0.3, 0.1)
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    grid = figure.subplots(len(times), 12)
    for row, t in zip(grid, times, strict=True):
        level = at(model.denoiser.schedule, t)
        noisy = level.alpha * clean + level.sigma * eps
        with torch.no_grad():
            none = model.denoiser(noisy, level, Condition()).x0
            each = model.denoiser(noisy.expand(10, -1, -1, -1), level, Condition(torch.arange(10))).x0
        for axes, x, limit in zip(row, (noisy, none, *each), (1 + 0.6 * float(level.sigma), *[1] * 11), strict=True):
            show(axes, x, limit)
        beside(row[0], f"t = {t}", 10)
    for axes, words in zip(grid[0], ("$x_t$", "none", *"0123456789"), strict=True):
        axes.set_title(words, fontsize=10.5)
    return figure


def guidance_plane() -> Figure:
    """Lesson 8: guided samples of one of two classes in the plane, with ideal denoisers."""
    right = torch.tensor([[0.5, 1.0], [0.8, -0.8]]).reshape(2, 2, 1, 1)
    left = torch.tensor([[-0.8, 0.8], [-0.4, -1.0]]).reshape(2, 2, 1, 1)
    own, both = Mixture(right, 0.45), Mixture(torch.cat([right, left]), 0.45)

    def guided(scale: float, low: float = 0.0, high: float = float("inf")):
        def denoise(x, t):
            w = scale if low < t.ratio <= high else 1.0
            return predict(x, torch.lerp(both(x, t).x0, own(x, t).x0, w), t)

        return denoise

    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    settings = {"scale 1": guided(1), "scale 4": guided(4), "scale 4, interval": guided(4, 0.3, 1.5)}
    start = torch.randn(800, 2, 1, 1, generator=seeded(), dtype=torch.float64)
    for axes, (name, denoise) in zip(figure.subplots(1, 3), settings.items(), strict=True):
        for data, colour in ((Mixture(left, 0.45), RED), (own, BLUE)):
            side = torch.linspace(-2.6, 2.6, 90, dtype=torch.float64)
            x = torch.cartesian_prod(side, side).reshape(-1, 2, 1, 1)
            height = data.log_density(x).exp().reshape(90, 90).T
            axes.contour(side, side, height, levels=[0.05, 0.2], colors=colour, linewidths=1, alpha=0.8)
        found = UniPC(30).sample(denoise, start, Cosine()).flatten(1)
        axes.scatter(*found.T, s=4, lw=0, alpha=0.5, color="black")
        axes.set(title=name, xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
    return figure


def guidance() -> Figure:
    """Lesson 8: eights of the bundled model at five scales."""
    model, n, scales = Pipeline.load("zoo:digits"), 10, (0, 1, 2, 4, 8)
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    for row, scale in zip(figure.subplots(len(scales), n), scales, strict=True):
        x = model.sample(n, torch.full((n,), 8), seed=1, sampler=UniPC(16), guidance=ClassifierFree(scale))
        for axes, image in zip(row, x, strict=True):
            show(axes, image)
        beside(row[0], f"scale {scale}", 10.5)
    return figure


ALL = (ddpm, ddim, ddpm_digits, orders, conditions, guidance_plane, guidance)
