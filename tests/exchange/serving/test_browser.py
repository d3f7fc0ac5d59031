"""The page in a browser: pictures are made, edited with a drawn mask and downloaded. Needs Chromium and selenium.

With $DIFFUSION_SHOTS, a folder, each step also leaves a screenshot there.
"""

import io
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra `ui` is not installed")
pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from diffusion.exchange.serving.server import launch

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ui,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver"),
]
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update",
    "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class Visit:
    """A browser on the page."""

    def __init__(self, address, folder, size):
        options, self.folder, self.size, self.log = webdriver.ChromeOptions(), folder, size, []
        options.binary_location = BROWSER
        for flag in FLAGS:
            options.add_argument(f"--{flag}")
        several = "profile.default_content_setting_values.automatic_downloads"
        options.add_experimental_option("prefs", {"download.default_directory": str(folder), several: 1})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.set_script_timeout(600)  # as long as `until` waits
        self.sized(SIZES[size][1])
        self.driver.get(address)
        self.until(self.answered)  # the controls of the first model are there

    def sized(self, height):
        metrics = {"width": SIZES[self.size][0], "height": height, "deviceScaleFactor": 1}
        phone = {"mobile": self.size == "phone"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics | phone)

    def until(self, there):
        return WebDriverWait(self.driver, 600).until(lambda _: there())

    def events(self):
        """What the network has done so far."""
        self.log += [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        return self.log

    def requests(self, part=""):
        """The addresses that were asked for so far, those that contain `part`."""
        sent = [e["params"]["request"]["url"] for e in self.events() if e["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if part in address]

    def answered(self):
        """Whether the page has begun to receive answers of the server, and has received them all."""
        opened, ended = set(), set()
        for event in self.events():
            if event["method"] == "Network.requestWillBeSent" and "/queue/data" in event["params"]["request"]["url"]:
                opened.add(event["params"]["requestId"])
            if event["method"] in ("Network.loadingFinished", "Network.loadingFailed"):  # it closes what it has read
                ended.add(event["params"]["requestId"])
        return opened and opened <= ended

    def still(self, canvas):
        """The middle of a canvas once it shows more than a few colours and is the same twice in a row."""
        seen = [None]

        def drawn():
            shot = np.asarray(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB"))
            h, w = shot.shape[:2]
            seen.append(shot[h // 4 : h - h // 4, w // 4 : w - w // 4])
            several = len(np.unique(seen[-1].reshape(-1, 3), axis=0)) > 8
            return several and np.array_equal(seen[-1], seen[-2])

        self.until(drawn)
        return seen[-1]

    def shown(self, selector):
        return [e for e in self.driver.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()]

    def button(self, text):
        found = self.driver.find_elements(By.XPATH, f"//button[normalize-space()='{text}']")
        return next((b for b in found if b.is_displayed()), None)

    def click(self, text):
        found = self.until(lambda: self.button(text))
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def command(self):
        shown = "[...document.querySelectorAll('.command textarea')].filter(e => e.offsetParent).map(e => e.value)"
        return "\n".join(self.driver.execute_script(f"return {shown}"))

    def download(self, name):
        link = next(a for a in self.shown("a[download]") if a.get_attribute("download") == name)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", link)
        self.until(lambda: (self.folder / name).exists())
        return self.folder / name

    def shot(self, name):
        if folder := os.environ.get("DIFFUSION_SHOTS"):
            self.sized(max(SIZES[self.size][1], self.driver.execute_script("return document.body.scrollHeight")))
            time.sleep(1)
            self.driver.save_screenshot(str(Path(folder) / f"{self.size}_{name}.png"))


@pytest.fixture(params=SIZES)
def visit(request, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    with launch([os.environ.get("DIFFUSION_SHOWN", "runs/digits")], device="cpu") as server:
        visit = Visit(server.address, tmp_path, request.param)
        yield visit
        visit.driver.quit()


def test_a_visitor_samples_edits_and_downloads(visit):
    visit.click("Make pictures")
    visit.until(lambda: len(visit.shown(".pixels .grid-container img")) == 16)
    assert "--n 16 --seed 0 --out grid.png" in visit.command()
    assert np.asarray(Image.open(visit.download("grid.png"))).ndim == 2
    visit.shot("sample")
    visit.click("Edit this picture")
    visit.until(lambda: visit.shown("#editor canvas"))
    canvas = visit.shown("#editor canvas")[0]
    visit.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    before = visit.still(canvas)
    draw = ActionChains(visit.driver).move_to_element_with_offset(canvas, -60, -60).click_and_hold()
    for step in range(12):
        draw = draw.move_by_offset(10, 10 if step % 2 else 5)
    draw.release().perform()
    visit.until(lambda: not np.array_equal(visit.still(canvas), before))
    visit.click("Edit the picture")
    visit.until(lambda: "edit inpaint" in visit.command())
    visit.until(lambda: len(visit.shown(".pixels .grid-container img")) == 4)
    assert len(visit.requests("/gradio_api/upload")) == 3  # background, strokes and both; not again at each progress
    mask = np.asarray(Image.open(visit.download("mask.png")))
    before, after = (np.asarray(Image.open(visit.download(name))) for name in ("input.png", "inpaint.png"))
    assert mask.shape == before.shape == (8, 8) and 0 < (mask == 255).sum() < 40 and after.ndim == 2
    visit.shot("edit")
    if visit.size == "desktop":
        for tab, start, name in (("Film", "Make a film", "film"), ("Compare", "Compare both", "compare")):
            visit.driver.execute_script("window.scrollTo(0, 0)")
            next(b for b in visit.shown("button[role=tab]") if b.text.strip() == tab).click()
            visit.click(start)
            visit.until(lambda: visit.command())
            visit.shot(name)
    errors = [e["message"] for e in visit.driver.get_log("browser") if e["level"] == "SEVERE"]
    assert not errors
    sent = visit.requests()
    assert sent and not [url for url in sent if url.startswith("http") and not url.startswith("http://127.0.0.1")]
