"""The verdicts on the claims: by made-up runs whose answer is known, and the pages against their data."""

import csv
import importlib
import json
import math
import pathlib

import numpy as np
import pytest

from entropy_rl.sweep.statistics import Estimate

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results" / "claims")


load = importlib.import_module


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The two scripts, on a folder of their own, and a function that writes a sweep and collects it."""
    collect, runs, verdicts = load("collect"), load("runs"), load("verdicts")
    for module in (collect, runs):
        monkeypatch.setattr(module, "DATA", tmp_path / "data")
    monkeypatch.setattr(verdicts, "HERE", tmp_path)

    def sweep(name, rows_of, arms, seeds=5):
        folder, runs = tmp_path / name, []
        for arm in arms:
            for seed in range(seeds):
                run = folder / "runs" / arm / f"seed-{seed}"
                run.mkdir(parents=True)
                rows = rows_of(arm, np.random.default_rng(seed))
                (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                runs.append({"arm": arm, "seed": seed, "state": "done", "folder": f"runs/{arm}/seed-{seed}"})
        runs.append({"arm": arms[0], "seed": seeds, "state": "missing", "folder": "runs/none"})
        with (folder / "runs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, runs[0])
            writer.writeheader()
            writer.writerows(runs)
        assert collect.collect(folder) == len(arms) * seeds

    return verdicts, sweep


def run_of(entropy, rng, accuracy=0.5, steps=100):
    """A run whose reward is linear in exp(entropy), with noise."""
    h = entropy(np.arange(steps) / steps)
    reward = 2 - np.exp(h) + 0.01 * rng.standard_normal(steps)
    rows = [{"step": 0, "eval/task/accuracy": 0.1, "time": 1.0}]
    for i in range(steps):
        rows.append({"step": i + 1, "entropy/mean": h[i], "reward/mean": reward[i], "length/mean": 9 + rng.random()})
    rows[-1]["eval/task/accuracy"] = accuracy
    return rows


def falling(x):
    return 0.5 * np.exp(-8 * x)


def slow(x):
    return 0.5 * (1 - x)


@pytest.mark.parametrize("entropy, expected", [(falling, "holds"), (slow, "fails")])
def test_entropy_that_is_spent_early(made, entropy, expected):
    verdicts, sweep = made
    sweep("a_core", lambda arm, rng: run_of(entropy, rng), ["grpo"])
    (found,) = verdicts.judge("01_entropy_is_spent_early").values()
    assert verdicts.verdict(found) == expected
    used = next(p for p in found if p.text.startswith("share of the entropy used at a third"))
    assert used.effect.value == pytest.approx(0.93 if entropy is falling else 0.34, abs=0.02) and used.seeds == 5


def test_the_law_and_a_run_whose_entropy_is_held(made):
    verdicts, sweep = made
    sweep("a_core", lambda arm, rng: run_of(falling, rng), ["grpo"])
    sweep("a_held", lambda arm, rng: run_of(lambda x: 0.2 + 0.3 * np.exp(-9 * x), rng), ["adaptive_entropy"])
    parts = verdicts.judge("02_reward_is_bought_with_entropy")["A"]
    assert [p.verdict for p in parts] == ["holds"] * 6
    assert abs(parts[-1].effect.value) < 2
    sweep("b_core", lambda arm, rng: run_of(falling, rng), ["grpo"])

    def better_than_its_entropy(arm, rng):
        rows = run_of(lambda x: 0.2 + 0 * x, rng)
        return [row | ({"reward/mean": 0.99} if "reward/mean" in row else {}) for row in rows]

    sweep("b_held", better_than_its_entropy, ["adaptive_entropy"])
    assert verdicts.judge("02_reward_is_bought_with_entropy")["B"][-1].verdict == "fails"


def test_everything_that_make_results_writes(made, tmp_path, monkeypatch):
    """The pages, figures and tables of one claim that has data and of those that have none."""
    verdicts, sweep = made
    for name in verdicts.CLAIMS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"# {name}\n")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- claims -->\nold\n<!-- /claims -->\nafter\n")
    monkeypatch.setattr(verdicts, "README", readme)
    sweep("b_core", lambda arm, rng: run_of(falling, rng), ["grpo", "rloo", "reinforce_pp"])
    sweep("d_core", lambda arm, rng: run_of(falling, rng), ["grpo"])  # which claims 1 to 6 do not ask for
    verdicts.main()
    first = tmp_path / "01_entropy_is_spent_early"
    figure = (first / "effects.svg").read_text()
    assert "share of the gain made at a third of the steps (holds)" in figure and "reported" not in figure
    assert "| **B** | | | | | **holds** |" in (first / "VERDICT.md").read_text()
    assert not (tmp_path / "05_clip_cov_and_kl_cov_hold_entropy" / "VERDICT.md").exists()
    table = (tmp_path / "table.md").read_text()
    assert "| [01_entropy_is_spent_early](results/claims/01_entropy_is_spent_early) |  | holds |  |" in table
    assert readme.read_text() == f"before\n<!-- claims -->\n{table}<!-- /claims -->\nafter\n"
    again = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    verdicts.main()
    assert again == {path: path.read_bytes() for path in again}  # equal data make equal files


def test_pairs_are_by_seed_and_a_claim_without_its_runs_has_no_verdict(made):
    verdicts, sweep = made
    gains = {"dapo": 0.0, "forking": 0.01, "forking10": 0.01, "forking50": 0.0, "bottom80": -0.2, "random_mask": 0.0}

    def rows(arm, rng):
        of_seed = rng.random()  # a spread between seeds that pairing takes out
        return run_of(falling, rng, accuracy=of_seed + gains[arm] + 0.001 * rng.random())

    sweep("a_shares", rows, list(gains))
    found = verdicts.judge("09_the_top_20_percent_are_enough")
    assert list(found) == ["A"] and verdicts.verdict(found["A"]) == "holds"
    assert found["A"][1].effect.value == pytest.approx(-0.2, abs=0.002)
    assert verdicts.judge("01_entropy_is_spent_early") == {}


def test_a_reward_that_says_nothing_and_one_that_gains_as_much(made):
    verdicts, sweep = made
    gains = {"random": 0.02, "format": 0.1, "incorrect": -0.1, "none": 0.0, "majority": 0.35}

    def rows(arm, rng):
        gain = gains[arm.partition("=")[2]] if "=" in arm else 0.4
        return run_of(falling, rng, accuracy=0.1 + gain + 0.01 * rng.random())  # the start has 0.1

    for bed in "ab":
        sweep(f"{bed}_core", rows, ["grpo"])
        sweep(f"{bed}_rewards", rows, [f"grpo,kind={kind}" for kind in gains])
        gains["format"] = 0.35
    found = verdicts.judge("d1_does_the_reward_matter")
    assert [verdicts.verdict(parts) for parts in found.values()] == ["holds", "fails"]
    random = found["A"][0]
    assert random.effect.value == pytest.approx(0.025 / 0.405, rel=0.1) and random.effect.low < random.effect.high


@pytest.mark.parametrize(
    "claim, sweeps, better, expected",
    [
        ("d2_is_it_entropy_that_selects", {"a_shares": "forking random_mask", "a_forks": None}, "forking", "holds"),
        ("d2_is_it_entropy_that_selects", {"a_shares": "forking random_mask", "a_forks": None}, "gmts", "fails"),
    ],
)
def test_forks_against_their_controls(made, claim, sweeps, better, expected):
    verdicts, sweep = made
    for name, arms in sweeps.items():
        arms = arms or "forking_positions forking_shuffled forking_base gmts"

        def rows(arm, rng):
            return run_of(falling, rng, accuracy=0.5 + 0.1 * (arm == better) + 0.001 * rng.random())

        sweep(name, rows, arms.split())
    assert verdicts.verdict(verdicts.judge(claim)["A"]) == expected


def test_clipping_alone_and_arithmetic(made):
    verdicts, sweep = made
    sweep("a_core", lambda arm, rng: run_of(falling, rng, 0.5 + 0.001 * rng.random()), ["grpo"])

    def rounded(arm, rng):
        worse = arm.endswith("bfloat16")
        return run_of(lambda x: falling(x) * (0.5 if worse else 1), rng, 0.5 - 0.1 * worse)

    sweep("a_dtype", rounded, ["grpo,dtype=bfloat16", "grpo,dtype=bfloat16_float32_head"])
    parts = verdicts.judge("d6_arithmetic")["A"]
    assert [p.verdict for p in parts] == ["fails", "fails", "holds", "holds"]

    def clipped(arm, rng):
        low = 0.1 + 0.01 * rng.random()
        return run_of(lambda x: falling(x) + (0 if arm == "grpo" else low), rng)

    sweep("a_clipping", clipped, ["grpo", "no_clip"])
    (part,) = verdicts.judge("d5_clipping_alone")["A"]
    assert part.verdict == "holds" and part.effect.value == pytest.approx(-0.105, abs=0.006)


def test_a_verdict_needs_the_whole_interval():
    part = load("verdicts").Part
    for low, high, expected in ((0.1, 0.3, "holds"), (-0.3, -0.1, "fails"), (-0.1, 0.3, "cannot tell")):
        assert part("", Estimate((low + high) / 2, low, high), least=0.0).verdict == expected
    assert part("", Estimate(0.1, math.nan, math.nan), least=0.0).verdict == "cannot tell"


def test_every_claim_has_its_page_and_every_page_is_what_its_data_say():
    verdicts = load("verdicts")
    for name in verdicts.CLAIMS:
        assert verdicts.title(name)
        found = verdicts.judge(name)
        page = verdicts.HERE / name / "VERDICT.md"
        assert (page.read_text() if page.exists() else None) == (verdicts.page(found) if found else None), (
            f"{page} is not what the data say: make results"
        )
        assert (page.parent / "effects.svg").exists() == bool(found)
