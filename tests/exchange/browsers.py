"""Headless browsers for tests of a page from file://: chromium with chromedriver, firefox with geckodriver."""

import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

BROWSERS = {
    "chromium": (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)),
    "firefox": (("firefox", "firefox-esr"), ("geckodriver",)),
}
STATE = "return document.body.dataset.state"
PIXELS = """return [...document.querySelectorAll("#pictures canvas")].map((c) => {
  const copy = new OffscreenCanvas(c.width, c.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(c, 0, 0);
  return [...copy.getImageData(0, 0, c.width, c.height).data];
})"""
SET = """const [id, value] = arguments, input = document.getElementById(id);
  input.value = value; input.dispatchEvent(new Event("input", { bubbles: true }))"""


class Opened:
    """A page in a browser.

    Attributes: driver; downloads, the folder of what it saves; messages, Firefox's in the console.
    """

    def __init__(self, kind, driver, downloads):
        self.kind, self.driver, self.downloads, self.messages = kind, driver, downloads, []
        if kind == "firefox":
            driver.script.add_console_message_handler(lambda entry: self.messages.append(entry.text))
            driver.script.add_javascript_error_handler(lambda entry: self.messages.append(entry.text))

    def wait(self, what, seconds=600):
        """What a function returns once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := what():
                return found
            time.sleep(0.1)
        raise TimeoutError(self.text("status"))

    def until(self, *states):
        return self.wait(lambda: (state := self.driver.execute_script(STATE)) in states and state)

    def text(self, name):
        return self.driver.find_element("id", name).get_attribute("textContent")

    def click(self, name):
        self.driver.find_element("id", name).click()

    def set(self, **values):
        for name, value in values.items():
            self.driver.execute_script(SET, name, str(value))

    def sampled(self, **values):
        """The pictures (n, H, W, 4) uint8 of these choices."""
        self.set(**values)
        self.click("go")
        assert self.until("idle", "failed") == "idle", self.text("status")
        return self.pixels()

    def pixels(self):
        side = self.driver.execute_script("return document.querySelector('#pictures canvas').height")
        return np.array(self.driver.execute_script(PIXELS), "u1").reshape(self.count(), side, -1, 4)

    def count(self):
        return len(self.driver.find_elements("css selector", "#pictures canvas"))

    def saved(self, suffix):
        """The file that the page saves next."""

        def found():
            files = [f for f in self.downloads.iterdir() if f.suffix == suffix and f.stat().st_size]
            return files and not list(self.downloads.glob("*.part")) and not list(self.downloads.glob("*.crdownload"))

        self.wait(found)
        (file,) = self.downloads.glob(f"*{suffix}")
        content = file.read_bytes()
        file.unlink()
        return content

    def complaints(self):
        """Messages in the console, and requests except for the file and the worker's address in memory."""
        if self.kind == "firefox":
            loaded = self.driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
            return self.messages + [name for name in loaded if not name.startswith("blob:")]
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        urls += [e["params"]["url"] for e in events if e["method"] == "Network.webSocketCreated"]
        pages = [url for url in urls if url.startswith("file://")]
        others = [url for url in urls if not url.startswith(("file://", "blob:null/", "data:,"))]
        return [e["message"] for e in self.driver.get_log("browser")] + others + pages[1:]


@contextmanager
def opened(kind, page, folder, width=1200, height=900):
    """A page in a browser; the test is skipped if it, its driver or selenium is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no browser test: pip install selenium")
    programs = [next(filter(None, map(shutil.which, names)), None) for names in BROWSERS[kind]]
    if None in programs:
        pytest.skip(
            f"no browser test in {kind}: install it and its driver ({' and '.join(n[0] for n in BROWSERS[kind])})"
        )
    downloads = Path(folder) / "downloads"
    downloads.mkdir(exist_ok=True)
    make = chromium if kind == "chromium" else firefox
    driver = make(webdriver, *programs, downloads, (width, height))
    try:
        driver.set_page_load_timeout(600)
        found = Opened(kind, driver, downloads)
        driver.get(Path(page).resolve().as_uri())
        yield found
    finally:
        driver.quit()


def chromium(webdriver, program, driver, downloads, size):
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking",
                 "disable-component-update", "disable-sync", f"window-size={size[0]},{size[1]}"):  # fmt: skip
        options.add_argument(f"--{word}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def firefox(webdriver, program, driver, downloads, size):
    options = webdriver.FirefoxOptions()
    options.binary_location = program
    options.add_argument("-headless")
    options.enable_bidi = True
    for name, value in {
        "browser.download.folderList": 2, "browser.download.dir": str(downloads),
        "browser.download.alwaysOpenPanel": False,
    }.items():  # fmt: skip
        options.set_preference(name, value)
    opened = webdriver.Firefox(options, webdriver.FirefoxService(driver))
    opened.set_window_size(*size)
    return opened
