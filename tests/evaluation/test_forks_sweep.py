"""A sweep of two temperatures: what the flags ask for, what is sampled, and the table and plot of it."""

import contextlib
import csv
import io
import math

import numpy as np
import pytest
from evaluations import PROBLEMS, answered
from samplers import Recorder

from entropy_rl import evaluate
from entropy_rl.evaluation import forks
from entropy_rl.evaluation.report import Result
from entropy_rl.rewards import Grader
from entropy_rl.sampling.base import GREEDY, Decoding, Forks, Sampling

FIVE = ["0.5", "0.7", "1", "1.3", "1.6"]


def test_two_lists_are_varied_in_turn_and_the_common_pair_comes_once_and_first():
    sweep = forks.sweep_of("0.672", FIVE, FIVE, 1.0, 16, "")
    assert sweep == forks.Sweep(0.672, False, sweep.pairs, 1.0) and len(sweep.pairs) == 9
    assert sweep.pairs[:5] == ((1, 1), (0.5, 1), (0.7, 1), (1.3, 1), (1.6, 1))
    assert sweep.pairs[5:] == ((1, 0.5), (1, 0.7), (1, 1.3), (1, 1.6))
    assert forks.sweep_of("80%", ["1.3"], ["0.7"], 1.0, 1, "") == forks.Sweep(80.0, True, ((1.3, 0.7),), 1.0)
    assert forks.sweep_of("0", [], ["0.7", "2"], 0.9, 1, "").pairs == ((0.9, 0.7), (0.9, 2.0))
    assert forks.sweep_of(None, [], [], 1.0, 0, "http://here") is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, ["1"], [], 1.0, 4, ""), r"--fork_temperature without --fork_threshold: which tokens are forks\?"),
        ((None, [], ["1"], 1.0, 4, ""), r"--other_temperature without --fork_threshold"),
        (("1", [], [], 1.0, 4, ""), r"--fork_threshold=1 without --fork_temperature or --other_temperature"),
        (("1", ["1"], [], 1.0, 0, ""), r"--fork_threshold=1 with no samples has no effect; give --k"),
        (
            ("1", ["1"], [], 1.0, 4, "http://here"),
            r"--fork_threshold=1 with --server: a server draws all tokens at one",
        ),
        (("a", ["1"], [], 1.0, 4, ""), r"--fork_threshold=a must be a number"),
        (("-1", ["1"], [], 1.0, 4, ""), r"--fork_threshold=-1\.0 must be 0 or above"),
        (("101%", ["1"], [], 1.0, 4, ""), r"--fork_threshold=101\.0 must be .*100"),
        (("1", ["0"], [], 1.0, 4, ""), r"--fork_temperature=0\.0 must be "),
        (("1", ["1", "x"], [], 1.0, 4, ""), r"--fork_temperature=x must be a number"),
        (("1", [], ["nan"], 1.0, 4, ""), r"--other_temperature=nan must be "),
    ],
)
def test_flags_that_make_no_sweep(arguments, message):
    with pytest.raises(ValueError, match=message):
        forks.sweep_of(*arguments)


def test_a_percentile_is_of_all_tokens():
    sweep = forks.Sweep(80.0, True, (), 1.0)
    assert forks.threshold_of(sweep, [np.arange(60.0), np.arange(60.0, 101.0)]) == 80
    assert forks.threshold_of(sweep._replace(percentile=False), []) == 80
    with pytest.raises(ValueError, match="--fork_threshold=80%: the responses have no tokens"):
        forks.threshold_of(sweep, [])


class Keeping(Recorder):
    """A recorder that keeps the responses."""

    def sample(self, *given, **more):
        self.made = [*getattr(self, "made", []), super().sample(*given, **more)]
        return self.made[-1]


def asked(policy, encoder, recorder, **more):
    """The decodings and seeds that a request asks for, and its results."""
    c = evaluate.configuration(None)
    c.eval.batch = 4
    request = evaluate.Request([], c, "", k=2, top_p=0.9, seed=3, **more)
    opened = evaluate.Opened(
        policy.tokenizer, recorder, policy.params, Decoding(Sampling(), 6, (2,)), contextlib.nullcontext, 300
    )
    with Grader() as grader:
        ask = evaluate.asking(request, opened, PROBLEMS, encoder, grader)
        results = evaluate.examine_forks(request, ask, "me", "words", lambda name: lambda *batch: None)
    return [(a.decoding.sampling, a.seed, a.n) for a in recorder.asked], results


def test_every_pair_is_sampled_once_with_the_same_key(policy, encoder):
    found, results = asked(
        policy, encoder, Recorder(), forks=forks.sweep_of("0.5", ["0.7", "1"], ["1", "2"], 1.0, 2, "")
    )
    # equal temperatures are plain sampling, and the greedy responses are made once
    samplings = Sampling(1.0, 0.9), Sampling(1.0, 0.9, forks=Forks(0.5, 0.7)), Sampling(2.0, 0.9, forks=Forks(0.5, 1.0))
    assert found == [(GREEDY, 0, 1), *((sampling, 3, 2) for sampling in samplings)]
    assert [r.point for r in results] == [(0.5, 1, 1), (0.5, 0.7, 1), (0.5, 1, 2)]
    assert [r.policy for r in results] == [
        f"me, forks {a}, others {b}" for a, b in (("1", "1"), ("0.7", "1"), ("1", "2"))
    ]
    assert all([a.sample for some in r.samples for a in some] == [0, 1] * 5 for r in results)


@pytest.mark.slow
def test_a_percentile_is_that_of_responses_at_temperature_1(policy, encoder):
    recorder = Keeping(policy.sampler)
    found, results = asked(policy, encoder, recorder, forks=forks.sweep_of("80%", ["2"], [], 1.0, 2, ""))
    assert found[:2] == [(GREEDY, 0, 1), (Sampling(), 3, 2)]  # all of the distribution, whatever top_p is
    made = recorder.made[1]
    entropies = made.entropy[: 2 * len(PROBLEMS)][made.mask[: 2 * len(PROBLEMS)] > 0]  # the batch was filled up
    threshold = float(np.quantile(entropies.astype(float), 0.8))
    assert threshold > 0.1 and results[0].point.threshold == pytest.approx(threshold)
    assert found[2:] == [(Sampling(1.0, 0.9, forks=Forks(results[0].point.threshold, 2.0)), 3, 2)]


def results():
    """Two sets with four pairs each; the hotter the forks, the more is right."""
    made = []
    for name in ("sums", "words"):
        for i, (fork, other) in enumerate([(1.0, 1.0), (0.5, 1.0), (1.6, 1.0), (1.0, 1.6)]):
            samples = [
                [answered(float(fork > (uid + s) / 3), uid, s, entropy=0.4, finished=bool(i)) for s in range(2)]
                for uid in range(4)
            ]
            point = forks.Point(0.672, fork, other)
            made.append(Result(f"m, forks {fork}", name, [some[0] for some in samples], samples, "m", point))
    return [*made, Result("m", "sums", made[0].greedy, made[0].samples)]  # not of a sweep


def test_the_table_and_the_plot(tmp_path):
    swept = results()
    assert forks.write(str(tmp_path), swept, 1.0) == ["forks.csv", "forks.svg", "forks.png"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "forks.csv").read_text())))
    assert [(r["set"], r["fork_temperature"], r["other_temperature"], r["varied"]) for r in rows[:4]] == [
        ("sums", "1.0", "1.0", ""),
        ("sums", "0.5", "1.0", "forks"),
        ("sums", "1.6", "1.0", "forks"),
        ("sums", "1.0", "1.6", "others"),
    ]
    assert len(rows) == 8 and rows[4]["set"] == "words"
    right = [np.mean([[a.right for a in some] for some in r.samples]) for r in swept[:4]]
    assert [float(r["avg"]) for r in rows[:4]] == right and right[1] < right[0] < right[2]
    for r in rows:
        assert float(r["avg_low"]) <= float(r["avg"]) <= float(r["avg_high"])
        assert (r["policy"], r["threshold_nats"], r["samples"], r["problems"]) == ("m", "0.672", "2", "4")
        assert all(math.isfinite(float(r[key])) for key in ("pass", "maj_low", "tokens", "cut"))
    assert (rows[0]["cut"], rows[1]["cut"]) == ("1.0", "0.0")
    assert (tmp_path / "forks.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in (
        tmp_path / "forks.svg"
    ).read_bytes()


def drawn(results, tmp_path, monkeypatch):
    """(label, x, y in percent) of every line of the plot."""
    from matplotlib.axes import Axes

    lines, true = [], Axes.errorbar

    def errorbar(self, x, y, bars, label, **more):
        lines.append((label, list(x), list(y)))
        assert np.min(bars) >= 0
        return true(self, x, y, bars, label=label, **more)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    forks.plot(results, 1.0, [tmp_path / "plot.png"])
    return lines


def test_the_plot_has_a_line_for_each_kind_that_varies(tmp_path, monkeypatch):
    some = results()
    avg = [100 * np.mean([[a.right for a in answers] for answers in r.samples]) for r in some]
    lines = drawn(some[:4], tmp_path, monkeypatch)
    assert lines == [
        ("fork tokens vary, other tokens at 1", [0.5, 1.0, 1.6], pytest.approx([avg[1], avg[0], avg[2]])),
        ("other tokens vary, fork tokens at 1", [1.0, 1.6], pytest.approx([avg[0], avg[3]])),
    ]
    lines.clear()
    assert [x for _, x, _ in drawn(some[:1], tmp_path, monkeypatch)] == [[1.0]]
