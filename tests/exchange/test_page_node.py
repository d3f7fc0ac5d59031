"""The page's programs in Node: its noise, predictions and samplers are Python's, its films are those of Pillow."""

import io
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffusion.denoiser import Denoiser
from diffusion.denoiser.targets import EDM, X0, Eps, V, Velocity
from diffusion.exchange.exporting.page_file import program
from diffusion.exchange.exporting.page_model import as_json, described
from diffusion.generation.pipeline import Pipeline
from diffusion.guidance import Clamp, ClassifierFree, Interval, Plain, Unbounded
from diffusion.nets.base import Net
from diffusion.noise import Cosine, Flow, Karras, Linear, Shifted
from diffusion.noise.draws import ImageDraws, seed_of
from diffusion.pictures.bands import visible
from diffusion.samplers import DDIM, DDPM, DPMSolver, Euler, EulerAncestral, Heun
from diffusion.support.tokens import Tokens

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed: apt-get install nodejs")
READ = 'const given = JSON.parse(require("fs").readFileSync(0, "utf8"));\n'
WRITE = "\nconst write = (value) => process.stdout.write(JSON.stringify(value));\n"


def node(script, given=None, names=("random.js", "sampler.js", "pictures.js", "text.js", "gif.js")):
    """The value that a script passes to `write`, after the page's programs; it finds `given` as plain types."""
    text = as_json(given).replace("NaN", "null")
    source = program(*names) + READ + WRITE + script
    done = subprocess.run([NODE, "-e", source], input=text, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


class Toy(Net):
    """tanh(1.3 x + mean of x's picture / 2) and a shift by the condition and the clock; may learn a variance.

    The JavaScript below is the same function.
    """

    reads_text = True

    def forward(self, x, clock, y=None, keep=None):
        out = self.unscaled(x[:, : self.channels], clock, y, keep)
        if self.self_condition:
            out = out + 0.3 * x[:, self.channels :]
        return torch.cat([out, out.sin()], 1) if self.learn_variance else out

    def unscaled(self, x, clock, y, keep):
        rows = (-1, 1, 1, 1)
        told = torch.zeros(len(x)) if y is None else (y * torch.arange(1, 4)).sum(1) if y.ndim > 1 else y.float() + 1
        told = told / 100 if self.tokens else told
        told = told if keep is None else told * keep
        return torch.tanh(1.3 * x + x.mean((1, 2, 3), keepdim=True) / 2) + (told / 10 + clock.cos() / 5).view(rows)


NET = """
const [C, H, W] = given.model.shape, size = C * H * W;
async function net(x, rows, clock, keep) {
  const inputs = x.length / rows, outputs = given.variance ? 2 * size : size, out = new Float32Array(rows * outputs);
  for (let row = 0; row < rows; row++) {
    const mine = x.subarray(row * inputs, row * inputs + size), mean = mine.reduce((a, b) => a + b, 0) / size;
    const y = given.negative && row < rows - n ? given.negative : given.y && given.y[row % given.n];
    let told = !y && y !== 0 ? 0 : y.length ? y.reduce((sum, v, k) => sum + v * (k + 1), 0) : y + 1;
    if (given.model.text) told /= 100;
    if (!keep(row)) told = 0;
    for (let i = 0; i < size; i++) {
      let v = Math.tanh(1.3 * mine[i] + mean / 2) + told / 10 + Math.cos(clock) / 5;
      if (given.model.selfCondition) v += 0.3 * x[row * inputs + size + i];
      out[row * outputs + i] = v;
      if (given.variance) out[row * outputs + size + i] = Math.sin(v);
    }
  }
  return out;
}
const { model, n } = given;
for (const limits of [model.clamp]) { limits[0] ??= -Infinity; limits[1] ??= Infinity; }
model.guidance.high ??= Infinity;
const { options } = model.samplers[model.sampler];
if ("maxRatio" in options) options.maxRatio ??= Infinity;
const noise = pictureNoise(BigInt(given.seed), n, size);
const levels = model.walks[model.steps].map((k) => levelOf(model.levels[k]));
const denoise = denoiser(model, net, n, model.guidance.scale, Boolean(given.y), Boolean(given.negative));
const steps = [];
walk(model.sampler, options, denoise, noise().map((v) => model.priorStd * v), levels, noise, (k) => steps.push(k)).then(
  (x) => write({ x: [...x], steps, bytes: [...toBytes(model, x, n)] }));
"""


def toy(schedule=None, target=None, sampler=None, guidance=None, clamp=None, channels=2, **facts):
    """A pipeline around the network above."""
    net = Toy(channels, **{"num_classes": 3, **facts})
    denoiser = Denoiser(net, schedule or Cosine(), target or V()).eval()
    return Pipeline(
        denoiser, sampler or DDIM(8), guidance or ClassifierFree(1.8), clamp or Clamp(), shape=(channels, 3, 5),
        class_names=("a", "b", "c") if net.num_classes or net.context_dim else (),
    )  # fmt: skip


WORDS = Tokens(("a", "red", "cat"), 3)
MODELS = {
    "ddim": {},
    "euler": {"sampler": Euler(6), "target": Eps(), "schedule": Linear()},
    "eta": {"sampler": DDIM(8, eta=0.6)},
    "ancestral": {"sampler": EulerAncestral(8, eta=0.7)},
    "ddpm small": {"sampler": DDPM(12)},
    "ddpm large": {"sampler": DDPM(12, "large", grid="leading")},
    "ddpm learned": {"sampler": DDPM(12, "learned"), "learn_variance": True},
    "unused variance": {"learn_variance": True},
    "heun": {"sampler": Heun(7), "schedule": Karras(), "target": EDM(), "clamp": Unbounded()},
    "heun limited": {"sampler": Heun(7, grid="karras", max_ratio=3.0)},
    "2m": {"sampler": DPMSolver(9), "schedule": Flow(), "target": Velocity()},
    "shifted": {"sampler": DPMSolver(9), "schedule": Shifted(Flow(), 128), "target": Velocity()},
    "2m no signal": {"sampler": DPMSolver(9), "schedule": Linear(zero_snr=True), "target": X0()},
    "1s": {"sampler": DPMSolver(9, order=1, grid="log_snr")},
    "sde": {"sampler": DPMSolver(9, sde=True, grid="quadratic")},
    "plain": {"guidance": Plain()},
    "rescaled": {"guidance": ClassifierFree(3.0, rescale=0.7), "clamp": Clamp(-2, 2)},
    "interval": {"guidance": Interval(ClassifierFree(3.0), 0.2, 4.0), "self_condition": True},
    "self-conditioned": {"self_condition": True},
    "mixes": {"num_classes": 0, "context_dim": 3},
    "unconditional": {"num_classes": 0, "guidance": Plain(), "channels": 3},
    "text": {"num_classes": 0, "tokens": WORDS.plain},
    "negative": {
        "num_classes": 0,
        "tokens": WORDS.plain,
        "guidance": Interval(ClassifierFree(3.0, negative="cat a"), 0.2, 4.0),
        "self_condition": True,
    },
}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 17, 31, 75, 784, 3072])
def test_noise_is_pythons(size):
    found = node(f"const noise = pictureNoise(7n, 3, {size}); write([[...noise()], [...noise()]])")
    draw = ImageDraws(7, range(3))
    for mine in found:
        wanted = draw(torch.empty(3, size)).flatten().numpy()
        np.testing.assert_allclose(np.array(mine, "f4"), wanted, rtol=2e-7, atol=0)


def test_seeds_are_pythons():
    keys = [[0], [0, 0], [12, 3], [2**40, 99], [999999999999999999, 7]]
    found = node("write(given.map((key) => String(seedOf(...key.map(BigInt)))))", [list(map(str, key)) for key in keys])
    assert [int(seed) for seed in found] == [seed_of(*key) for key in keys]


@pytest.mark.parametrize("name", MODELS)
def test_walks_are_pythons(name):
    model = toy(**MODELS[name])
    y = model.prompts(["a red cat", "a cat", "", "red"]) if model.tokens else model.in_turn(4)
    facts = described(model)
    unwanted = facts["guidance"]["negative"]
    negative = WORDS.encode([unwanted])[0].tolist() if unwanted else None
    given = {
        "model": facts, "n": 4, "seed": 5, "y": None if y is None else y.tolist(),
        "variance": model.denoiser.learn_variance, "negative": negative,
    }  # fmt: skip
    found = node(NET, given)
    wanted = model.sample(4, y, seed=5)
    assert found["steps"] == list(range(1, model.sampler.steps + 1))
    np.testing.assert_allclose(np.array(found["x"]).reshape(wanted.shape), wanted.numpy(), atol=3e-5, rtol=3e-5)
    pixels = np.array(found["bytes"]).reshape(4, 3, 5, 4)
    channels = visible(wanted).shape[-1]
    assert np.abs(pixels[..., :channels].astype(int) - visible(wanted)).max() <= 1
    assert (pixels[..., 3] == 255).all()


PROMPTS = [
    "A red CAT, and a\u00a0blue_dog!", "", " \x1c\x85\u2003\n", "e\u0301te\u0301 \u00c9T\u00c9", "\u8d64\u3044\u732b",
    "\U0001f431 x\u00b2 \u2167 \u2460",
    "\u03a3\u0391\u03a3 \u0130I", "\u0645\u0631\u062d\u0628\u0627", "\ufeffa\u200bb",
    "a cat " * 9, "don't 3.14 \u093f\u0928\u094d",
]  # fmt: skip


def test_tokens_of_prompts_are_pythons():
    tokens = Tokens(("red", "a", "cat", "\u00e9t\u00e9", ","), 24)
    script = "const t = new Tokens(given.text); write(given.prompts.map((p) => [t.encode(p), t.hint(p)]))"
    found = node(script, {"text": tokens.plain, "prompts": PROMPTS})
    for prompt, (ids, hint) in zip(PROMPTS, found, strict=True):
        assert ids == tokens.encode([prompt])[0].tolist(), ascii(prompt)
        assert bool(hint) == bool(tokens.hint(prompt) and tokens.encode([prompt]).any()), ascii(prompt)
    assert found[0][1] == "not among the words of training: \u201cand\u201d, \u201cblue\u201d, \u201c_\u201d and 2 more"
    assert found[9][1] == "" and "27 tokens, of which the first 24 are read" in node(
        "write(new Tokens(given).hint('a red cat '.repeat(9)))", tokens.plain
    )


def test_evaluations_are_counted():
    class Counting(nn.Module):
        rows = 0

        def forward(self, x, clock, y=None, keep=None):
            self.rows += len(x)
            return x

    for sampler in (DDIM(5), Heun(5), DPMSolver(5), DDPM(5)):
        net = Counting()
        Pipeline(Denoiser(net, Karras(), EDM()), sampler, shape=(1, 4, 4)).sample(3)
        name = type(sampler).__name__
        assert node(f'write(evaluations("{name}", 5, 3, false))') == net.rows


@pytest.mark.parametrize("colours", [2, 256, 5000])
def test_films_are_read_by_pillow(colours):
    rng = np.random.default_rng(0)
    H, W = 40, 70
    table = np.column_stack([rng.integers(0, 256, (colours, 3)), np.full(colours, 255)])
    table[:2] = [0, 0, 0, 255], [255, 255, 255, 255]
    frames = table[rng.integers(0, colours, (3, H, W))].astype("u1")
    script = f"""gif(given.map((f) => Uint8ClampedArray.from(f)), {W}, {H}, [7, 7, 200]).arrayBuffer()
        .then((b) => write([...new Uint8Array(b)]))"""
    film = Image.open(io.BytesIO(bytes(node(script, frames.reshape(3, -1).tolist()))))
    assert film.n_frames == 3 and film.info["loop"] == 0 and film.size == (W, H)
    for k, frame in enumerate(frames):
        film.seek(k)
        assert film.info["duration"] == (2000 if k == 2 else 70)
        error = np.abs(np.array(film.convert("RGB")).astype(int) - frame[..., :3])
        assert error.max() == 0 if colours <= 256 else error.mean() < 15


def test_sheets_have_gaps():
    bytes_ = [k + 1 for k in range(3) for _ in range(2 * 2 * 4)]
    found = node(
        "const s = sheet(Uint8ClampedArray.from(given), 3, 2, 2, 2, 2); write({...s, data: [...s.data]})", bytes_
    )
    assert (found["width"], found["height"]) == (10, 10)
    sheet = np.array(found["data"]).reshape(10, 10, 4)[..., 0]
    assert (sheet[:4, :4] == 1).all() and (sheet[:4, 6:] == 2).all() and (sheet[6:, :4] == 3).all()
    assert not sheet[4:6].any() and not sheet[:, 4:6].any() and not sheet[6:, 6:].any()
