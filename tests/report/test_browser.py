"""The report in headless Chromium: nothing in the console, the viewer's controls, keys and links, contrast.

Skipped where Chromium is not installed.
"""

import functools
import pathlib
import shutil

import axe_core_python
import chromium
import pytest
from etils import epath
from recorded_runs import EVIL, G, N, write_run
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from entropy_rl.report import page
from entropy_rl.report.figure import Figure

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not chromium.INSTALLED, reason="no chromium here"),
]
AXE = pathlib.Path(axe_core_python.__file__).with_name("axe.min.js").read_text()
SIZES, THEMES = (400, 1400), ("light", "dark")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = {f"one {EVIL}": str(folder / "one"), "other": str(folder / "other")}
    for seed, workdir in enumerate(runs.values()):
        write_run(workdir, seed)

    def draw(canvas):
        canvas.subplots().plot([1, 2], [3, 1])

    figures = [Figure("drawn", f"A figure {EVIL}", EVIL, "2505.22617, figure 1", [{"x": 1, EVIL: EVIL}], draw)]
    page.write(epath.Path(folder / "page"), f"Runs {EVIL}", figures, runs, EVIL)
    return folder / "page" / "index.html"


@pytest.fixture(scope="module")
def browser():
    driver = chromium.start()
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def opened(browser, report, width=1400, theme="light", fragment=""):
    browser.get("about:blank")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    browser.get(f"file://{report}{fragment}")
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#shown [data-i]"))


def wait(browser, condition):
    return WebDriverWait(browser, 30).until(lambda _: condition())


def find(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def choose(browser, control, value):
    Select(find(browser, f"#{control}")[0]).select_by_value(value)


def tokens(browser, within="#shown article"):
    return find(browser, f"{within} [data-i]")


def quiet(browser):
    """The console has nothing in it, and nothing that a model wrote has run."""
    assert browser.get_log("browser") == []
    assert browser.title.startswith("Runs </script>") and browser.title != "ran"
    assert not find(browser, "img[src=x]")


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("theme", THEMES)
def test_it_opens_without_a_word_in_the_console_and_fits(browser, report, width, theme):
    opened(browser, report, width, theme)
    quiet(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 300) == (theme == "dark")


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("colour", ["entropy", "covariance", "advantage", "ratio", "fate"])
def test_contrast_names_and_roles(browser, report, width, theme, colour):
    opened(browser, report, width, theme, f"#colour={colour}&group=1")
    run = "axe.run().then(done, (e) => done({violations: [String(e)]}))"
    found = browser.execute_async_script(f"{AXE}; const done = arguments[arguments.length - 1]; {run}")
    assert [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in found["violations"]] == []
    assert any(p["id"] == "color-contrast" for p in found["passes"])


@pytest.mark.parametrize("width", SIZES)
def test_hover_shows_every_number_of_the_token(browser, report, width):
    opened(browser, report, width)
    token = tokens(browser)[2]
    webdriver.ActionChains(browser).scroll_to_element(token).move_to_element(token).perform()
    wait(browser, lambda: find(browser, "#tip")[0].is_displayed())
    tip = find(browser, "#tip")[0]
    for word in ("entropy", "covariance", "advantage", "ratio", "fate", "probability", "gradient"):
        assert word in tip.text
    box = tip.rect
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    quiet(browser)


@pytest.mark.parametrize("width", SIZES)
def test_sort_search_and_steps(browser, report, width):
    opened(browser, report, width)
    choose(browser, "sort", "entropy")
    entropies = [float(e.text.split("entropy ")[1].split(" ")[0]) for e in find(browser, "#list .facts")]
    assert entropies == sorted(entropies, reverse=True) and len(entropies) == N * G
    choose(browser, "sort", "reward")
    rewards = [float(e.text.split("reward ")[1].split(" ")[0]) for e in find(browser, "#list .facts")]
    assert rewards == sorted(rewards, reverse=True) and len(set(rewards)) == 2
    find(browser, "#search")[0].send_keys("break")
    wait(browser, lambda: find(browser, "#count")[0].text.startswith("1 of"))
    find(browser, "#search")[0].clear()
    find(browser, "#search")[0].send_keys("question 3")
    wait(browser, lambda: find(browser, "#count")[0].text.startswith(f"{G} of"))
    choose(browser, "step", "1")
    wait(browser, lambda: "step=1&" in browser.current_url)
    quiet(browser)


@pytest.mark.parametrize("width", SIZES)
def test_groups_and_the_same_prompt_elsewhere(browser, report, width):
    opened(browser, report, width)
    find(browser, "#group")[0].click()
    wait(browser, lambda: len(find(browser, "#shown > .columns article")) == G)
    choose(browser, "against", "other 1")
    wait(browser, lambda: len(find(browser, ".other article")) == G)
    assert len(find(browser, ".other table tr")) == 5  # the head, and four differences
    quiet(browser)


def test_colours_follow_the_values(browser, report):
    opened(browser, report)

    def shades():
        return [t.value_of_css_property("background-color") for t in tokens(browser)]

    by_entropy = shades()
    assert len(set(by_entropy)) > 3
    choose(browser, "colour", "advantage")
    wait(browser, lambda: len(set(shades())) == 1)  # one for all tokens of a response
    choose(browser, "colour", "fate")
    wait(browser, lambda: len(set(shades())) == 3)
    assert [e.text for e in find(browser, ".legend span")] == ["kept", "clip", "kl_cov"]


@pytest.mark.parametrize("width", SIZES)
def test_a_token_has_a_link_and_keys_move_from_one_to_the_next(browser, report, width):
    opened(browser, report, width, fragment="#run=other&step=1&prompt=3&sample=2&token=4&colour=covariance")
    marked = functools.partial(find, browser, ".marked")
    wait(browser, marked)
    fifth = int(tokens(browser)[4].get_attribute("data-i"))
    assert [t.get_attribute("data-i") for t in marked()] == [str(fifth)]
    assert find(browser, "#colour")[0].get_attribute("value") == "covariance"
    box = find(browser, "#shown article")[0]
    browser.execute_script("arguments[0].focus()", box)
    box.send_keys(Keys.ARROW_RIGHT)
    wait(browser, lambda: "token=5" in browser.current_url)
    assert find(browser, "#tip")[0].is_displayed()
    again = browser.current_url
    box.send_keys(Keys.ESCAPE)
    wait(browser, lambda: not find(browser, "#tip")[0].is_displayed())
    opened(browser, report, width, fragment=again[again.index("#") :])
    wait(browser, marked)
    assert marked()[0].get_attribute("data-i") == str(fifth + 1)
    quiet(browser)


@pytest.mark.parametrize(
    "fragment",
    [
        "#run=none&step=abc&colour=__proto__&sort=evil&against=none 7&prompt=x",
        "#step=99&prompt=5000&sample=77&token=12345678901234567890&colour=toString",
        "#run=other&prompt=3&sample=77&token=99999&against=other 99",
        "#run=%E0%A4%A&group=<script>",
    ],
)
def test_an_address_that_names_nothing_shows_what_there_is(browser, report, fragment):
    opened(browser, report, fragment=fragment)
    values = {
        name: find(browser, f"#{name}")[0].get_attribute("value") for name in ("step", "colour", "sort", "against")
    }
    assert values == {"step": "10", "colour": "entropy", "sort": "order", "against": ""}
    assert len(find(browser, "#list [aria-current]")) == 1
    browser.execute_script("location.hash = '#run=other&step=1&prompt=4&sample=1&token=2&colour=ratio'")
    wait(browser, lambda: find(browser, ".marked"))
    assert (
        find(browser, "#run")[0].get_attribute("value") == "other"
        and "sample 1" in find(browser, "article .facts")[0].text
    )
    browser.execute_script("location.hash = '#step=-1'")
    wait(browser, lambda: "step=10&" in browser.current_url and not find(browser, ".marked"))
    quiet(browser)


def test_beside_lists_where_the_problem_is_and_differences_leave_out_what_is_not_known(browser, tmp_path):
    write_run(tmp_path / "a", 0, steps=(1,))
    write_run(tmp_path / "b", 1, steps=(1, 2), unscored=2)
    write_run(tmp_path / "c", 1, steps=(1,), responses=4)  # one problem alone
    page.write(epath.Path(tmp_path / "page"), "Runs </script>", [], {n: str(tmp_path / n) for n in "abc"}, "")
    opened(browser, tmp_path / "page" / "index.html", fragment=f"#run=a&prompt={N}&sample=0&group=1")
    groups = [
        (group.get_attribute("label"), [o.get_attribute("value") for o in group.find_elements(By.TAG_NAME, "option")])
        for group in find(browser, "#against optgroup")
    ]
    assert groups == [("with this problem", ["b 1", "b 2"]), ("without it", ["c 1"])]
    choose(browser, "against", "b 1")
    wait(browser, lambda: len(find(browser, ".other article")) == G)
    head, reward, *_ = (
        [c.text for c in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in find(browser, ".other tr")
    )
    assert head == ["mean of the group", "a, step 1", "b, step 1", "difference"]
    facts = [box.text for box in find(browser, ".other article .facts")]
    known = [float(text.split("reward ")[1].split(" ")[0]) for text in facts if "reward –" not in text]
    assert len(known) == G - 2 and float(reward[2]) == sum(known) / len(known)
    find(browser, "#sort")[0].send_keys("reward")
    wait(browser, lambda: "sort=reward" in browser.current_url)
    choose(browser, "run", "b")
    last = [box.text for box in find(browser, "#list .facts")][-2:]
    assert all("reward –" in text for text in last)
    opened(browser, tmp_path / "page" / "index.html", fragment=f"#run=a&prompt={N}&sample=0&against=c+1")
    wait(
        browser, lambda: "not drawn, or not recorded" in (find(browser, ".other") or [find(browser, "body")[0]])[0].text
    )
    quiet(browser)


def test_every_control_can_be_reached_by_keyboard(browser, report):
    opened(browser, report)
    reached = set()
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    for _ in range(60):
        element = browser.switch_to.active_element
        reached.add(element.get_attribute("id") or element.tag_name)
        element.send_keys(Keys.TAB)
    assert {"run", "step", "colour", "sort", "search", "against", "group", "button", "article", "a"} <= reached


def test_a_missing_file_of_data_is_named(browser, report, tmp_path):
    shutil.copytree(report.parent, tmp_path / "page")
    gone = next((tmp_path / "page" / "data").glob("run1-step10.js"))
    gone.unlink()
    opened(browser, tmp_path / "page" / "index.html")
    choose(browser, "run", "other")
    wait(browser, lambda: "run1-step10.js could not be read" in find(browser, "#shown")[0].text)


def test_five_hundred_responses_of_two_thousand_tokens(browser, tmp_path):
    write_run(tmp_path / "large", 0, steps=(1,), responses=500, length=2000)
    page.write(epath.Path(tmp_path / "page"), "Runs </script>", [], {"large": str(tmp_path / "large")}, "")
    opened(browser, tmp_path / "page" / "index.html")
    assert find(browser, "#count")[0].text == "500 of 500 responses"
    assert len(tokens(browser)) > 1000
