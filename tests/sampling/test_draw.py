"""Draws follow the distribution, truncated or not, and never take a token that cannot be drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.sampling.base import Sampling
from entropy_rl.sampling.draw import draw, invert


def test_draw_follows_the_distribution():
    logits = jax.random.normal(jax.random.key(0), (1, 1000)) * 3

    @jax.jit
    def many(key):
        return draw(jnp.repeat(logits, 20_000, 0), jax.random.split(key, 20_000), Sampling(0.8))[0]

    counts = sum(np.bincount(many(jax.random.key(i)), minlength=1000) for i in range(5))
    expected = np.asarray(jax.nn.softmax(logits[0] / 0.8)) * counts.sum()
    often = expected > 5
    chi2 = np.sum((counts - expected)[often] ** 2 / expected[often])
    df = often.sum() - 1
    assert abs(chi2 - df) < 5 * np.sqrt(2 * df)


def test_draw_never_takes_what_cannot_be_drawn():
    logits = jnp.full((1, 300), -jnp.inf).at[0, 299].set(0.0).at[0, 17].set(-1.0)
    tokens, *_ = draw(jnp.repeat(logits, 4096, 0), jax.random.split(jax.random.key(1), 4096), Sampling(1.0))
    assert set(np.unique(tokens)) == {17, 299}


@pytest.mark.parametrize(
    "how, legal",
    [(dict(top_k=2), {0, 1}), (dict(top_p=0.5), {0}), (dict(top_p=0.8), {0, 1}), (dict(top_k=1, top_p=0.9), {0})],
)
def test_truncation(how, legal):
    logits = jnp.log(jnp.array([[0.6, 0.3, 0.08, 0.02]]))
    tokens, *_ = draw(jnp.repeat(logits, 2000, 0), jax.random.split(jax.random.key(1), 2000), Sampling(**how))
    assert set(np.unique(tokens)) == legal


V = 512 * 300  # a vocabulary that is cut into 300 blocks of 512


def between_sums(rng, n):
    """n rows of 512 probabilities, most of them 0, and uniforms that select places at which cumsum is not monotone."""
    p = (rng.random((400, 512)) * (rng.random((400, 512)) < 0.3)).astype(np.float32)
    total = np.asarray(jnp.cumsum(p, axis=-1))
    row, at = np.nonzero(np.diff(total, axis=1) < 0)
    assert len(row) > n
    return p[row[:n]], (total[row, at + 1] / total[row, -1]).astype(np.float32)[:n]


def probability(p, tokens):
    return np.take_along_axis(p, np.asarray(tokens)[:, None], axis=1)[:, 0]


@pytest.mark.parametrize("level", [0, 1])
def test_a_cumulative_sum_that_falls_selects_no_token_of_probability_zero(level):
    """The rows are the blocks' sums (level 0), or the tokens of the only block that can be drawn (level 1)."""
    rows, u = between_sums(np.random.default_rng(0), 100)
    p = np.zeros((100, 300, 512), np.float32)
    if level:
        p[:, 7] = rows
    else:
        p[:, :, 3] = rows[:, :300]
        total = np.asarray(jnp.cumsum(p[:, :, 3], axis=-1))
        falls = np.argmin(np.diff(total, axis=1), axis=1)
        u = total[np.arange(100), falls + 1] / total[:, -1]
    p = p.reshape(100, V)
    both = np.stack([u, u] if not level else [np.full(100, 0.5), u], axis=1).astype(np.float32)
    assert (probability(p, invert(p, both)) > 0).all()


@pytest.mark.parametrize("size", [5, 300, 5000])
def test_uniforms_at_their_ends_select_what_can_be_drawn(size):
    rng = np.random.default_rng(size)
    p = np.exp(-104 * rng.random((500, size))).astype(np.float32) * (rng.random((500, size)) < 0.1)
    p[:, size // 2] += p.max(axis=1) < 1e-30
    p[p < np.finfo(np.float32).tiny] = 0 if size == 300 else 1e-42  # numbers that a device may take for 0
    for u in (0.0, 2.0**-24, 0.5, 1 - 2.0**-23, 1 - 2.0**-24):
        assert (probability(p, invert(p, np.full((500, 2), u, np.float32))) > 1e-38).all(), u
    first = invert(p, np.zeros((500, 2), np.float32))
    assert np.array_equal(first, np.argmax(p > 1e-38, axis=1))


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.9, "temperature": 3.0}])
def test_many_draws_take_only_what_truncation_leaves(how):
    logits = 4 * jax.random.normal(jax.random.key(5), (1, 1000))
    sampling = Sampling(**how)
    many = jax.jit(lambda keys: draw(jnp.repeat(logits, 3000, 0), keys, sampling, ids=900)[0])
    drawn = np.unique(np.concatenate([many(jax.random.split(jax.random.key(i), 3000)) for i in range(3)]))
    order = np.argsort(-np.asarray(logits[0, :900]))
    p = np.asarray(jax.nn.softmax(logits[0, :900] / sampling.temperature))[order]
    count = sampling.top_k or 900
    count = int(np.sum(np.cumsum(p[:count]) - p[:count] < sampling.top_p * p[:count].sum() + 1e-6))
    assert set(drawn) <= set(order[:count]) and len(drawn) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_past_the_tokenizers_are_never_drawn(temperature):
    """The last rows of a padded head are the likeliest here: by far, and by more than float32 can hold."""
    keys = jax.random.split(jax.random.key(1), 2000)
    for more in (30.0, 300.0):
        logits = jnp.repeat(jnp.zeros((1, 300)).at[0, 290:].set(more), 2000, 0)
        token, logp, _ = draw(logits, keys, Sampling(temperature), ids=290)
        assert np.max(token) < 290 and np.allclose(logp, -more - np.log(10), atol=1e-4)
        assert np.min(draw(logits, keys, Sampling(temperature))[0]) >= 290


def test_logits_that_are_not_numbers_give_a_token_of_the_vocabulary():
    tokens, *_ = draw(jnp.full((4, 301), jnp.nan), jax.random.split(jax.random.key(0), 4), Sampling())
    assert np.max(tokens) < 301
    assert np.max(invert(jnp.full((4, 301), jnp.nan), jnp.full((4, 2), 0.9))) < 301
