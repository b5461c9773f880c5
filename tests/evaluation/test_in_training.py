"""The evaluation of a policy while it trains."""

import types

import pytest
from evaluations import PROBLEMS, TEXTS
from samplers import Recorder

from entropy_rl import config
from entropy_rl.evaluation.in_training import Examiner
from entropy_rl.model.sharding import MeshRules
from entropy_rl.record.lines import accuracy_text
from entropy_rl.record.words import unknown
from entropy_rl.rewards import Grader
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.sampling.base import GREEDY, Decoding, Sampling


def examiner(policy, encoder, grader, samples, batch, mesh=(1, 1, 1)) -> Examiner:
    """An examiner of two sets of problems, on a mesh of that shape."""
    c = config.default()
    c.eval.samples, c.eval.batch, c.eval.temperature, c.eval.top_p = samples, batch, 0.7, 0.9
    rules = MeshRules(make_mesh(*mesh), ())
    decoding = Decoding(Sampling(1.0, 1.0, 3), 6, policy.cfg.eos_ids, ("!",))
    engine = types.SimpleNamespace(sampler=Recorder(policy.sampler), decoding=decoding, training=rules, sampling=rules)
    return Examiner(engine, policy.tokenizer, c.eval, encoder, {"all": PROBLEMS, "two": PROBLEMS[:2]}, grader)


def calls(examiner):
    """(rows, seed, samples, decoding) of each call of the sampler."""
    return [(len(a.prompts.tokens_NxP), a.seed, a.n, a.decoding) for a in examiner.engine.sampler.asked]


def test_an_examination_is_greedy_unless_samples_are_asked_for(policy, encoder):
    with Grader() as grader:
        greedy = examiner(policy, encoder, grader, samples=0, batch=3)
        row = greedy.examine(policy.params)
        assert row.keys() == {f"eval/{n}/{k}" for n in ("all", "two") for k in ("accuracy", "low", "high", "problems")}
        assert row["eval/all/problems"] == len(TEXTS) and row["eval/two/problems"] == 2
        decoding = Decoding(GREEDY, 6, policy.cfg.eos_ids, ("!",))
        assert calls(greedy) == [(3, 0, 1, decoding)] * 3  # two batches of one set, one of the other
        both = examiner(policy, encoder, grader, samples=2, batch=5)
        more = both.examine(policy.params)
    assert row.items() <= more.items() and not unknown(more)
    at_k = ("avg", "pass", "maj", "distinct", "answer_entropy")
    assert more.keys() - row.keys() == {f"eval/{n}/{k}@2" for n in ("all", "two") for k in at_k}
    sampled = decoding._replace(sampling=Sampling(0.7, 0.9))
    # 5 // 2 prompts at a time
    assert calls(both) == [
        (5, 0, 1, decoding),
        *[(2, 1, 2, sampled)] * 3,
        (5, 0, 1, decoding),
        (2, 1, 2, sampled),
    ]


def test_batches_of_samples_are_whole_shards(policy, encoder):
    with Grader() as grader:
        eight = examiner(policy, encoder, grader, samples=3, batch=8, mesh=(2, 2, 2))
        eight.examine(policy.params)
    assert {(rows, n) for rows, _, n, _ in calls(eight)} == {(8, 1), (4, 3)}  # 8 // 3, up to four shards


def test_the_sampling_options_of_an_evaluation_are_checked(policy, encoder):
    with Grader() as grader:
        wrong = examiner(policy, encoder, grader, samples=1, batch=5)
        wrong.evaluation.top_p = 0.0
        with pytest.raises(ValueError, match=r"rollout\.top_p=0\.0 must be above 0"):
            wrong.examine(policy.params)


def test_accuracy_as_text():
    row = {"step": 3, "eval/chain_sum/accuracy": 0.41, "eval/chain_sum/low": 0.344, "eval/chain_sum/high": 0.479}
    assert accuracy_text(row) == "chain_sum 41.0% [34.4, 47.9]"
    row |= {"eval/gcd/accuracy": 1.0, "eval/gcd/low": 0.9, "eval/gcd/high": 1.0, "eval/gcd/pass@2": 1.0}
    assert accuracy_text(row) == "chain_sum 41.0% [34.4, 47.9]  gcd 100.0% [90.0, 100.0]"
    assert accuracy_text({"step": 3}) == ""
