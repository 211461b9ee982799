"""Chromium without a window, for tests of the page.

It needs `pip install 'fsm-train[browser]'`, chromium and chromedriver.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

QUIET = ("disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
NEEDED = ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A driver of a browser with an empty profile, which ends with the block."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = _program("chromium")
        for argument in (*NEEDED, *QUIET, "hide-scrollbars", f"user-data-dir={profile}"):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = Chrome(options=options, service=ChromeService(_program("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"there is no {name}: apt-get install chromium chromium-driver")
    return path


class Page:
    """A page in the browser, from when it is opened.

    Args:
        driver: of the browser.
        path: the file.
        width, height: of the window, in pixels.
        dark: whether the system prefers dark pages.
    """

    def __init__(self, driver: Any, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.driver = driver
        self.requests: list[str] = []
        self.complaints: list[str] = []
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._read_logs()
        self.requests.clear()
        self.complaints.clear()
        begin = time.perf_counter()
        driver.get(path.as_uri())
        self.wait(lambda: self.js("return document.documentElement.dataset.ready") == "yes")
        self.seconds = time.perf_counter() - begin

    def js(self, code: str, *arguments: object) -> Any:
        """What the code returns."""
        return self.driver.execute_script(code, *arguments)

    def wait(self, holds: Callable[[], bool], seconds: float = 180) -> None:
        """Wait until it holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "the page is not ready"
            time.sleep(0.01)

    def press(self, *keys: str) -> None:
        """Press keys one after the other, as the keyboard does."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.driver, duration=0)
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def click(self, selector: str, text: str = "") -> None:
        """Press the first element that the selector finds, and whose text begins so."""
        code = """
            const all = [...document.querySelectorAll(arguments[0])];
            const found = all.find((one) => one.textContent.startsWith(arguments[1]));
            found.scrollIntoView({block: "center"});
            found.click();
        """
        self.js(code, selector, text)

    @property
    def line(self) -> int:
        """The number of the line at the cursor."""
        return int(self.js("return document.getElementById('line').value"))

    @property
    def phase(self) -> str:
        return str(self.js("return document.querySelector('.phase').textContent"))

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).innerText", selector))

    def table(self) -> dict[str, list[str]]:
        """The rows of the state: by name, what the title of each column's cell says in full."""
        code = """
            return [...document.querySelectorAll(".values tr:not(.part) th[scope=row]")].map((name) => [
                `${name.closest("tbody").querySelector(".part").textContent}.${name.firstChild.textContent}`,
                [...name.parentElement.querySelectorAll("td")].map((cell) => cell.title || cell.textContent),
            ]);
        """
        return dict(self.js(code))

    def overflows(self) -> bool:
        """Whether one has to scroll to the side."""
        return bool(self.js("return document.documentElement.scrollWidth > window.innerWidth"))

    def check(self) -> None:
        """Refuse a page that complained in the console, or that asked for anything but itself."""
        self._read_logs()
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith("file://")] == []
        assert len(self.requests) <= 1

    def _read_logs(self) -> None:
        self.complaints += [str(entry["message"]) for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
