"""The report of a run: its table, its law and its figure."""

import json
import math

import pytest

from entropy_rl import analyze, covariance


def write_run(folder, rows=30, noise=0.0):
    """A run that follows the law exactly, R = −0.4·exp(H) + 1.2, evaluated at its start and end."""
    folder.mkdir(parents=True)
    lines = [{"step": 0, "reward/mean": None, "entropy/mean": None}]
    for step in range(1, rows + 1):
        entropy = 0.7 * math.exp(-step / 10)
        lines.append({"step": step, "entropy/mean": entropy, "reward/mean": -0.4 * math.exp(entropy) + 1.2})
    for row in (lines[0], lines[-1]):
        row |= {"eval/sum/accuracy": 0.4, "eval/sum/low": 0.3, "eval/sum/high": 0.5, "eval/sum/problems": 100}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    return str(folder)


def test_report(tmp_path):
    run, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", rows=12)
    text = analyze.report(run, [other])
    assert "a = 0.400, b = 1.200, ceiling b − a = 0.800, R² = 1.00" in text
    assert "eval/sum at step   30: greedy accuracy  40.0%  [30.0%, 50.0%]  of 100" in text
    assert (tmp_path / "a" / "report" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "a = 0.400" in (tmp_path / "a" / "report" / "index.html").read_text()


def test_runs_with_the_same_name_are_shown_by_their_paths(tmp_path):
    run, other = write_run(tmp_path / "x" / "grpo"), write_run(tmp_path / "y" / "grpo", rows=12)
    text = analyze.report(run, [other])
    assert text.count("law R") == 2 and run in text and other in text


def test_a_run_is_named_by_its_folder_from_within_it_too(tmp_path, monkeypatch):
    run = write_run(tmp_path / "grpo")
    monkeypatch.chdir(run)
    assert analyze.named([".", run]) == {".": ".", run: run} and analyze.named(["../grpo/.."]) == {
        tmp_path.name: "../grpo/.."
    }
    assert analyze.report(".").startswith("grpo\n")
    assert "<title>grpo</title>" in (tmp_path / "grpo/report/index.html").read_text()
    assert analyze.named([run, f"{run}/"]) == {"grpo": run}


def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legends(tmp_path):
    run = write_run(tmp_path / "_a")
    analyze.report(run, [write_run(tmp_path / "b")])
    assert ">./_a<" in (tmp_path / "_a/report/figures/curves.svg").read_text()


def test_a_run_that_does_not_change_has_its_page(tmp_path):
    """Rewards and entropies of one value: nothing to fit, and no warning."""
    run = tmp_path / "a"
    run.mkdir()
    rows = [{"step": i, "reward/mean": 1.0, "entropy/mean": 0.0, "length/mean": 3.0} for i in range(1, 31)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "law R = −a·exp(H) + b: " in analyze.report(str(run))
    assert (run / "report/figures/forecast.png").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give either --workdir"),
        (["--workdir=a", "--model=b"], "give either --workdir"),
        (["--workdir=a", "--text=b", "--out=c"], "--text, --out has no meaning with --workdir"),
        (["--workdir=a", "--problems=3"], "--problems has no meaning with --workdir"),
        (["--model=a", "--text=b", "--compare=c"], "--compare has no meaning with --model"),
        (["--model=a", "--text=b", "--rescore"], "--rescore has no meaning with --model"),
        (["--model=a", "--dataset=b", "--problems=0"], "--problems=0 must be at least 1"),
        (["--model=a", "--text=b", "--problems=3"], "--problems=3 must be at least 1, and is of --dataset"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        analyze.arguments(flags)
    assert message in capsys.readouterr().err


def test_a_run_to_compare_that_is_none_is_named_by_its_flag(tmp_path):
    with pytest.raises(ValueError, match=r"--compare: .*none/metrics.jsonl holds no metrics"):
        analyze.report(write_run(tmp_path / "a"), [str(tmp_path / "none")])


def test_few_steps_give_a_sentence_and_no_law(tmp_path):
    text = analyze.report(write_run(tmp_path / "short", rows=3))
    assert "law R = −a·exp(H) + b: " in text and "a = " not in text


def test_entropy_changes_and_their_predictions():
    rows = [{"step": 0}, {"step": 1, "entropy/delta": None}]
    assert analyze.entropy_changes(rows) == ""
    for step, delta in enumerate((-0.01, 0.02, -0.04), 2):
        row = {"step": step, "entropy/delta": delta, "entropy/delta_predicted": 0.98 * delta}
        row |= {"entropy/delta_thm1": -delta, "entropy/delta_thm2": 3 * delta}
        for name in covariance.QUADRANTS:
            row |= {
                f"quadrant/{name}/share": 0.25,
                f"quadrant/{name}/covariance": 1,
                f"quadrant/{name}/entropy_change": 0,
            }
        rows.append(row)
    lines = analyze.entropy_changes(rows).splitlines()
    assert "3 measured: mean -1.00e-02 nats" in lines[0]
    assert lines[2].split() == ["exact", "first", "order", "-9.80e-03", "2.0%", "1.000", "100%"]
    assert lines[3].split() == ["Theorem", "1", "1.00e-02", "200.0%", "-1.000", "0%"]
    assert lines[4].split()[-3:] == ["200.0%", "1.000", "100%"]
    assert "high_prob_positive      25.0%" in lines[6]
    for row in rows[2:]:
        row["entropy/delta_score"] = 2 * row["entropy/delta"]
    lines = analyze.entropy_changes(rows).splitlines()
    assert lines[5].split() == ["entropy", "score", "-2.00e-02", "100.0%", "1.000", "100%"]


def test_a_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"--workdir: .*metrics.jsonl holds no metrics"):
        analyze.report(str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"step": None}, "step is None, expected an int"),
        ({"reward/mean": math.nan}, r"not JSON \(NaN is no number of JSON; a value that was not measured is null"),
        ({"reward/mean": "high"}, "reward/mean is 'high', expected a number or null"),
        ({"eval/sum/accuracy": 0.5}, "no eval/sum/low, eval/sum/high, eval/sum/problems; put the line back"),
        ({"entropy/delta": 0.5}, "no entropy/delta_predicted, entropy/delta_thm1, .*quadrant/"),
        ("entropy/mean", "no entropy/mean; put the line back"),
        (None, "a JSON list, expected an object"),
    ],
)
def test_a_line_that_no_run_wrote_is_named(tmp_path, change, message):
    run = write_run(tmp_path / "a", rows=4)
    path = tmp_path / "a" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[2])
    if isinstance(change, dict):
        row |= change
    elif change:
        del row[change]
    lines[2] = json.dumps(row if change else [row])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"metrics.jsonl, line 3: {message}"):
        analyze.report(run)
