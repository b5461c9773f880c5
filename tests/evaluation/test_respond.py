"""Evaluation on a small model: shapes, records, tables, and the command's own parts."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from smollm2 import smollm2_folder  # noqa: F401
from tiny_models import FAMILIES, random_params, tiny_tokenizer

import entropy_rl as erl
from entropy_rl import config, evaluate
from entropy_rl.data import Problem, PromptEncoder
from entropy_rl.evaluation import report as evaluation_report
from entropy_rl.evaluation import tables
from entropy_rl.evaluation.respond import Answered, respond
from entropy_rl.policy import Policy
from entropy_rl.record import jsonl
from entropy_rl.rewards import Grader
from entropy_rl.sampling.base import GREEDY, Decoding, Sampling

TEXTS = ["the cat", "mat and hat", "sat on", "the", "hat"]
PROBLEMS = [Problem(i, text, "yes", "exact", f"size={len(text)}", "", "yes") for i, text in enumerate(TEXTS)]


def answered(right, uid=0, sample=0, answer="1", length=3, finished=True, entropy=0.5, difficulty=""):
    problem = Problem(uid, f"q{uid}", "1", "exact", difficulty)
    return Answered(problem, sample, "text", answer, right, length, finished, entropy)


@pytest.fixture(scope="module")
def policy():
    cfg = dataclasses.replace(FAMILIES["llama"], eos_ids=(2,))
    return Policy(cfg, jax.device_put(random_params(cfg)), tiny_tokenizer())


@pytest.fixture(scope="module")
def prompts(policy):
    c = config.default()
    c.data.max_prompt_len = 12
    return PromptEncoder(c.data, policy.tokenizer)


def test_respond_keeps_order_and_one_shape(policy, prompts):
    """Whatever the batch, a problem's greedy response is its own, and the last batch's surplus is dropped."""
    shapes, key = set(), jax.random.key(0)

    class Watched:
        measures_entropy = True

        def sample(self, params, prompts, key, **options):
            shapes.add(prompts.tokens_NxP.shape)
            return policy.sampler.sample(params, prompts, key, **options)

    decoding = Decoding(GREEDY, 6, policy.cfg.eos_ids)
    drawn = decoding._replace(sampling=Sampling(1.0))
    with Grader() as grader:
        ask = functools.partial(respond, Watched(), policy.params, PROBLEMS, prompts, policy.tokenizer, grader)
        greedy = ask(n=1, decoding=decoding, batch=3, key=key, first=-1)
        assert shapes == {(3, 12)}
        sampled = ask(n=2, decoding=drawn, batch=3, key=key, first=0)
        again = ask(n=2, decoding=drawn, batch=3, key=key, first=0)
    alone = policy.generate(TEXTS, n=1, max_tokens=6, temperature=0.0)
    assert [[a.text for a in some] for some in greedy] == [[r.text] for (r,) in alone]
    assert [[a.sample for a in some] for some in greedy] == [[-1]] * 5
    assert [[(a.problem.uid, a.sample) for a in some] for some in sampled] == [[(i, 0), (i, 1)] for i in range(5)]
    assert sampled == again
    np.testing.assert_allclose([a.entropy for (a,) in greedy], [np.mean(r.entropy) for (r,) in alone], atol=1e-4)
    assert all(a.length == len(r.tokens) and a.finished == r.finished for (a,), (r,) in zip(greedy, alone))


def test_rows_by_hand():
    greedy = [answered(1.0), answered(0.0), answered(None), answered(1.0)]
    row = tables.greedy_row(greedy)
    assert row["accuracy"] == pytest.approx(2 / 3) and row["problems"] == 3 and row["low"] < 2 / 3 < row["high"]
    samples = [
        [answered(1.0, 0, answer="1"), answered(0.0, 0, answer="2"), answered(1.0, 0, answer="1")],
        [answered(0.0, 1, answer="3"), answered(0.0, 1, answer="4"), answered(None, 1)],
    ]
    values = {k: v[0] for k, v in tables.sampled_row(samples, (1, 2, 3)).items()}
    assert values == pytest.approx(
        {
            "avg@3": 2 / 5,
            "pass@1": (2 / 3 + 0) / 2,
            "maj@1": (2 / 3 + 0) / 2,
            "pass@2": 0.5,
            "maj@2": (1 / 3 * 1 + 2 / 3 * 0.5) / 2,
            "pass@3": 1.0,  # the second problem has two that were scored
            "maj@3": 1.0,
        }
    )


def test_accuracy_by_groups():
    some = [
        answered(float(i % 2), uid=i, length=i + 1, finished=i < 6, entropy=i / 8, difficulty=f"level={10 - i // 4}")
        for i in range(8)
    ]
    groups = tables.by_groups(some)
    assert [(label, n, value) for label, n, value, *_ in groups["difficulty"]] == [
        ("level=9", 4, 0.5),
        ("level=10", 4, 0.5),
    ]
    assert [(label, n) for label, n, *_ in groups["truncation"]] == [("cut", 2), ("ended by itself", 6)]
    for what in ("length, tokens", "entropy, nats"):
        assert 2 <= len(groups[what]) <= 4 and sum(n for _, n, *_ in groups[what]) == 8
    assert tables.by_groups([answered(1.0, uid=i) for i in range(4)]) == {}
    many = [answered(1.0, uid=i, difficulty=str(i / 2)) for i in range(16)]
    assert sorted(n for _, n, *_ in tables.by_groups(many)["difficulty"]) == [3, 4, 4, 5]
    assert tables.by_groups([answered(1.0, uid=i, difficulty="abcdefghijklmnop"[i]) for i in range(16)]) == {}


def test_report(tmp_path):
    def result(name, rights):
        samples = [[answered(r, i, s, answer=str(r)) for s, r in enumerate(group)] for i, group in enumerate(rights)]
        greedy = [answered(group[0], i, -1) for i, group in enumerate(rights)]
        return evaluation_report.Result(name, "sums", greedy, samples)

    before, after = [[0.0, 0.0, 1.0, 0.0]] * 6, [[1.0, 1.0, 1.0, 0.0]] * 6
    text = evaluation_report.write(tmp_path / "out", [result("old", before), result("new", after)], {"k": 4})
    assert "| sums | old | 6 | 0.0 [0.0, 39.0] | 25.0 [25.0, 25.0] | 100.0 [100.0, 100.0] |" in text
    assert "new against old on sums: greedy +100.0 [+100.0, +100.0], sampled +50.0 [+50.0, +50.0] points" in text
    rows = jsonl.read(tmp_path / "out" / "responses.jsonl")
    assert len(rows) == 2 * 6 * 5 and rows[0]["sample"] == "greedy" and rows[6]["sample"] == 0
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["results"][1]["pass@2"][0] == 1.0 and saved["about"] == {"k": 4}
    assert (tmp_path / "out" / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert "old against" not in text and (tmp_path / "out" / "table.md").read_text().startswith(text)


def test_the_command_on_two_models_and_two_sets(policy, tmp_path):
    """From folders and a file to the report; a set of the command line keeps the settings that the config has."""
    policy.save(tmp_path / "a")
    policy.save(tmp_path / "b")
    (tmp_path / "words.jsonl").write_text("".join(f'{{"question": "{t}", "answer": "hat"}}\n' for t in TEXTS))
    c = evaluate.configuration(None, None)
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
    assert len(jsonl.read(tmp_path / "out" / "responses.jsonl")) == 2 * (6 + 5) * 3


def test_the_configuration_of_an_older_run_has_todays_defaults(tmp_path):
    old = {"seed": 3, "model": {"dtype": "float32"}, "data": {"task": "gcd", "settings": {"max_numbers": 3}}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    c = evaluate.configuration(str(tmp_path), None)
    assert (c.data.task, c.data.settings.max_numbers, c.seed, c.data.bad_rows) == ("gcd", 3, 3, "error")
    with pytest.raises(ValueError, match=r"--workdir: .*config\.json is not there"):
        evaluate.configuration(str(tmp_path / "none"), None)
    with pytest.raises(ValueError, match=r"--tasks: two sets would be called 'a'"):
        evaluate.with_tasks(c, ["x/a.jsonl", "y/a.jsonl"])
    assert evaluate.names_of(["x/run", "y/run", "z"]) == [("x/run", "x/run"), ("y/run", "y/run"), ("z", "z")]


@pytest.mark.slow
def test_a_saved_models_greedy_answers_are_those_of_transformers(smollm2_folder, tmp_path):  # noqa: F811
    """32 prompts through our evaluation's own batches, and one by one through transformers from the saved folder."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from entropy_rl.data import Task

    policy = erl.load(str(smollm2_folder))
    policy.save(tmp_path)
    c = config.default()
    c.data.max_prompt_len, c.data.chat = 96, True
    problems = Task("chain_sum", {"max_terms": 3, "max_digits": 2}, 0).held_out(16)
    problems += Task("gcd", {"max_value": 50}, 0).held_out(16)
    prompts = PromptEncoder(c.data, policy.tokenizer)
    decoding = Decoding(GREEDY, 32, policy.cfg.eos_ids)
    with Grader() as grader:
        ask = functools.partial(respond, policy.sampler, policy.params, problems, prompts, policy.tokenizer, grader)
        ours = ask(n=1, decoding=decoding, batch=16, key=jax.random.key(0), first=-1)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for problem, (mine,) in zip(problems, ours, strict=True):
        tokens, mask = prompts([problem])
        ids = torch.tensor(tokens[mask == 1][None].astype(np.int64))
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=32,
                do_sample=False,
                eos_token_id=list(policy.cfg.eos_ids),
                pad_token_id=0,
            )
        assert policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == mine.text
