"""The command: from models and sets of problems to a report, and what it refuses."""

import contextlib
import json

import numpy as np
import pandas as pd
import pytest
from evaluations import PROBLEMS, TEXTS, answered
from samplers import Recorder

from entropy_rl import config, evaluate
from entropy_rl.evaluation.recorded import Recorder as Recording
from entropy_rl.evaluation.respond import GREEDY_SAMPLE
from entropy_rl.record import jsonl, rollouts
from entropy_rl.rewards import Grader
from entropy_rl.sampling.base import GREEDY, Decoding, Response, Sampling


def test_the_command_on_two_models_and_two_sets(policy, tmp_path):
    """From folders and a file to the report; a set of the command line keeps the settings that the config has."""
    policy.save(tmp_path / "a")
    policy.save(tmp_path / "b")
    (tmp_path / "words.jsonl").write_text("".join(f'{{"question": "{t}", "answer": "hat"}}\n' for t in TEXTS))
    c = evaluate.configuration(None)
    c.data.max_prompt_len, c.rollout.max_tokens, c.eval.batch = 64, 6, 4
    with c.unlocked():
        c.data.settings.update(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
        c.eval.every, c.eval.problems = 1, 6
    c = evaluate.with_tasks(c, ["chain_sum", str(tmp_path / "words.jsonl")])
    assert c.eval.sets["chain_sum"].settings.max_digits == 1
    names = evaluate.names_of([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [name for name, _ in names] == ["a", "b"]
    text = evaluate.run(evaluate.Request(names, c, str(tmp_path / "out"), k=2))
    assert text.count("| words |") == text.count("| chain_sum |") == 2
    assert "b against a on chain_sum: greedy +0.0 [+0.0, +0.0], sampled +0.0 [+0.0, +0.0] points" in text
    told = jsonl.read(tmp_path / "out" / "responses.jsonl")
    assert len(told) == 2 * (6 + 5) * 3

    # every token is recorded, in the columns of a run's rollouts
    recorded = pd.read_parquet(tmp_path / "out" / "rollouts")
    assert set(rollouts.COLUMNS) | set(rollouts.TOKEN_COLUMNS) | {"policy", "set"} == set(recorded.columns)
    assert sorted(recorded.text) == sorted(row["response"] for row in told)
    assert recorded.groupby(["policy", "set"]).size().tolist() == [18, 15, 18, 15]
    assert (recorded.id.map(len) == recorded.length).all() and recorded.step.isna().all()
    one = recorded[(recorded.policy == "a") & (recorded.set == "words") & (recorded["sample"] == 1)].iloc[0]
    mean = next(r["entropy"] for r in told if r["policy"] == "a" and r["question"] == one.question and r["sample"] == 1)
    assert np.mean(one.entropy) == pytest.approx(mean, rel=1e-5)
    Recording(str(tmp_path / "out"), 0.0)
    assert not list((tmp_path / "out" / "rollouts").iterdir())  # those of before do not stay beside another report


def test_responses_beyond_the_budget_are_not_recorded_and_said_once(policy, tmp_path, caplog):
    response = Response("a cat", np.arange(3), np.full(3, -1, "f4"), np.ones(3, "f4"), True)
    keep = Recording(str(tmp_path), 1.5e-9 * 6000).keep("a", "words", 40, policy.tokenizer)
    for _ in range(3):
        keep([answered(1.0)], [response])
    assert len(pd.read_parquet(tmp_path / "rollouts")) == 1
    assert caplog.text.count("the responses from here on are not recorded: log.rollouts_gb is used up") == 1


def test_the_command_samples_by_way_of_the_policys_sampler(policy, encoder):
    """Greedy, then k samples per problem; batches are filled up to whole shards, eight rows on eight devices."""
    recorder = Recorder()
    c = evaluate.configuration(None)
    c.eval.batch = 4
    request = evaluate.Request([], c, "", k=2, temperature=0.5, top_p=0.9, seed=3)
    decoding = Decoding(Sampling(), 6, policy.cfg.eos_ids)
    opened = evaluate.Opened(policy.tokenizer, recorder, "params", decoding, contextlib.nullcontext, 300)
    with Grader() as grader:
        ask = evaluate.asking(request, opened, PROBLEMS, encoder, grader)
        (result,) = evaluate.examine(request, ask, "recorded", "words", lambda name: lambda *batch: None)
    assert (result.policy, result.problem_set) == ("recorded", "words")
    assert [a.sample for a in result.greedy] == [GREEDY_SAMPLE] * 5
    assert [[a.sample for a in some] for some in result.samples] == [[0, 1]] * 5
    greedy, sampled = decoding._replace(sampling=GREEDY), decoding._replace(sampling=Sampling(0.5, 0.9))
    found = [(a.params, a.prompts.tokens_NxP.shape, a.seed, a.n, a.decoding) for a in recorder.asked]
    assert found == [("params", (8, 12), 0, 1, greedy), ("params", (8, 12), 3, 2, sampled)]


def test_the_configuration_of_an_older_run_has_todays_defaults(tmp_path):
    old = {"seed": 3, "model": {"dtype": "float32"}, "data": {"task": "gcd", "settings": {"max_numbers": 3}}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    c = evaluate.configuration(str(tmp_path))
    assert (c.data.task, c.data.settings.max_numbers, c.seed, c.data.bad_rows) == ("gcd", 3, 3, "error")
    with pytest.raises(ValueError, match=r"--workdir: .*config\.json is not there"):
        evaluate.configuration(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"--tasks: two sets would be called 'a'"):
        evaluate.with_tasks(c, ["x/a.jsonl", "y/a.jsonl"])
    assert evaluate.names_of(["x/run", "y/run", "z"]) == [("x/run", "x/run"), ("y/run", "y/run"), ("z", "z")]


def test_samples_are_drawn_as_the_configuration_says_unless_a_flag_does():
    evaluation = config.default().eval
    assert evaluate.sampled_by(evaluation, None, None, None) == (0, 1.0, 1.0)
    evaluation.samples, evaluation.temperature, evaluation.top_p = 4, 0.6, 0.7
    assert evaluate.sampled_by(evaluation, None, None, None) == (4, 0.6, 0.7)
    assert evaluate.sampled_by(evaluation, 32, None, None) == (32, 0.6, 0.7)
    assert evaluate.sampled_by(evaluation, 0, None, None) == (0, 0.6, 0.7)
    assert evaluate.sampled_by(evaluation, None, 1.0, 0.9) == (4, 1.0, 0.9)
    with pytest.raises(ValueError, match=r"--temperature=0\.5 with no samples has no effect.*give --k"):
        evaluate.sampled_by(evaluation, 0, 0.5, None)
    with pytest.raises(ValueError, match=r"--temperature=nan must be a finite number, above 0"):
        evaluate.sampled_by(evaluation, 4, float("nan"), None)
    with pytest.raises(ValueError, match=r"--top_p=1\.5 must be above 0 and at most 1"):
        evaluate.sampled_by(evaluation, 4, None, 1.5)


@pytest.mark.parametrize(
    "steps, workdirs, message",
    [
        (["4", "x"], ["run"], r"--steps=4,x: 'x' is no step; give whole numbers"),
        (["-4"], ["run"], r"--steps=-4: '-4' is no step"),
        (["4", "4"], ["run"], r"--steps=4,4 has a step twice"),
        (["4"], [], r"--steps=4 without --workdir: only run directories have steps"),
        (["4"], ["none"], r"--steps=4: none has no checkpoint of step 4, but of \[\]; checkpoint\.keep_every keeps"),
    ],
)
def test_steps_that_are_none_or_not_there(steps, workdirs, message):
    assert evaluate.check_steps([], ["none"]) == []
    with pytest.raises(ValueError, match=message):
        evaluate.check_steps(steps, workdirs)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("", "/shared", ["a"], []), r"--server_weights=/shared without --server"),
        (("http://here", "", [], ["runs/a"]), r"--server alone evaluates the one --model that it serves"),
        (("http://here", "", ["a", "b"], []), r"--server alone evaluates the one --model that it serves"),
    ],
)
def test_flags_that_do_not_fit(arguments, message):
    evaluate.check_server("http://here", "", ["a"], [])
    evaluate.check_server("http://here", "/shared", ["a"], ["runs/a"])
    with pytest.raises(ValueError, match=message):
        evaluate.check_server(*arguments)
