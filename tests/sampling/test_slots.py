"""All responses at once: their statistics are those of the scoring pass, and they end where they should."""

import functools
import itertools

import jax
import numpy as np
import pytest
from reference.rollout import rollout
from tiny_models import ALL, random_params

from entropy_rl.model.transformer import ModelConfig, Transformer, init_params, positions
from entropy_rl.sampling.base import Decoding, Prompts, Sampling
from entropy_rl.training.batch import Batch
from entropy_rl.training.scoring import token_stats

CFG = ModelConfig(
    vocab_size=97, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, eos_ids=(5, 6, 7)
)
N, P, G, T = 3, 6, 4, 10


@functools.cache
def model_and_params():
    params = init_params(CFG, jax.random.key(0))
    params["embed"] *= 15  # an untrained model is nearly uniform: sharpen it
    return Transformer(CFG), params


def prompts():
    tokens = np.random.default_rng(0).integers(8, 97, (N, P)).astype(np.int32)
    mask = np.array([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 0, 0, 1]], np.int32)
    return Prompts(tokens * mask, mask, np.arange(N, dtype=np.uint32))


def sample(temperature=1.0, key=3, order=slice(None), n=G):
    model, params = model_and_params()
    decoding = Decoding(Sampling(temperature), T, CFG.eos_ids)
    some = Prompts(*(x[order] for x in prompts()))
    return jax.device_get(rollout(model, params, some, jax.random.key(key), n=n, decoding=decoding))


def batch_of(out):
    return Batch.of(prompts(), out)


@pytest.mark.parametrize(
    "name, unroll",
    [
        ("gemma3_text", False),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in itertools.product(ALL, (True, False))),
    ],
)
def test_statistics_of_every_family_equal_the_scoring_pass(name, unroll):
    """Windows and RoPE that differ by layer, and layers without RoPE; responses are longer than the windows."""
    model, params = Transformer(ALL[name], unroll=unroll), random_params(ALL[name])
    decoding = Decoding(Sampling(), T, (299,))
    out = jax.device_get(rollout(model, params, prompts(), jax.random.key(3), n=G, decoding=decoding))
    logp, entropy = token_stats(model, params, batch_of(out), 1.0)
    np.testing.assert_allclose(out.logp, logp, atol=1e-4)
    np.testing.assert_allclose(out.entropy, entropy, atol=1e-4)
    assert out.mask.sum() > 0.9 * out.mask.size


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_statistics_equal_the_scoring_pass(temperature):
    model, params = model_and_params()
    out = sample(temperature)
    logp, entropy = token_stats(model, params, batch_of(out), temperature)
    np.testing.assert_allclose(out.logp, logp, atol=1e-4)
    np.testing.assert_allclose(out.entropy, entropy, atol=1e-4)
    assert out.entropy[out.mask == 1].max() > 0.5  # something was sampled


def test_greedy_takes_the_likeliest_and_reports_temperature_one():
    model, params = model_and_params()
    out = sample(0.0, n=1)
    logp, entropy = token_stats(model, params, batch_of(out), 1.0)
    np.testing.assert_allclose(out.logp, logp, atol=1e-4)
    np.testing.assert_allclose(out.entropy, entropy, atol=1e-4)
    for b in range(N):
        length = out.mask[b].sum()
        rest, mask, _ = (x[b : b + 1] for x in prompts())
        whole = np.concatenate([rest, out.tokens[b : b + 1, :length]], 1)
        ones = np.concatenate([mask, np.ones((1, length), np.int32)], 1)
        hidden, _ = model.apply({"params": params}, whole, positions(ones), ones)
        assert np.array_equal(np.argmax(hidden[0, P - 1 : -1] @ params["embed"].T, -1), out.tokens[b, :length])


def test_stops_at_eos_and_masks_the_rest():
    seen = 0
    for key in range(6):
        out = sample(key=key)
        for b in range(N * G):
            length = out.mask[b].sum()
            ends = np.isin(out.tokens[b, :length], CFG.eos_ids)
            assert not ends[:-1].any() and bool(ends[-1]) == bool(out.finished[b])
            assert length == T or out.finished[b]
            for x in (out.tokens, out.logp, out.entropy, out.mask):
                assert not x[b, length:].any()
            seen += bool(out.finished[b]) and length < T
    assert seen > 3


def test_same_key_same_result_and_rows_do_not_matter():
    first, again = sample(), sample()
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    order = [2, 0, 1]
    moved = sample(order=order)
    rows = np.concatenate([np.arange(n * G, n * G + G) for n in order])
    assert np.array_equal(moved.tokens, first.tokens[rows])


def test_samples_of_a_prompt_and_steps_differ():
    out, other = sample(), sample(key=4)
    assert len({tuple(row) for row in out.tokens[:G]}) > 1
    assert not np.array_equal(out.tokens, other.tokens)
