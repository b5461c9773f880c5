"""Continuous batching: the responses are those made all at once, whatever the slots and however a response ends."""

import functools

import jax
import numpy as np
import pytest
from reference.rollout import rollout

from entropy_rl.data import tiny_tokenizer
from entropy_rl.model.transformer import ModelConfig, Transformer, init_params
from entropy_rl.policy import Policy
from entropy_rl.sampling import batching, room
from entropy_rl.sampling.base import Decoding, Prompts, Sampling

CFG = ModelConfig(
    vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, eos_ids=tuple(range(5, 20))
)
N, P, G = 4, 6, 4
COMPILED = batching._admit, batching._refill, batching._advance


@functools.cache
def params():
    p = init_params(CFG, jax.random.key(0))
    p["embed"] *= 15  # an untrained model is nearly uniform: sharpen it
    return p


def prompts(n=N):
    tokens = np.random.default_rng(0).integers(20, 97, (n, P)).astype(np.int32)
    mask = (np.arange(P) >= np.random.default_rng(1).integers(0, P, n)[:, None]).astype(np.int32)
    return Prompts(tokens * mask, mask, np.arange(n, dtype=np.uint32))


def sample(T=20, unroll=False, n=N, eos=CFG.eos_ids, temperature=1.0, **more):
    decoding = Decoding(Sampling(temperature), T, eos)
    model = Transformer(CFG, unroll=unroll)
    return batching.sample(model, params(), prompts(n), jax.random.key(3), n=G, decoding=decoding, **more)


def together(T=20, n=N, eos=CFG.eos_ids):
    decoding = Decoding(Sampling(), T, eos)
    return jax.device_get(rollout(Transformer(CFG), params(), prompts(n), jax.random.key(3), n=G, decoding=decoding))


def same(a, b):
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.mask, b.mask)
    assert np.array_equal(a.finished, b.finished)
    np.testing.assert_allclose(a.logp, b.logp, atol=2e-5)
    np.testing.assert_allclose(a.entropy, b.entropy, atol=2e-5)


QUICK = {(0, 16, False), (8, 3, False), (1, 7, False), (5, 2, True)}
SLOW = {(0, 16, True), (8, 3, True), (1, 7, True), (5, 2, False), (0, 3, False), (0, 3, True)}


@pytest.mark.parametrize(
    "slots, chunk, unroll", [*sorted(QUICK), *(pytest.param(*x, marks=pytest.mark.slow) for x in sorted(SLOW))]
)
def test_the_same_responses_whatever_the_slots(slots, chunk, unroll):
    want = together()
    lengths = want.mask.sum(axis=1)
    assert lengths.min() < 8 and lengths.max() > 12  # they end at different times
    same(sample(slots=slots, chunk=chunk, unroll=unroll), want)


@pytest.mark.parametrize("slots, chunk", [(0, 8), pytest.param(3, 5, marks=pytest.mark.slow)])
def test_the_cache_grows_and_goes_round(slots, chunk, monkeypatch):
    monkeypatch.setattr(room, "FIRST_CACHE", 4)
    same(sample(T=50, eos=tuple(range(5, 9)), slots=slots, chunk=chunk), together(T=50, eos=tuple(range(5, 9))))


def test_bitwise_the_same_again_and_in_any_slot():
    first, again = sample(slots=4, chunk=3), sample(slots=4, chunk=3)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)


def test_greedy_needs_no_luck():
    out, again = sample(temperature=0.0), sample(temperature=0.0, slots=2)
    assert np.array_equal(out.tokens, again.tokens)
    assert all(len({tuple(row) for row in out.tokens[i * G : i * G + G]}) == 1 for i in range(N))


def test_full_length_one_token_and_no_prompt():
    out = sample(eos=(), T=9)
    assert (out.mask == 1).all() and not out.finished.any()
    one = sample(T=1)
    assert one.mask.shape == (N * G, 1) and np.array_equal(one.tokens[:, 0], sample().tokens[:, 0])
    assert np.array_equal(one.finished, np.isin(one.tokens[:, 0], CFG.eos_ids))
    empty = sample(n=0)
    assert empty.tokens.shape == (0, 20)


def test_a_stop_ends_a_response_where_it_is_found():
    """A stop at the first token that 3 divides, which may come before, at or after the response's own end."""
    want = together()

    def stop(made, seen=0):
        assert not (made[:seen] % 3 == 0).any()  # what was seen before had none
        found = np.flatnonzero(made % 3 == 0)
        return int(found[0]) + 1 if len(found) else None

    out = sample(slots=5, chunk=4, watch=batching.Watch(stop))
    stopped = 0
    for b, length in enumerate(want.mask.sum(axis=1)):
        end = stop(want.tokens[b, :length])
        stopped += end is not None and end < length
        end = length if end is None else end
        assert out.mask[b].sum() == end and np.array_equal(out.tokens[b, :end], want.tokens[b, :end])
        assert out.finished[b] or (end == length and not want.finished[b])
        for x in out[:4]:
            assert not x[b, end:].any()
    assert stopped > 3


def test_each_response_is_reported_once_when_it_has_ended():
    seen = []

    def done(rows, out):
        seen.extend((b, out.tokens[b].copy()) for b in rows)

    out = sample(slots=5, chunk=3, watch=batching.Watch(done=done))
    assert sorted(b for b, _ in seen) == list(range(N * G))
    assert all(np.array_equal(tokens, out.tokens[b]) for b, tokens in seen)


@pytest.mark.slow
def test_a_slot_refilled_a_thousand_times_leaks_nothing():
    run = functools.partial(sample, T=6, n=260, slots=1, chunk=2)
    first = run(watch=batching.UNWATCHED)
    compiled, arrays = [f._cache_size() for f in COMPILED], len(jax.live_arrays())
    rows = np.random.default_rng(0).integers(0, 260 * G, 5)
    again = run()
    assert np.array_equal(first.tokens, again.tokens)
    assert [f._cache_size() for f in COMPILED] == compiled
    assert len(jax.live_arrays()) <= arrays
    # the thousandth response is what it would have been alone
    want = together(T=6, n=260)
    for b in (*rows, 260 * G - 1):
        assert np.array_equal(first.tokens[b], want.tokens[b])


def test_generate_stops_at_a_string_and_names_an_over_long_prompt():
    tokenizer = tiny_tokenizer()
    cfg = ModelConfig(len(tokenizer), 32, 2, 4, 2, 8, 64, max_positions=40)
    policy = Policy(cfg, init_params(cfg, jax.random.key(0)), tokenizer)
    free = policy.generate(["1 + 1 ="], n=4, max_tokens=12)[0]
    letter = next(ch for ch in free[0].text[1:] if ch.strip())
    for before, r in zip(free, policy.generate(["1 + 1 ="], n=4, max_tokens=12, stop=[letter])[0]):
        if letter in before.text:
            assert r.finished and r.text == before.text[: before.text.index(letter) + 1]
        else:
            assert r.text == before.text
    with pytest.raises(ValueError, match=r"40 positions"):
        policy.generate(["1 + 1 = " * 20], n=1, max_tokens=12)
