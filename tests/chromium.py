"""Chromium without a window, as the tests, the benchmark of the report and docs/images drive it.

Needs `chromium` and `chromedriver` (Debian: chromium-driver).
"""

import shutil

from selenium import webdriver

INSTALLED = bool(shutil.which("chromium") and shutil.which("chromedriver"))


def start() -> webdriver.Chrome:
    """A browser whose console is read by `get_log("browser")`; the caller quits it."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
