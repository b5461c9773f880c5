"""The atlas: its knobs, its table and page by made-up runs whose answer is known, and by real ones."""

import csv
import importlib
import json
import pathlib
import subprocess
import sys

import chromium
import numpy as np
import pytest
import small_runs

from entropy_rl.config.recipes import RECIPES
from entropy_rl.sweep.plan import plan

ROOT = pathlib.Path(__file__).parents[1]
load = importlib.import_module


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results" / "atlas")


def test_every_recipe_has_a_knob_with_three_legal_values():
    """The runs that choose it: the configuration of each is checked as a run checks it, before any work."""
    knobs = load("knobs")
    assert not knobs.KNOBS.keys() - RECIPES.keys()
    for method in RECIPES:
        key, values = knobs.knob_of(method)
        more = [tuple(setting.split("=")) for setting in knobs.settings_of(method)]
        made = plan("configs/study.py:two_readings", [method], [100], [*more, (key, values)])
        assert len({job.folder for job in made.jobs}) == 3, method
    assert knobs.knob_of("a method of one's own") == ("optim.lr", "1e-4,2e-4,4e-4")


def test_the_value_with_the_highest_mean_accuracy_and_of_equals_the_first():
    rows = [{"arm": f"m,k={v}", "accuracy": str(a)} for v, a in ((1, 0.5), (1, 0.7), (2, 0.6), (2, 0.6), (3, 0.1))]
    assert load("enter").best(rows) == "1"
    assert load("enter").best([*rows, {"arm": "m,k=4", "accuracy": "0.61"}]) == "4"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["a", "b", "--knob=x=1,2,3"], "give one method, and three values"),
        (["a", "--knob=x=1,2"], "give one method, and three values"),
        (["a", "--seed=3"], "unknown: --seed=3; settings are given as --config.key=value"),
    ],
)
def test_flags_that_are_refused(capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        load("enter").parsed(flags)
    assert message in capsys.readouterr().err


def entered(folder, method, accuracy, speed, seeds=5, forks=0.8):
    """A method's file as enter.py writes it; a spread between seeds that pairing takes out."""
    (folder / "data").mkdir(exist_ok=True)
    with (folder / "data" / f"{method}.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["seed", "command", "knob", *load("page").OUTCOMES])
        for seed in range(seeds):
            of_seed = np.random.default_rng(seed).random() / 4
            outcomes = [accuracy + of_seed, "", 0.5, 0.3 + of_seed, forks, speed * (1 + of_seed)]
            rows.writerow([seed, f"train <{method}>", "a.b=0.2", *outcomes])


def test_the_table_by_hand(tmp_path):
    page = load("page")
    entered(tmp_path, "grpo", 0.5, 1000)
    entered(tmp_path, "better", 0.6, 2000, seeds=4)
    entered(tmp_path, "alone", 0.4, 500, seeds=1)
    lines = {line.method: line for line in page.lines(page.read(tmp_path / "data"))}
    assert list(lines) == ["grpo", "alone", "better"] and [line.seeds for line in lines.values()] == [5, 1, 4]
    of_seed = [np.random.default_rng(seed).random() / 4 for seed in range(5)]
    assert lines["grpo"].own["accuracy"].value == pytest.approx(0.5 + np.mean(of_seed))
    gain = lines["better"].gain
    assert gain["accuracy"] == pytest.approx((0.1, 0.1, 0.1)) and gain["tokens_per_s"].value == pytest.approx(np.log(2))
    assert np.isnan(lines["alone"].own["accuracy"].low) and np.isnan(lines["grpo"].own["pass@16"].value)


def test_the_files_that_make_results_writes(tmp_path):
    page = load("page")
    page.main(tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing was entered
    entered(tmp_path, "kl_cov", 0.6, 2000)
    with pytest.raises(ValueError, match=r"has no grpo\.csv to compare with: python results/atlas/enter\.py grpo"):
        page.main(tmp_path)
    entered(tmp_path, "grpo", 0.5, 1000)
    entered(tmp_path, "<b>", 0.5, 1000)
    page.main(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "<td title='train &lt;kl_cov&gt;'>kl_cov<td>b=0.2" in text and "<b>" not in text
    assert "× 2.00 [2.00, 2.00]" in text and "+0.100 [+0.100, +0.100]" in text
    assert "<td data-value='nan'>" in text  # what was not measured
    (base,) = (row for row in text.split("<tr>") if ">grpo<" in row)
    assert "small" not in base  # GRPO has no difference to itself
    with (tmp_path / "table.csv").open() as file:
        rows = {(row["method"], row["outcome"]): row for row in csv.DictReader(file)}
    assert len(rows) == 3 * len(page.OUTCOMES) and rows["kl_cov", "forks_kept"]["mean"] == "0.8"
    assert "kl_cov" in (tmp_path / "figure.svg").read_text()
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    page.main(tmp_path)
    assert before == {path: path.read_bytes() for path in before}  # equal data make equal files


@pytest.mark.slow
@pytest.mark.skipif(not chromium.INSTALLED, reason="no chromium here")
def test_a_click_on_a_heading_sorts(tmp_path):
    from selenium.webdriver.common.by import By

    for method, accuracy in {"grpo": 0.5, "best": 0.6, "a_worst": 0.0625}.items():
        entered(tmp_path, method, accuracy, 1000)
    load("page").main(tmp_path)
    browser = chromium.start()
    try:
        browser.get(f"file://{tmp_path / 'index.html'}")

        def after_a_click(heading):
            for button in browser.find_elements(By.CSS_SELECTOR, "th button"):
                if button.text == heading:
                    button.click()
            return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "tbody td:first-child")]

        assert after_a_click("accuracy") == ["best", "grpo", "a_worst"]
        assert after_a_click("accuracy") == ["a_worst", "grpo", "best"]
        assert after_a_click("method") == ["grpo", "best", "a_worst"]
        assert after_a_click("pass@16") == ["grpo", "best", "a_worst"]  # not measured: the order stays
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


def test_the_atlas_is_what_its_data_say(tmp_path):
    page = load("page")
    made = page.lines(page.read(page.HERE / "data"))
    there = page.HERE / "index.html"
    assert (there.read_text() if there.exists() else None) == (page.page(made) if made else None), (
        f"{there} is not what the data say: make results"
    )
    if made:
        with (page.HERE / "table.csv").open(newline="") as file:
            assert list(csv.DictReader(file)) == [{k: str(v) for k, v in row.items()} for row in page.table(made)]


@pytest.mark.slow
def test_a_method_is_entered_by_one_command(tmp_path, monkeypatch):
    """A method of the smallest run: the knob is chosen, the numbers are those of its runs, and the page is made."""
    cache = tmp_path / "cache"
    for key in ("XLA_FLAGS", "ENTROPY_RL_CACHE", "PYTHONPATH"):
        monkeypatch.setenv(key, small_runs.environment(cache)[key])
    enter, page = load("enter"), load("page")
    for name, value in {"DATA": tmp_path / "data", "SEEDS": "2", "TRIED": "100-100"}.items():
        monkeypatch.setattr(enter, name, value)
    flags = [f"--bed={small_runs.__file__}", f"--out={tmp_path / 'runs'}", "--jobs=1", "--steps=4"]
    flags += ["--config.warmup.updates=10", "--knob=optim.lr=1e-4,1e-3,1e-2"]
    path = enter.enter(enter.parsed(["grpo", *flags]), "grpo")
    assert path == tmp_path / "data" / "grpo.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1"]
    with (tmp_path / "runs" / "knobs" / "grpo" / "runs.csv").open(newline="") as file:
        assert rows[0]["knob"] == f"optim.lr={enter.best(list(csv.DictReader(file)))}"
    run = tmp_path / "runs" / "methods" / "grpo" / "runs" / "grpo" / "seed-1"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    assert float(rows[1]["accuracy"]) == last["eval/chain_sum/accuracy"]
    assert float(rows[1]["pass@16"]) == last["eval/chain_sum/pass@16"]
    assert 0 < float(rows[1]["forks_kept"]) <= 1 and float(rows[1]["tokens_per_s"]) > 0
    assert len(list((tmp_path / "runs" / "warmups").iterdir())) == 3  # one per seed
    page.main(tmp_path)
    assert "grpo" in (tmp_path / "index.html").read_text()
    command = rows[1]["command"].replace("python", sys.executable, 1).replace("WORKDIR", str(tmp_path / "again"))
    subprocess.run(command.split(), cwd=ROOT, check=True)  # the row's command makes the run again, bit for bit
    assert small_runs.rows(tmp_path / "again") == small_runs.rows(run)
