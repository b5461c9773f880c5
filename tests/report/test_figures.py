"""The figures of a run's metrics: every number is what the pure function gives, on made-up runs that are known."""

import csv
import io
import math

import numpy as np
import pytest
from recorded_runs import metric_rows

from entropy_rl import law
from entropy_rl.report import summary, training
from entropy_rl.report.curves import curves
from entropy_rl.report.figure import Figure, to_csv, to_png, to_svg


@pytest.fixture(scope="module")
def rows():
    return metric_rows()


def values(rows, key, first=1):
    return np.array([row[key] for row in rows if row["step"] >= first], float)


def test_the_curves_are_the_rows_of_the_run(rows):
    found = {(row["metric"], row["step"]): row["value"] for row in curves({"a": rows}).table}
    keys = ("reward/mean", "entropy/mean", "length/mean", "cov/mean", "eval/a/accuracy", "eval/b/accuracy")
    want = {(key, row["step"]): row[key] for row in rows for key in keys if row.get(key) is not None}
    assert found == want


def test_what_is_drawn_beside_a_table_is_in_a_table_of_its_own(rows):
    rl = rows[1:]
    for row in curves({"a": rl}).table:
        if row["metric"] == "reward/mean":  # 60 steps: the mean over three
            near = [r["reward/mean"] for r in rl if abs(r["step"] - row["step"]) <= 1]
            assert row["running mean"] == pytest.approx(np.mean(near))
    x, y = np.exp(values(rows, "entropy/mean")), values(rows, "reward/mean")
    points = training.the_law({"a": rows}).points
    assert [(p["step"], p["exp(entropy)"], p["reward"]) for p in points] == list(zip(range(1, 61), x, y))
    want = law.fit(values(rows, "entropy/mean"), y)
    assert [p["law"] for p in points] == pytest.approx((want.b - want.a * x).tolist())
    points, first = training.forecasts({"a": rows}).points, 9
    for model, z in (
        ("law: −exp(H)", -x),
        ("log step", np.log(np.arange(1, 61))),
        ("length", values(rows, "length/mean")),
    ):
        slope, intercept = np.polyfit(z[:first], y[:first], 1)
        assert [p[model] for p in points] == pytest.approx((slope * z + intercept).tolist())
    error = [p["law: −exp(H)"] - p["reward"] for p in points[first:]]
    assert np.sqrt(np.mean(np.square(error))) == pytest.approx(training.forecasts({"a": rows}).table[0]["RMSE"])


def test_the_tables_of_the_text_are_what_numpy_gives(rows):
    tables = {figure.name: figure.table for figure in summary.figures({"a": rows})}
    assert tables.keys() == {"spans", "evaluations", "laws", "predictions"}
    assert len(tables["spans"]) == 10
    for i, row in enumerate(tables["spans"]):
        assert (row["from step"], row["to step"]) == (6 * i + 1, 6 * i + 6) and np.isnan(row["|grad|"])
        assert row["reward"] == pytest.approx(values(rows, "reward/mean")[6 * i : 6 * i + 6].mean())
    assert [(r["set"], r["step"], r["greedy accuracy"], r["low"]) for r in tables["evaluations"]] == [
        ("eval/a", 0, 0.25, 8),
        ("eval/b", 0, 0.5, 8),
    ]
    (only,) = tables["laws"]  # these rows have no mean over responses
    want = law.fit(values(rows, "entropy/mean"), values(rows, "reward/mean"))
    assert (only["a"], only["ceiling"], only["RMSE"]) == (want.a, want.ceiling, want.rmse)
    exact, first, second = tables["predictions"]
    assert exact["median |error| / |change|"] == pytest.approx(0.1) and exact["same sign"] == 1
    assert (exact["correlation"], second["correlation"]) == (pytest.approx(1), pytest.approx(1))
    assert (
        exact["updates"] == 30 and exact["mean of the change"] == pytest.approx(-0.3) and np.isnan(first["correlation"])
    )


def test_the_law_is_that_of_law_fit(rows):
    row, *null = training.the_law({"a": rows}).table
    want = law.fit(values(rows, "entropy/mean"), values(rows, "reward/mean"))
    found = [row[key] for key in ("a", "b", "ceiling", "R²", "RMSE", "a low", "a high", "ceiling low", "ceiling high")]
    numbers = [want.a, want.b, want.ceiling, want.r2, want.rmse, *want.a_interval, *want.ceiling_interval]
    assert found == pytest.approx(numbers, rel=1e-9)
    for row, x in zip(null, (np.log(values(rows, "step")), values(rows, "length/mean")), strict=True):
        assert row["R²"] == pytest.approx(np.corrcoef(x, values(rows, "reward/mean"))[0, 1] ** 2)
        assert row["RMSE"] > want.rmse  # the run follows the law, not the null models


def test_the_forecast_is_that_of_law_forecast(rows):
    row, *null = training.forecasts({"a": rows}).table
    want = law.forecast(values(rows, "entropy/mean"), values(rows, "reward/mean"), 0.15)
    assert [row["RMSE"], row["last error"]] == pytest.approx([want.rmse, want.last_error], rel=1e-6)
    assert (row["fitted to steps"], row["forecast steps"]) == (9, 51)
    assert all(row["RMSE"] < other["RMSE"] for other in null)


def test_shares_of_a_change_go_from_nothing_to_all_of_it(rows):
    table = training.shares({"a": rows}).table
    used = [row["entropy used"] for row in table]
    assert used[0] == pytest.approx(0, abs=0.05) and used[-1] == pytest.approx(1, abs=0.05)
    assert np.diff(used).min() > -1e-9
    half = next(row["step"] for row in table if row["entropy used"] > 0.5)
    assert 6 <= half <= 10  # exp(−step / 10) has lost half by step 7, and the mean is over three steps


def test_a_run_that_only_wavers_has_no_shares_of_a_change():
    rng = np.random.default_rng(1)
    flat = [
        {"step": i, "reward/mean": rng.normal(), "entropy/mean": rng.normal(), "length/mean": 1} for i in range(1, 40)
    ]
    assert training.shares({"a": flat}).table == []


def test_changes_and_quadrants_are_the_measured_updates(rows):
    measured = [row for row in rows if row.get("entropy/delta") is not None]
    table = training.changes({"a": rows}).table
    assert len(table) == 3 * len(measured)  # this run has no entropy scores
    first = [row for row in table if row["prediction"] == "exact to first order"]
    assert [(r["measured"], r["predicted"]) for r in first] == [
        (r["entropy/delta"], r["entropy/delta_predicted"]) for r in measured
    ]
    bars = training.quadrants({"a": rows}).table
    mean = np.mean([0.1 * row["step"] for row in measured])
    assert [row["contribution to ΔH"] for row in bars] == pytest.approx([0.25 * mean] * 4)


def test_the_tail_has_the_run_beside_the_paper(rows):
    first, whole, paper = training.tail({"a": rows}).table
    assert first["top 0.2%"] == 0.2 and whole["top 0.2%"] == pytest.approx(0.2) and first["all"] == 0.01
    assert paper["top 0.02%"] == 5.654 and paper["all"] == 0.003


def test_alarms_are_those_of_the_rows(rows):
    assert training.alarms({"a": rows[:30]}).table == []
    masked = [row | {"tokens/kept_frac": float(row["step"] != 20)} for row in rows[:30]]
    begun, ended = training.alarms({"a": masked}).table
    assert (begun["step"], begun["alarm"], begun["it"]) == (20, "empty_mask", "begins") and "is 0" in begun["seen"]
    assert (ended["step"], ended["it"]) == (25, "ends")


def test_a_run_too_short_for_a_figure_leaves_it_out():
    assert training.figures({"a": metric_rows(n=3)[:3]})[0].name == "entropy_change"
    assert training.figures({"a": [{"step": 1, "reward/mean": 0.5, "entropy/mean": 0.5}]}) == []


def test_the_files_of_every_figure(rows):
    runs = {"a": rows, r"$\nonsense{$": rows[:30]}  # a name is no formula
    for figure in [curves(runs), *training.figures(runs)]:
        back = list(csv.DictReader(io.StringIO(to_csv(figure.table))))
        assert len(back) == len(figure.table) > 0
        for row, read in zip(figure.table, back):
            for key, value in row.items():
                assert read[key] == ("" if value is None or value != value else str(value))  # every digit
        if figure.draw is not None:
            assert to_png(figure)[:4] == b"\x89PNG"
            svg = to_svg(figure)
            assert svg.startswith("<svg") and "currentColor" in svg


def test_csv_of_what_was_not_measured():
    assert to_csv([{"a": None, "b": math.nan}, {"b": 0.1, "c": "x,y"}]) == 'a,b,c\n,,\n,0.1,"x,y"\n'
    assert Figure("a", "", "", "", []).points == ()
