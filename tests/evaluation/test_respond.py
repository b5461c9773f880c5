"""Responses to fixed problems: their order, their one shape, and the same answers as transformers."""

import functools

import jax
import numpy as np
import pytest
from evaluations import PROBLEMS, TEXTS
from samplers import Recorder
from smollm2 import smollm2_folder  # noqa: F401

import entropy_rl as erl
from entropy_rl import config
from entropy_rl.data import Problem, PromptEncoder
from entropy_rl.evaluation.respond import respond
from entropy_rl.rewards import Grader
from entropy_rl.sampling.base import GREEDY, Decoding, Rollout, Sampling


def test_respond_keeps_order_and_one_shape(policy, encoder):
    """Whatever the batch, a problem's greedy response is its own, and the last batch's surplus is dropped."""
    recorder, key = Recorder(policy.sampler), jax.random.key(0)
    decoding = Decoding(GREEDY, 6, policy.cfg.eos_ids)
    drawn = decoding._replace(sampling=Sampling(1.0))
    with Grader() as grader:
        ask = functools.partial(respond, recorder, policy.params, PROBLEMS, encoder, policy.tokenizer, grader)
        greedy = ask(n=1, decoding=decoding, batch=3, key=key, first=-1)
        assert {asked.prompts.tokens_NxP.shape for asked in recorder.asked} == {(3, 12)}
        sampled = ask(n=2, decoding=drawn, batch=3, key=key, first=0)
        again = ask(n=2, decoding=drawn, batch=3, key=key, first=0)
    alone = policy.generate(TEXTS, n=1, max_tokens=6, temperature=0.0)
    assert [[a.text for a in some] for some in greedy] == [[r.text] for (r,) in alone]
    assert [[a.sample for a in some] for some in greedy] == [[-1]] * 5
    assert [[(a.problem.uid, a.sample) for a in some] for some in sampled] == [[(i, 0), (i, 1)] for i in range(5)]
    assert sampled == again
    np.testing.assert_allclose([a.entropy for (a,) in greedy], [np.mean(r.entropy) for (r,) in alone], atol=1e-4)
    assert all(a.length == len(r.tokens) and a.finished == r.finished for (a,), (r,) in zip(greedy, alone))


class Scripted:
    """A sampler whose response to a prompt is given by the prompt's uid."""

    measures_entropy = True

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts = tokenizer, texts

    def sample(self, params, prompts, key, *, n, decoding, done=None):
        made = Rollout.empty(len(prompts.uid_N) * n, decoding.max_tokens)
        for b, uid in enumerate(np.repeat(prompts.uid_N, n)):
            ids = self.tokenizer(self.texts[uid])["input_ids"]
            made.tokens[b, : len(ids)], made.mask[b, : len(ids)] = ids, 1
        return made


def scores(encoder, texts, batch, answer="5"):
    tokenizer = encoder._tokenizer
    problems = [Problem(i, f"q{i}", answer, "math") for i in range(len(texts))]
    decoding = Decoding(GREEDY, 60, ())
    with Grader(1, 1.0) as grader:
        found = respond(
            Scripted(tokenizer, texts), {}, problems, encoder, tokenizer, grader,
            n=1, decoding=decoding, batch=batch, key=jax.random.key(0), first=-1,
        )  # fmt: skip
    return [answered.score for (answered,) in found]


@pytest.mark.parametrize("batch", [3, 2, 1])
def test_a_response_that_cannot_be_graded_alone_in_a_batch_is_none(encoder, batch):
    """cases/s01: it ended the evaluation if it was alone in the last batch."""
    texts = ["\\boxed{5}", "\\boxed{6}", "\\boxed{9^{9^{9^9}}}"]
    found = scores(encoder, texts, batch)
    assert found[:2] == [1.0, 0.0] and found[2] in (None, 0.0)
    assert scores(encoder, texts[:2], batch, answer="$$") == [None, None]


def test_an_evaluation_of_which_nothing_can_be_scored_ends(encoder):
    """Every grader is broken here: each right answer is one that the verifier cannot read."""
    with pytest.raises(RuntimeError, match="0 of 8 scored"):
        scores(encoder, ["\\boxed{5}"] * 9, 4, answer="$$")


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
    encoder = PromptEncoder(c.data, policy.tokenizer)
    decoding = Decoding(GREEDY, 32, policy.cfg.eos_ids)
    with Grader() as grader:
        ask = functools.partial(respond, policy.sampler, policy.params, problems, encoder, policy.tokenizer, grader)
        ours = ask(n=1, decoding=decoding, batch=16, key=jax.random.key(0), first=-1)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for problem, (mine,) in zip(problems, ours, strict=True):
        tokens, mask = encoder([problem])
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
