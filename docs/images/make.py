"""The pictures of docs/report.md: a report in Chromium, in two sizes and two themes.

python docs/images/make.py runs/grpo/report     # needs selenium, chromium and chromedriver
"""

import pathlib
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
import chromium  # noqa: E402  # shared with the tests

TOKENS = "document.getElementById('tokens').scrollIntoView()"
HOVER = """const token = document.querySelectorAll('#shown [data-i]')[4];
token.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))"""
PICTURES = {  # name -> (width, height, theme, what follows the address, scripts)
    "figures": (1400, 1250, "light", "", ()),
    "viewer": (
        1400,
        820,
        "light",
        "#run=kl_cov&step=40&sort=reward&colour=covariance&group=1",
        (TOKENS, HOVER),
    ),
    "viewer-dark": (400, 1100, "dark", "#run=grpo&step=80&colour=entropy&group=1", (TOKENS,)),
}


def main() -> None:
    """Makes all of them."""
    page = pathlib.Path(sys.argv[1]).resolve() / "index.html"
    with chromium.start() as browser:
        for name, (width, height, theme, fragment, scripts) in PICTURES.items():
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            features = [{"name": "prefers-color-scheme", "value": theme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            browser.get("about:blank")
            browser.get(f"{page.as_uri()}{fragment}")
            time.sleep(2)
            for script in scripts:
                browser.execute_script(script)
                time.sleep(0.5)
            browser.save_screenshot(str(HERE / f"{name}.png"))


if __name__ == "__main__":
    main()
