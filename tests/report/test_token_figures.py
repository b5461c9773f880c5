"""The figures of recorded tokens: every number against the Parquet files read with pandas."""

import numpy as np
import pandas as pd
import pyarrow.compute
import pyarrow.parquet
import pytest
import recorded_runs

from entropy_rl.report import recorded, token_figures, tokens, words
from entropy_rl.report.figure import to_png, to_svg
from entropy_rl.report.tokens import Step


@pytest.fixture(scope="module")
def responses(made_up_run):
    return pd.read_parquet(made_up_run / "rollouts")


@pytest.fixture(scope="module")
def figures(made_up_run):
    return {figure.name: figure.table for figure in recorded.figures({"run": str(made_up_run)})}


@pytest.fixture(scope="module")
def long(responses):
    """A row per token, with its position."""
    lists = ["id", "token", "entropy", "fate"]
    exploded = responses.assign(position=[np.arange(n) for n in responses.length]).explode([*lists, "position"])
    return exploded.astype({"entropy": float, "position": int})


def step_of(entropy, token=None, length=None, finished=True):
    entropy = np.asarray(entropy, np.float32)
    rows = [{"length": n, "finished": finished, "question": "q"} for n in (length or [entropy.size])]
    texts = np.array(["a"] * entropy.size if token is None else token, object)
    return Step(1, rows, texts, np.zeros(entropy.size, np.int32), {"entropy": entropy}, None)


def test_the_distribution_counts_every_token_of_the_first_and_last_step(figures, long):
    table = pd.DataFrame(figures["entropy_distribution"])
    for step in (1, 10):
        bins = table[table["of"] == f"run, step {step}"]
        entropy = long[long.step == step].entropy
        edges = [*bins["from, nats"], bins["to, nats"].iloc[-1]]
        assert bins.tokens.tolist() == np.histogram(entropy, edges)[0].tolist() and bins.tokens.sum() == len(entropy)
    for row in figures["entropy_percentiles"]:
        entropy = long[long.step == int(row["of"].split()[-1])].entropy
        assert row["80th percentile"] == pytest.approx(entropy.quantile(0.8), rel=1e-6)
        assert row["mean"] == pytest.approx(entropy.mean())
        assert row["tokens below 0.01"] == (entropy < 0.01).mean()


def test_the_share_of_the_forks_by_hand():
    (row,) = token_figures.percentiles({"x": [step_of([0, 0, 0, 0, 1, 1, 1, 1, 3, 3])]}).table
    assert row["top 20% of all entropy"] == pytest.approx(6 / 10) and row["80th percentile"] > 1
    (row,) = token_figures.percentiles({"x": [step_of([0, 0])]}).table
    assert row["top 20% of all entropy"] is None


def test_places_are_means_of_the_tokens_there(figures, long):
    table = figures["entropy_places"]
    assert {row["by"] for row in table} == {"position", "length", "ending"}
    for row in table:
        here = long[long.step == int(row["of"].split()[-1])]
        if row["by"] == "ending":
            some = here[here.finished == (row["value"] == "finished")]
        else:
            some = here[here[row["by"]].between(row["from"], row["to"])]
        assert len(some) == row["tokens"] and row["mean entropy, nats"] == pytest.approx(some.entropy.mean(), rel=1e-6)
    for kind in ("position", "length", "ending"):
        counted = sum(row["tokens"] for row in table if row["by"] == kind and row["of"] == "run, step 1")
        assert counted == (long.step == 1).sum()


def test_fates_over_the_steps(figures, long, made_up_run):
    for row in figures["fates"]:
        here = long[long.step == row["step"]]
        assert row["tokens"] == (here.fate == row["fate"]).sum() and row["share"] == row["tokens"] / len(here)
    assert {(row["step"], row["fate"]) for row in figures["fates"]} == set(zip(long.step, long.fate))
    assert list(tokens.fates(str(made_up_run), 1))[0] == "kept"


def test_words_by_mean_entropy(long, figures):
    last = long[long.step == 10].groupby("token").entropy.agg(["mean", "count"])
    last = last[last["count"] >= 5].sort_values("mean", ascending=False)
    highest, lowest = figures["tokens_highest"], figures["tokens_lowest"]
    assert [row["token"] for row in highest] == [words.literal(token) for token in last.index[: words.MOST]]
    means = [row["mean entropy, nats"] for row in lowest]
    assert means == pytest.approx(last["mean"][::-1][: words.MOST].tolist(), rel=1e-6)
    assert [row["count"] for row in highest] == last["count"][: words.MOST].tolist()


def test_a_token_that_occurred_too_seldom_has_no_mean():
    token = ["often"] * 5 + ["rare"] * 4 + ["\n"] * 6
    rows, least = words.by_entropy(step_of([2.0] * 5 + [9.0] * 4 + [0.5] * 6, token))
    assert least == 5 and [(row["token"], row["count"]) for row in rows] == [("often", 5), ("\n", 6)]
    assert words.by_entropy(step_of(np.zeros(50_000), ["a"] * 50_000))[1] == 10


def test_a_word_in_a_cloud_is_text():
    token = [text for text in ("<script>", "  ", "\n", "\x00", "猫$\\x$", "]]>") for _ in range(5)]
    made = words.words({"<b>": [step_of(np.linspace(0, 1, len(token)), token)]})[0]
    drawn = to_svg(made)
    assert "<script" not in drawn and "<b>" not in drawn and ">&lt;script&gt;<" in drawn and ">&lt;b&gt;" in drawn
    assert ">␣␣<" in drawn and ">⏎<" in drawn and ">␀<" in drawn and "]]>" not in drawn.replace("]]&gt;", "")
    assert "猫$\\x$" in drawn
    assert to_png(made)[:4] == b"\x89PNG"  # and no warning of a letter that no font has
    assert words.visible("a\u2028\x7f\x85") == "a⏎␡␡"


def test_a_cloud_grows_with_entropy_and_no_word_is_on_another():
    rows = [{"token": "w" * (1 + i % 40), "mean entropy, nats": 3.0 - i / 50} for i in range(words.MOST)]
    cloud, height = words.placed(rows)
    assert [word.size for word in cloud] == sorted((word.size for word in cloud), reverse=True)
    assert cloud[0].size > 2 * cloud[-1].size and max(len(word.text) for word in cloud) == 24
    lines = {y: [word for word in cloud if word.y == y] for y in sorted({word.y for word in cloud})}
    for line, below in zip(lines.values(), [*list(lines)[1:], height]):
        assert all(word.y + word.size / 72 < below for word in line)
        for word, right in zip(line, line[1:]):
            assert word.x + 0.65 * len(word.text) * word.size / 72 < right.x
        assert line[-1].x + 0.65 * len(line[-1].text) * line[-1].size / 72 <= 9
    assert words.placed([]) == ([], 0.0)
    same, _ = words.placed([{"token": "a", "mean entropy, nats": 0.0}] * 2)
    assert same[0].size == same[1].size


def test_a_file_that_is_no_record_of_the_run_is_named(made_up_run, tmp_path):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    pd.DataFrame({"step": [4], "entropy": [[0.5]]}).to_parquet(folder / "step-00000004.parquet")
    with pytest.raises(
        ValueError, match=r"step-00000004.parquet: no advantage, .*; not a file of this run\? Remove it"
    ):
        tokens.read(str(tmp_path), 4)
    with pytest.raises(ValueError, match=r"step-00000004.parquet: .*fate"):
        tokens.fates(str(tmp_path), 4)
    with pytest.raises(ValueError, match="the files of step 5 were removed meanwhile; make the report again"):
        tokens.read(str(tmp_path), 5)


def test_a_response_with_several_turns_is_counted_once(tmp_path):
    """A method with turns records every response in each of them, later with the entropy of a later policy."""
    recorded_runs.write_run(tmp_path / "once", 0, steps=(1,))
    path = "rollouts/step-00000001.parquet"
    first = pyarrow.parquet.read_table(tmp_path / "once" / path)
    later = first.set_column(first.column_names.index("entropy"), "entropy", first["logp"])
    later = later.set_column(later.column_names.index("update"), "update", pyarrow.compute.add(later["update"], 1))
    (tmp_path / "twice/rollouts").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.concat_tables([first, later.cast(first.schema)]), tmp_path / "twice" / path)
    one, two = (
        {f.name: f.table for f in recorded.figures({"run": str(tmp_path / name)})} for name in ("once", "twice")
    )
    assert len(tokens.read(tmp_path / "twice", 1).rows) == 2 * len(tokens.read(tmp_path / "once", 1).rows)
    for name in one.keys() - {"fates"}:
        assert one[name] == two[name], name
    assert [row["tokens"] for row in two["fates"]] == [2 * row["tokens"] for row in one["fates"]]


def test_a_reward_that_is_not_known_is_null_for_the_viewer(tmp_path):
    recorded_runs.write_run(tmp_path, 0, steps=(1,), unscored=3)
    step = tokens.read(str(tmp_path), 1)
    assert [row["reward"] for row in step.rows[-3:]] == [None] * 3 and step.rows[0]["reward"] is not None
    older = step._replace(rows=[row | {"reward": float("nan"), "advantage": float("inf")} for row in step.rows])
    assert '"reward": null, "advantage": null' in tokens.script("a", older)


def test_words_in_a_table_are_one_line_each():
    assert words.literal('a"\n\x00\u2028\x7f') == r'"a\"\n\u0000\u2028\u007f"'


def test_runs_without_recorded_tokens_have_no_such_figures(tmp_path):
    assert recorded.figures({"run": str(tmp_path)}) == []
