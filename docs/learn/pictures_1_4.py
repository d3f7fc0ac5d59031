"""The pictures of lessons 1 to 4."""

import numpy as np
import torch
from matplotlib.figure import Figure

from diffusion.bench.analytic import Empirical, Mixture
from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import V
from diffusion.nets import ResidualMLP
from diffusion.noise import Cosine, Flow, Linear
from diffusion.samplers import UniPC
from docs.learn.style import BLUE, GREEN, GREY, ORANGE, RED, WIDTH, at, beside, digits, seeded, show


def noise() -> Figure:
    """Lesson 1: a digit noised by two schedules; signal and log-SNR of three."""
    figure = Figure(figsize=(WIDTH, 4.9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    x0, times = digits("test")[0][0], (0.01, 0.2, 0.4, 0.6, 0.8, 1.0)
    eps = torch.randn(x0.shape, generator=seeded(3))
    schedules = {"Cosine": (Cosine(), BLUE), "Linear": (Linear(), ORANGE), "Flow": (Flow(), GREEN)}
    grid = above.subplots(2, len(times))
    for row, name in zip(grid, ("Cosine", "Linear"), strict=True):
        for axes, t in zip(row, times, strict=True):
            level = at(schedules[name][0], t)
            show(axes, level.alpha * x0 + level.sigma * eps, 1 + 0.6 * float(level.sigma))
        beside(row[0], name)
    for axes, t in zip(grid[0], times, strict=True):
        axes.set_title(f"t = {t:g}")
    left, right = below.subplots(1, 2)
    t = torch.linspace(0.005, 1, 400, dtype=torch.float64)
    for name, (schedule, colour) in schedules.items():
        level = schedule.level(t)
        left.plot(t, level.alpha**2 / (level.alpha**2 + level.sigma**2), color=colour, label=name)
        right.plot(t, level.log_snr, color=colour)
    left.set(title="share of signal", xlabel="time t", ylim=(0, 1.02), xlim=(0, 1))
    left.legend()
    right.axhline(0, color=GREY, lw=1, ls="--")
    right.text(1, 0.4, "as much noise\nas signal", ha="right", fontsize=9.5, color=GREY)
    right.set(title="log-SNR", xlabel="time t", ylim=(-10, 10), xlim=(0, 1))
    return figure


def denoiser() -> Figure:
    """Lesson 2: density and ideal prediction in one dimension."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    data, x = Mixture([-1.0, 1.0], 0.2), torch.linspace(-3, 3, 601, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for t, words, colour in ((0.1, "little noise", BLUE), (0.5, "medium noise", ORANGE), (0.9, "much noise", RED)):
        level = at(Cosine(), t)
        left.plot(x.flatten(), data.log_density(x, level).exp(), color=colour, label=words)
        right.plot(x.flatten(), data(x, level).x0.flatten(), color=colour)
    left.set(title=r"density of $x_t$", xlabel=r"$x_t$", yticks=[], ylim=(0, 1.45))
    left.legend(loc="upper center", ncols=1, handlelength=1.2)
    right.axhline(0, color=GREY, lw=0.8)
    right.set(title=r"ideal prediction $\hat x_0$", xlabel=r"$x_t$", ylim=(-1.7, 1.7), yticks=[-1, 0, 1])
    return figure


def denoiser_digits() -> Figure:
    """Lesson 2: the ideal prediction where the data are the training digits."""
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    data, x0 = Empirical(digits()[0]), digits("test")[0][0].double()
    times = (0.2, 0.4, 0.6, 0.7, 0.8, 1.0)
    eps = torch.randn(x0.shape, generator=seeded(3), dtype=torch.float64)
    grid = figure.subplots(2, len(times))
    for (above, below), t in zip(grid.T, times, strict=True):
        level = at(Cosine(), t)
        x = level.alpha * x0 + level.sigma * eps
        show(above, x, 1 + 0.6 * float(level.sigma))
        show(below, data(x[None], level).x0)
        above.set_title(f"t = {t:g}")
    beside(grid[0, 0], r"$x_t$", 13)
    beside(grid[1, 0], r"$\hat x_0$", 13)
    return figure


def targets() -> Figure:
    """Lesson 3: v as a tangent, and what an error of the output costs."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    turn = np.linspace(0, np.pi / 2, 200)
    left.plot(np.cos(turn), np.sin(turn), color=GREY, lw=1.2, ls="--")
    phi = np.deg2rad(35)
    x, v = np.array([np.cos(phi), np.sin(phi)]), np.array([-np.sin(phi), np.cos(phi)])
    arrows = (
        ((0, 0), (1, 0), "black", r"$x_0$", (1.06, -0.04)),
        ((0, 0), (0, 1), "black", r"$\epsilon$", (-0.1, 1.03)),
        ((0, 0), x, BLUE, r"$x_t$", x * 0.62 + [0.06, -0.09]),
        (x, x + 0.62 * v, RED, r"$v$", x + 0.62 * v + [0.06, 0.02]),
    )
    for start, end, colour, words, where in arrows:
        left.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2, "shrinkA": 0, "shrinkB": 0}
        )
        left.text(*where, words, color=colour, fontsize=14, va="center")
    left.plot(0.25 * np.cos(turn[turn < phi]), 0.25 * np.sin(turn[turn < phi]), color=BLUE, lw=1.5)
    left.text(0.29, 0.08, r"$\phi$", color=BLUE)
    left.set(xlim=(-0.2, 1.25), ylim=(-0.15, 1.2), aspect="equal", title="noising is a rotation")
    left.axis("off")
    t = torch.linspace(0.01, 0.985, 300, dtype=torch.float64)
    level = Cosine().level(t)
    right.plot(t, level.ratio, color=ORANGE, label=r"$\epsilon$: $\sigma / \alpha$")
    right.plot(t, torch.ones_like(t), color=GREEN, label=r"$x_0$: 1")
    right.plot(t, level.sigma, color=RED, label=r"$v$: $\sigma$")
    right.set(
        yscale="log",
        xlabel="time t",
        ylim=(0.02, 60),
        xlim=(0, 1),
        title=r"error of $\hat x_0$ per error of the output",
    )
    right.legend(loc="upper left")
    return figure


def training() -> Figure:
    """Lesson 4: the loss against steps and time, with its floor, and samples of the trained network."""
    torch.manual_seed(0)
    angle = torch.arange(8) * torch.pi / 4
    data = Mixture(torch.stack([angle.cos(), angle.sin()], 1).reshape(8, 2, 1, 1), 0.1)
    schedule, net, losses = Cosine(), ResidualMLP(channels=2, width=64, depth=2), []
    denoiser, optimizer = Denoiser(net, schedule, V()), torch.optim.Adam(net.parameters(), 4e-3)

    def errors(predict, n: int):
        """The squared error of v of n random points, with their times."""
        x0 = data.sample(n)
        level = schedule.level(schedule.quantile(torch.rand(n, dtype=torch.float64)))
        eps, t = torch.randn_like(x0), level.like(x0)
        found = predict((t.alpha * x0 + t.sigma * eps).float(), level)
        return (V().of(found.x0 - x0, found.eps - eps, t)).square().flatten(1).mean(1), level.t

    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 1500)
    for _ in range(1500):
        loss = errors(denoiser, 256)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        losses.append(loss.item())
    with torch.no_grad():
        found = {"ideal": errors(data, 40_000), "network": errors(denoiser, 40_000)}
        samples = UniPC(20).sample(denoiser, torch.randn(1500, 2, 1, 1), schedule).flatten(1)
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.05])
    smooth = np.convolve(losses, np.ones(40) / 40, "valid")
    left.plot(np.arange(len(smooth)) + 40, smooth, color=BLUE, lw=1.4)
    left.axhline(float(found["ideal"][0].mean()), color=GREY, ls="--", lw=1.5)
    left.text(1500, float(found["ideal"][0].mean()) - 0.006, "ideal", ha="right", va="top", color=GREY)
    left.set(title="loss", xlabel="step", ylim=(0.5, 0.82), yticks=[0.5, 0.6, 0.7, 0.8])
    for name, colour, style in (("network", BLUE, "-"), ("ideal", GREY, "--")):
        loss, t = found[name]
        bins = (t * 20).long().clamp(max=19)
        mean = [float(loss[bins == k].mean()) for k in range(20)]
        middle.plot((np.arange(20) + 0.5) / 20, mean, color=colour, ls=style, label=name)
    middle.set(title="loss by time", xlabel="time t", ylim=(0, 1.4), xlim=(0, 1))
    middle.legend(loc="upper center", ncols=1, handlelength=1.3, borderaxespad=0)
    right.scatter(*samples.T, s=3, alpha=0.5, lw=0, color=BLUE)
    right.set(title="samples", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    return figure


ALL = (noise, denoiser, denoiser_digits, targets, training)
