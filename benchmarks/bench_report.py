"""How long the report takes to write and to open: one step of 500 responses of 2,000 tokens, and a run of 100 steps.

    python benchmarks/bench_report.py     # needs selenium, chromium and chromedriver

Opening is from the navigation to the first response on the page; then another step is chosen, until it is shown.
"""

import pathlib
import sys
import tempfile
import time

import common
from etils import epath
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from entropy_rl.report import page

sys.path.insert(0, str(common.ROOT / "tests"))
import chromium  # noqa: E402  # both are shared with the tests
from recorded_runs import write_run  # noqa: E402


def main() -> None:
    print("| run | MB | written, s | opened, s | another step, s |\n|---|---|---|---|---|")
    works = {
        "2 steps of 500 responses of up to 2,000 tokens": (2, 500, 2000),
        "100 steps of 256 responses of up to 200 tokens": (100, 256, 200),
    }
    with chromium.start() as browser:
        for name, (steps, responses, length) in works.items():
            with tempfile.TemporaryDirectory() as folder:
                root = epath.Path(folder)
                write_run(root / "run", 0, tuple(range(1, 1 + steps)), responses, length)
                started = time.perf_counter()
                page.write(root / "page", name, [], {"run": str(root / "run")}, "")
                written = time.perf_counter() - started
                size = sum(p.stat().st_size for p in pathlib.Path(root / "page").rglob("*") if p.is_file())
                browser.get("about:blank")
                started = time.perf_counter()
                browser.get(f"file://{root / 'page' / 'index.html'}")
                shown(browser, f"step={steps}&")
                opened = time.perf_counter() - started
                started = time.perf_counter()
                Select(browser.find_element(By.ID, "step")).select_by_value("1")
                shown(browser, "step=1&")
                changed = time.perf_counter() - started
                print(f"| {name} | {size / 1e6:.0f} | {written:.1f} | {opened:.1f} | {changed:.1f} |", flush=True)


def shown(browser: webdriver.Chrome, fragment: str) -> None:
    """Waits until the address names the step and its tokens are there."""
    wait = WebDriverWait(browser, 60, poll_frequency=0.02)
    wait.until(lambda b: fragment in b.current_url and b.find_elements(By.CSS_SELECTOR, "#shown [data-i]"))


if __name__ == "__main__":
    main()
