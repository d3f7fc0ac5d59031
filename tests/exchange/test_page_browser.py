"""The page from file:// in headless browsers: its pictures are Python's, and it asks for nothing but itself.

The runtime is downloaded from the npm registry, unless it is in the cache folder.
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion
from diffusion import Pipeline
from diffusion.cli import main
from diffusion.exchange.exporting import npm
from diffusion.generation.conditioning import PromptWarning
from diffusion.generation.conditions import contexts
from diffusion.guidance import ClassifierFree
from diffusion.pictures import to_uint8
from diffusion.samplers import DDIM, DDPM, DPMSolver, Heun

from .browsers import BROWSERS, opened

pytestmark = pytest.mark.slow
CONFIGS = {"digits": "configs/digits.yaml", "sprites": "configs/sprites.yaml"}
TEXT = [
    "--model.net.width",
    "16",
    "--model.net.head_width",
    "16",
    "--model.net.text_width",
    "16",
    "--data.limit",
    "512",
]


@pytest.fixture(scope="module")
def runtime():
    """What pages are made of; without it tests are skipped."""
    try:
        npm.archive(npm.ONNXRUNTIME)
    except ConnectionError as error:
        pytest.skip(f"no browser test: {error}")


@pytest.fixture(scope="module")
def pages(runtime, tmp_path_factory):
    """For each configuration: a model trained for a few steps, and its page."""
    folder, made = tmp_path_factory.mktemp("pages"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_OUT", str(folder / "runs"))
        for name, config in CONFIGS.items():
            words = ["--trainer.max_steps", "30", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu"]
            assert main(["fit", "-c", config, *words, "--experiment", name]) == 0
            page = diffusion.export(folder / "runs" / name, folder / f"{name}.html").files[0]
            made[name] = (Pipeline.load(folder / "runs" / name), page)
    return made


@pytest.fixture(scope="module")
def text(runtime, tmp_path_factory):
    """A small model of captions trained for a few steps, and its page."""
    folder = tmp_path_factory.mktemp("text")
    words = ["--trainer.max_steps", "30", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu", *TEXT]
    assert main(["fit", "-c", "configs/sprites_text.yaml", *words, "--out", str(folder), "--experiment", "text"]) == 0
    return Pipeline.load(folder / "text"), diffusion.export(folder / "text", folder / "text.html").files[0]


@pytest.fixture(params=BROWSERS)
def browser(request):
    """The name of each browser."""
    return request.param


def same(found, wanted):
    """Whether 8-bit pixels are equal in 99 % of the places, and nowhere far apart."""
    wanted = to_uint8(wanted)
    found = found[..., : wanted.shape[-1]]
    assert found.shape == wanted.shape and len(np.unique(wanted)) > 30
    assert np.mean(found == wanted) > 0.99 and np.abs(found.astype(int) - wanted).max() <= 3
    return True


@pytest.mark.parametrize("name", CONFIGS)
def test_pictures_are_pythons(pages, browser, name, tmp_path):
    model, file = pages[name]
    with opened(browser, file, tmp_path) as page:
        assert page.until("idle", "failed") == "idle", page.text("status")
        grid, kinds = model.sampler.grid, model.num_classes or model.context_dim
        assert same(page.sampled(steps=20, sampler="DDIM"), model.sample(kinds, sampler=DDIM(20, grid=grid)))
        samplers = {
            "DPMSolver": (DPMSolver(10, grid=grid), {}), "Heun": (Heun(10, grid=grid), {}),
            "DDPM": (DDPM(25, grid=grid), {}), "DDIM": (DDIM(25, eta=0.5, grid=grid), {"eta": 0.5}),
        }  # fmt: skip
        for kind, (sampler, more) in samplers.items():
            found = page.sampled(sampler=kind, steps=sampler.steps, number=3, seed=123456789012, scale=2.5, **more)
            wanted = model.sample(3, seed=123456789012, sampler=sampler, guidance=ClassifierFree(2.5))
            assert same(found, wanted), kind
        assert page.complaints() == []


def test_classes_and_mixes_are_chosen(pages, browser, tmp_path):
    model, file = pages["digits"]
    with opened(browser, file, tmp_path) as page:
        page.until("idle")
        for k in (3, 8):
            page.driver.find_elements("css selector", ".chip input")[k].click()
        y = torch.tensor([3, 8, 3, 8, 3])
        assert same(page.sampled(number=5, steps=10, sampler="DPMSolver"), model.sample(5, y, sampler=DPMSolver(10)))
        assert "--labels 3,8" in page.text("command")
        assert [s.text for s in page.driver.find_elements("css selector", "#pictures span")] == list("38383")
    model, file = pages["sprites"]
    with opened(browser, file, tmp_path) as page:
        page.until("idle")
        sliders = page.driver.find_elements("css selector", "[data-feature]")
        for k, value in ((0, "1"), (2, "0.35")):
            page.driver.execute_script(
                "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', { bubbles: true }))",
                sliders[k], value,
            )  # fmt: skip
        y = torch.tensor([[1.0, 0, 0.35, 0, 0]]).repeat(2, 1)
        walk = DPMSolver(10, grid=model.sampler.grid)
        assert same(page.sampled(number=2, steps=10, sampler="DPMSolver"), model.sample(2, y, sampler=walk))
        words = page.text("command").partition("--context ")[2].strip('"')
        assert torch.equal(contexts(model, words), y[:1])


def test_prompts_are_pythons(text, browser, tmp_path):
    model, file = text
    prompts, walk = ["a red cat, facing left", "a knight in blue"], DPMSolver(10, grid=model.sampler.grid)
    with opened(browser, file, tmp_path) as page:
        assert page.until("idle", "failed") == "idle", page.text("status")
        page.set(prompt="\n".join([*prompts, " "]))
        assert page.text("unread") == ""
        found = page.sampled(number=3, steps=10, sampler="DPMSolver")
        assert same(found, model.sample(3, prompt=prompts, sampler=walk))
        assert "--prompt='a red cat, facing left' --prompt='a knight in blue'" in page.text("command")
        page.set(prompt="a red Qwx, a dragon's", negative="a cat")
        assert page.text("unread").startswith("Not among the words of training: \u201cqwx\u201d, \u201cdragon\u201d")
        found = page.sampled(number=2, steps=10, sampler="DPMSolver", scale=3)
        with pytest.warns(PromptWarning):
            y = model.prompts(["a red Qwx, a dragon's"] * 2)
        guidance = ClassifierFree(3.0, negative="a cat")
        assert same(found, model.sample(2, y, sampler=walk, guidance=guidance))
        assert page.text("command").endswith("--prompt='a red Qwx, a dragon'\\''s' --negative='a cat'")
        assert page.complaints() == []


def test_the_walk_is_watched_saved_and_stopped(pages, browser, tmp_path):
    model, file = pages["sprites"]
    with opened(browser, file, tmp_path) as page:
        page.until("idle")
        pixels = page.sampled(number=4, steps=10, sampler="DPMSolver")
        page.click("png")
        sheet = np.array(Image.open(io.BytesIO(page.saved(".png"))))
        enlarged = sheet[: 16 * 4 : 4, : 16 * 4 : 4]
        assert sheet.shape[2] == 4 and np.array_equal(enlarged, pixels[0])
        page.click("gif")
        film = Image.open(io.BytesIO(page.saved(".gif")))
        assert film.n_frames == 11 and film.size == sheet.shape[1::-1]
        page.driver.find_elements("css selector", "#pictures button")[2].click()
        assert np.array_equal(np.array(Image.open(io.BytesIO(page.saved(".png"))).convert("RGBA")), pixels[2])
        page.set(step=0)
        noise = page.pixels()
        assert same(noise, model.start(4)) and "0 of 10" in page.text("step-value")
        page.set(number=100, steps=250)
        page.click("go")
        assert page.until("busy") and "picture" in page.text("status")
        page.click("stop")
        page.until("idle")
        assert page.text("status") == "Stopped."
        page.set(number=0)
        page.click("go")  # refused by the form
        assert page.driver.execute_script("return document.body.dataset.state") == "idle"
        assert page.complaints() == []


def test_a_slow_network_is_announced_and_a_phone_needs_no_sideways_scrolling(pages, tmp_path):
    with opened("chromium", pages["digits"][1], tmp_path) as page:
        size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        page.until("idle")
        page.sampled(steps=5)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
        page.set(steps=1000, number=100, sampler="Heun")
        assert "large for a browser: about" in page.text("expected")


def test_every_control_has_a_label(pages, text, tmp_path):
    unnamed = """return [...document.querySelectorAll("input, select, textarea, button, progress, pre, form")]
      .filter((e) => !e.getAttribute("aria-label") && !e.closest("label") && !e.textContent.trim())
      .map((e) => e.outerHTML)"""
    for _, file in [*pages.values(), text]:
        with opened("chromium", file, tmp_path) as page:
            page.until("idle")
            page.sampled(steps=5)
            assert page.driver.execute_script(unnamed) == []


def test_the_notices_are_shown(pages, browser, tmp_path):
    with opened(browser, pages["digits"][1], tmp_path) as page:
        page.until("idle")
        page.driver.find_element("css selector", "summary").click()
        page.click("notices-button")
        assert page.wait(lambda: "protobuf" in page.text("notices-text"))
