"""The notebook calls: load, logits, score, generate, save; greedy tokens are those of transformers."""

import dataclasses

import jax
import numpy as np
import pytest
from samplers import Recorder
from smollm2 import smollm2_folder  # noqa: F401
from tiny_models import FAMILIES, random_params, tiny_tokenizer

import entropy_rl as erl
from entropy_rl.data import encode_prompts
from entropy_rl.policy import Policy
from entropy_rl.sampling.base import Decoding, Prompts, Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = [
    "What is 12 + 345?",
    "Name three rivers of Europe.",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "Solve for x: 3x + 7 = 22.",
    "Who was Ada Lovelace?",
    "List the first five prime numbers.",
    "Explain entropy to a child.",
]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def tiny(request):
    cfg = dataclasses.replace(FAMILIES[request.param], eos_ids=(2,))
    return Policy(cfg, jax.device_put(random_params(cfg)), tiny_tokenizer())


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):  # noqa: F811
    return erl.load(str(smollm2_folder))


def check_scores(policy, temperature, side):
    """score() against log-softmax of logits(), at every position that has a predecessor."""
    rng = np.random.default_rng(0)
    lengths, S = np.array([11, 6, 1]), 11
    place = np.arange(S)[None]
    mask = place >= S - lengths[:, None] if side == "left" else place < lengths[:, None]
    tokens = rng.integers(3, policy.cfg.vocab_size, mask.shape) * mask
    logp, entropy = policy.score(tokens, mask, temperature=temperature)
    want = np.asarray(jax.nn.log_softmax(policy.logits(tokens, mask) / temperature))
    for b, length in enumerate(lengths):
        start = S - length if side == "left" else 0
        inside = np.arange(start + 1, start + length)
        np.testing.assert_allclose(logp[b, inside], want[b, inside - 1, tokens[b, inside]], atol=1e-4)
        p = want[b, inside - 1]
        np.testing.assert_allclose(entropy[b, inside], -np.sum(np.exp(p) * p, -1), atol=1e-4)
        outside = np.setdiff1d(np.arange(S), inside)
        assert not np.asarray(logp)[b, outside].any() and not np.asarray(entropy)[b, outside].any()


def check_sampler(policy, prompts, temperature, max_tokens):
    """generate()'s logp and entropy equal score()'s on the same tokens."""
    for prompt, group in zip(prompts, policy.generate(prompts, n=2, max_tokens=max_tokens, temperature=temperature)):
        start = policy.tokenizer(prompt)["input_ids"]
        for r in group:
            whole = np.array([[*start, *r.tokens]])
            score = policy.score(whole, np.ones_like(whole), temperature=temperature)
            np.testing.assert_allclose(r.logp, score.logp[0, len(start) :], atol=1e-4)
            np.testing.assert_allclose(r.entropy, score.entropy[0, len(start) :], atol=1e-4)
            assert (len(r.tokens) == max_tokens) or r.finished


def check_greedy(policy, folder, prompts, max_tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = policy.generate(prompts, n=1, max_tokens=max_tokens, temperature=0.0)
    beyond = list(range(len(policy.tokenizer), policy.cfg.vocab_size))  # ids of no token, which we do not draw
    for prompt, (response,) in zip(prompts, ours):
        ids = policy.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(
                **ids,
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=list(policy.cfg.eos_ids),
                pad_token_id=0,
                suppress_tokens=beyond or None,
            )
        assert response.tokens.tolist() == out[0, ids["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_score_is_logits(tiny, temperature, side):
    check_scores(tiny, temperature, side)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_equals_score(tiny, temperature):
    check_sampler(tiny, ["the cat", "mat and the hat sat"], temperature, 12)


def test_greedy_and_saved_folder(tiny, tmp_path):
    tiny.save(tmp_path)
    check_greedy(tiny, tmp_path, ["the cat sat", "on the mat", "hat"], 24)
    again = erl.load(str(tmp_path))
    tokens = np.array([[5, 6, 7, 8]])
    assert np.array_equal(again.logits(tokens, tokens > 0), tiny.logits(tokens, tokens > 0))


def test_generate_is_a_function_of_seed_and_prompt(tiny):
    def draw(prompts, seed):
        return [[r.text for r in group] for group in tiny.generate(prompts, 3, 8, seed=seed)]

    first = draw(["the cat", "the mat"], 0)
    assert first == draw(["the cat", "the mat"], 0)
    assert first[::-1] == draw(["the mat", "the cat"], 0)
    assert first != draw(["the cat", "the mat"], 1)
    twice = draw(["the cat", "the cat"], 0)
    assert twice[0] == first[0] and twice[1] != twice[0]
    assert tiny.generate([]) == []


def test_a_policy_for_use_holds_its_parameters_in_the_dtype_that_it_computes_in(tiny, tmp_path):
    tiny.save(tmp_path)
    loaded = erl.load(str(tmp_path), dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {np.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(erl.load(str(tmp_path)).params)} == {np.dtype("float32")}
    converted = Policy(tiny.cfg, tiny.params, tiny.tokenizer, loaded.model.dtype)  # converts at each call
    tokens = np.array([[5, 6, 7, 8]])
    assert np.array_equal(loaded.logits(tokens, tokens > 0), converted.logits(tokens, tokens > 0))
    for a, b in zip(loaded.score(tokens, tokens > 0), converted.score(tokens, tokens > 0), strict=True):
        assert np.array_equal(a, b)
    one, other = (p.generate(["the cat"], n=4, max_tokens=8)[0] for p in (loaded, converted))
    assert [r.tokens.tolist() for r in one] == [r.tokens.tolist() for r in other]


def test_a_policy_samples_by_way_of_its_sampler(tiny, monkeypatch):
    """`rollout` and `generate` pass on the policy's parameters and what they are given, to any `Sampler`."""
    recorder = Recorder()
    monkeypatch.setattr(tiny, "sampler", recorder)
    prompts = Prompts(*encode_prompts(tiny.tokenizer, ["the cat"], 8), np.zeros(1, np.uint32))
    key, decoding = jax.random.key(7), Decoding(Sampling(0.7), 5, (2,))
    out = tiny.rollout(prompts, key, n=3, decoding=decoding)
    assert out.tokens.shape == (3, 5)
    asked = recorder.asked.pop()
    assert asked.params is tiny.params and asked.prompts is prompts and asked.key is key
    assert asked[3:] == (3, decoding, None)
    made = tiny.generate(["the cat", "hat"], n=2, max_tokens=5, temperature=0.6, top_p=0.9, top_k=4, seed=3, stop=["!"])
    assert [[r.text for r in group] for group in made] == [["", ""]] * 2
    (asked,) = recorder.asked
    assert asked.params is tiny.params and asked.prompts.tokens_NxP.shape == (2, 32)
    assert (asked.seed, asked.n, asked.decoding) == (3, 2, Decoding(Sampling(0.6, 0.9, 4), 5, (2,), ("!",)))


def test_wrong_input_is_named(tiny):
    with pytest.raises(ValueError, match=r"tokens \(1, 3\) and mask \(1, 2\) must both be \[B, S\]"):
        tiny.logits(np.zeros((1, 3)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="rollout.temperature=-1 must be 0"):
        tiny.generate(["the"], temperature=-1)
    with pytest.raises(ValueError, match="is empty"):
        tiny.generate([""])


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_smollm2_sampler_equals_score(smollm2, temperature):
    check_sampler(smollm2, PROMPTS[:4], temperature, 24)


@pytest.mark.slow
def test_smollm2_greedy_equals_transformers(smollm2, smollm2_folder):  # noqa: F811
    """64 tokens on 8 prompts, in one padded batch here and one by one there."""
    chat = [
        smollm2.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in PROMPTS
    ]
    check_greedy(smollm2, smollm2_folder, chat, 64)
