"""What is measured of finished runs beside their metrics, and the verdicts on it."""

import csv
import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import small_runs

from entropy_rl.data import Problem

ROOT = pathlib.Path(__file__).parents[1]
load = importlib.import_module


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results" / "claims")


def chain(expression):
    return Problem(1, expression, {"metadata": {"expression": expression}}, "reasoning_gym:chain_sum")


def decided(text, problem, of):
    """The characters at the places, each run of them in brackets' place."""
    places = load("places")
    return [text[i] for i in sorted(places.BEDS[of](problem, text))]


@pytest.mark.parametrize(
    "expression, text, expected",
    [
        ("8 + 7 - 4", "8+7=15;15+4=19 \\boxed{19}", ["+"]),  # counting on: the operator of the second step
        ("8 + 7 - 4", "8+7=15;5-4=1,1-0=1 \\boxed{11}", ["-"]),  # by digits
        ("8 - 3 - 4", "11;15 \\boxed{15}", ["1"]),  # results alone; the second minus is read as the first one was
        ("8 - 3 - 4", "5;1 \\boxed{1}", ["5"]),
        ("8 + 7 - 4", "10+2=12", []),  # results alone, the first of which is wrong: what follows is not counted
        ("3 + 5 + 2", "8;10 \\boxed{10}", []),
        ("8 - 3 - 4", "", []),
    ],
)
def test_the_place_where_two_readings_part(expression, text, expected):
    assert decided(text, chain(expression), "chain_sum") == expected


def test_the_places_of_a_search():
    text = "4-8=-4,6-(-4)=10;12*8=96,(-3)/1 \\boxed{(8+6)-4}"
    assert "".join(decided(text, None, "countdown")) == "4-6-12*(-3)/"


def test_places_are_tokens_whatever_their_length():
    places = load("places")
    assert places.tokens_at({0, 4}, ["ab", "c", "", "def"]).tolist() == [True, False, False, True]
    assert [places.group_of(*pair) for pair in ((" 12", "a"), ("ing", "go"), (" is", "it"), ("a", "1"))] == [
        places.GROUPS[i] for i in (0, 1, 2, 2)
    ]


def test_how_far_the_entropy_moved_by_hand():
    base = np.array([5, 4, 1, 1, 1, 1, 1, 1, 1, 1], np.float32)
    after = np.array([4, 1, 3, 1, 1, 1, 1, 1, 1, 1], np.float32)
    found = load("tokens").drift(base, after)
    assert found == {"overlap": 0.5, "change_top": 2.0, "change_rest": 0.25}


def test_the_fixed_text_is_docstrings_and_ends_in_time():
    texts = list(load("tokens").docstrings(20_000))
    assert 20_000 <= sum(map(len, texts)) < 40_000
    assert importlib.import_module("abc").ABC.__doc__.splitlines()[0] in "\n".join(texts)


def test_of_larger_targets_those_above_what_runs_saw_count():
    counts = load("measure").counts
    asked = {"Calculate 41 using all": True, "Find a way to make 40 using": False, "that equals 60.\nEach": True}
    assert {question: counts("larger_targets", question) for question in asked} == asked
    assert counts("two_digits", "What is 1 + 2?")


# Made-up measures whose verdict is known: claim -> bed, sweep -> arm -> name -> (value, spread between seeds).
HELD = {
    "07_forks_are_few": (
        "A",
        {"a_core": {"grpo": {"start/below_0.01": 0.6, "start/decision": 0.6, "start/others": 0.05}}},
        {"start/others": 0.3},
    ),
    "08_training_keeps_the_forks": (
        "D",
        {"d_core": {"grpo": {"last/overlap": 0.86, "last/change_top": 0.5, "last/change_rest": 0.02}}},
        {"last/overlap": 0.6},
    ),
    "10_hotter_forks_help": (
        "B",
        {"b_core": {"grpo": {"1.3/1": 0.5, "0.5/1": 0.4, "1/1.3": 0.3, "1/0.5": 0.45}}},
        {"1/0.5": 0.2},
    ),
    "11_the_easy_80_percent_harm_the_language": (
        "D",
        {
            "d_core": {
                name: {"start": 3.0, "end": end} for name, end in (("dapo", 3.2), ("forking", 3.1), ("bottom80", 4))
            }
        },
        {"start": 4.5},
    ),
    "12_what_forks_learn_carries_over": (
        "A",
        {"a_shares": {name: {"two_digits": 0.8, "four_digits": 0.3} for name in ("dapo", "forking")}},
        {"four_digits": 0.1},
    ),
}
OF = {"07": "forks", "08": "forks", "10": "hotter", "11": "language", "12": "transfers"}
BESIDE = {
    "forks": [
        f"{when}/{key}" for when in ("start", "end") for key in ("p50", "p80", "p95", "decision_share", "below_0.01")
    ]
    + [f"start/group/{name}" for name in ("digits and signs", "continued words", "other tokens")],
    "hotter": [f"{t}/1" for t in (0.5, 0.7, 1, 1.3, 1.6)] + [f"1/{t}" for t in (0.5, 0.7, 1.3, 1.6)] + ["threshold"],
    "language": ["crc32"],
    "transfers": [],
}


def collected(monkeypatch, folder, sweeps, measure, seeds=3, spread=1e-3):
    """Writes the measures as collect.py does, each with a spread between seeds."""
    monkeypatch.setattr(load("runs"), "DATA", folder)
    for sweep, arms in sweeps.items():
        with (folder / f"{sweep}.measured.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["arm", "seed", "name", "value"])
            for arm, values in arms.items():
                for seed in range(seeds):
                    for name, value in ({name: 1 for name in BESIDE.get(measure, [])} | values).items():
                        moved = 0 if name == "crc32" else spread * np.random.default_rng([seed, len(name)]).random()
                        rows.writerow([arm, seed, f"{measure}/{name}", value + moved])


@pytest.mark.parametrize("claim", HELD)
def test_a_claim_that_holds_and_one_that_fails(monkeypatch, tmp_path, claim):
    verdicts, (bed, sweeps, worse) = load("verdicts"), HELD[claim]
    collected(monkeypatch, tmp_path, sweeps, OF[claim[:2]])
    found = verdicts.judge(claim)
    assert list(found) == [bed] and verdicts.verdict(found[bed]) == "holds"
    (name, arms), *_ = sweeps.items()
    last = list(arms)[-1]  # one arm alone is worse; the others stay
    changed = {name: arms | {last: arms[last] | worse}}
    collected(monkeypatch, tmp_path, changed, OF[claim[:2]])
    assert verdicts.verdict(verdicts.judge(claim)[bed]) == "fails"


def test_texts_that_differ_are_not_compared(monkeypatch, tmp_path):
    arms = {"forking": {"start": 1, "end": 1, "crc32": 5}, "bottom80": {"start": 1, "end": 1, "crc32": 6}}
    collected(monkeypatch, tmp_path, {"d_core": arms | {"dapo": arms["forking"]}}, "language")
    with pytest.raises(ValueError, match="d_core: the runs were measured on 2 texts; measure them with one Python"):
        load("verdicts").judge("11_the_easy_80_percent_harm_the_language")


@pytest.mark.parametrize("end, expected", [(0.7, "holds"), (0.95, "fails")])
def test_training_that_narrows(monkeypatch, tmp_path, end, expected):
    verdicts = load("verdicts")
    keys = ("pass@1", "pass@8", "pass@64", "distinct@64", "answer_entropy@64")
    grpo = {f"{when}/{key}": 0.8 for when in ("start", "middle", "end") for key in keys}
    arms = {"a_core": {"grpo": grpo | {"end/pass@64": end}}, "a_shares": {"forking": {"end/pass@64": 0.75}}}
    arms["a_kl_cov"] = {"kl_cov,fraction=0.2": {"end/pass@64": 0.9}, "kl_cov,fraction=0.02": {"end/pass@64": 0.1}}
    collected(monkeypatch, tmp_path, arms, "explores")
    kept = {"kl_cov,fraction=0.2": 0.9, "kl_cov,fraction=0.02": 0.3}
    runs = {
        arm: {s: {"step": np.arange(1, 11), "entropy/mean": np.linspace(1, h, 10)} for s in range(3)}
        for arm, h in kept.items()
    }
    monkeypatch.setattr(load("measured"), "read", lambda sweep: {"a_kl_cov": runs}[sweep])
    parts = verdicts.judge("d7_does_it_explore")["A"]
    assert verdicts.verdict(parts) == expected
    assert parts[1].text.startswith("held entropy keeps it wide: kl_cov,fraction=0.2:")
    assert parts[1].effect.value == pytest.approx(0.9 - end, abs=2e-3)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A real sweep of the smallest run, as run.sh makes them, named after the two sweeps that it stands for."""
    folder, cache = tmp_path_factory.mktemp("sweeps"), tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-m", "entropy_rl.sweep", f"--config={small_runs.__file__}", "--methods=grpo"]
    command += [f"--out={folder / 'a_core'}", "--seeds=1", "--config.train.steps=6", "--config.checkpoint.keep_every=2"]
    subprocess.run(command, check=True, cwd=ROOT, env=small_runs.environment(cache))
    (folder / "a_shares").mkdir()
    (folder / "a_shares" / "runs").symlink_to(folder / "a_core" / "runs")
    return folder, small_runs.environment(cache)


@pytest.mark.slow
def test_a_real_run_is_measured(sweep, monkeypatch):
    """Every measure of a tiny run, against what its own evaluations and a second reading of its files say."""
    folder, environment = sweep
    for key in ("XLA_FLAGS", "ENTROPY_RL_CACHE", "PYTHONPATH"):
        monkeypatch.setenv(key, environment[key])
    measure, tokens = load("measure"), load("tokens")
    monkeypatch.setattr(tokens, "LANGUAGE", 2000)
    run = folder / "a_core" / "runs" / "grpo" / "seed-0"
    assert tokens.kept_steps(run) == [0, 2, 4, 6]  # step 0 is there although the warm-up was another run's

    found = tokens.forks(run)
    problems, start = tokens.responses(run, 0)
    assert found["start/mean"] == pytest.approx(float(start.values["entropy"].mean()), rel=1e-5)
    assert len(problems) == 8 and {"2/overlap", "4/overlap", "6/overlap"} <= found.keys()
    assert found["last/overlap"] == found["6/overlap"] <= 1 and found["last/change_top"] > 0
    count = sum(count for _, count, _ in found["words"])
    assert 0 < count <= start.id.size

    hot = measure.hotter(run, k=2, problems=8)
    rows = pd.read_json(run / "measured" / "hotter" / "responses.jsonl", lines=True)
    own = rows[(rows["sample"] != "greedy") & rows.policy.str.endswith("forks 1.3, others 1")]
    assert hot["1.3/1"] == pytest.approx((own.score >= 1).mean()) and len(hot) == 10

    wide = measure.explores(run, k=4, problems=8)
    rows = pd.read_json(run / "measured" / "explores" / "responses.jsonl", lines=True)
    own = rows[(rows["sample"] != "greedy") & rows.policy.str.endswith("@6")]
    assert wide["end/pass@4"] == pytest.approx((own.groupby("uid").score.max() >= 1).mean())
    assert [wide[f"{when}/step"] for when in ("start", "middle", "end")] == [0, 2, 6]

    carried = measure.transfers(run)
    assert carried["two_digits/problems"] == 60 and carried["four_digits/problems"] == 768
    language = tokens.language(run, 2000)
    assert language["tokens"] == 1999 and language["end"] != language["start"] > 0


@pytest.mark.slow
def test_what_is_measured_once_is_collected_and_not_made_again(sweep, monkeypatch, tmp_path):
    folder, _ = sweep
    measure, collect, runs = load("measure"), load("collect"), load("runs")
    made = []

    def make(run):
        made.append(run.name)
        return {"x": 0.5, "none": float("nan"), "words": [["+", 7, 0.25]]}

    monkeypatch.setitem(measure.MEASURES, "made", measure.Measure({"a_core": ("grpo",), "b_core": ()}, make))
    assert measure.measure(folder / "a_core", ["made"]) == ["runs/grpo/seed-0/measured/made.json"]
    assert measure.measure(folder / "a_core", ["made"]) == [] and made == ["seed-0"]
    for module in (collect, runs):
        monkeypatch.setattr(module, "DATA", tmp_path)
    assert collect.collect(folder / "a_core") == 1
    (run,) = runs.read_measured("a_core")["grpo"].values()
    assert run["made/x"] == 0.5 and np.isnan(run["made/none"])
    assert (tmp_path / "a_core.words.csv").read_text() == "arm,seed,token,count,entropy\ngrpo,0,+,7,0.25\n"
    metrics = folder / "a_core" / "runs" / "grpo" / "seed-0" / "metrics.jsonl"
    (folder / "a_core" / "runs" / "grpo" / "seed-0" / "measured" / "made.json").unlink()
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join(lines[:-1]) + "\n")  # not finished: it is not measured
    try:
        assert measure.measure(folder / "a_core", ["made"]) == []
    finally:
        metrics.write_text("\n".join(lines) + "\n")
    assert json.loads(lines[-1])["step"] == 6
