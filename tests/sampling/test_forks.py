"""Two temperatures: forks have their own, every row is that of plain sampling at its temperature, bit for bit."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_batching import CFG, G, params, prompts

from entropy_rl.model.transformer import Transformer
from entropy_rl.sampling import batching
from entropy_rl.sampling.base import Decoding, Forks, Sampling
from entropy_rl.sampling.draw import draw
from entropy_rl.sampling.remote import _request

V, ROWS = 1000, 400


@functools.cache
def logits():
    """Rows from nearly certain to nearly uniform."""
    scale = jnp.linspace(0.0, 6.0, ROWS)[:, None]
    return scale * jax.random.normal(jax.random.key(0), (ROWS, V))


@functools.cache
def entropy():
    p = np.asarray(jax.nn.softmax(logits()), np.float64)
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1)


@functools.cache
def keys():
    return jax.random.split(jax.random.key(1), ROWS)


jitted = jax.jit(draw, static_argnames=("sampling", "ids"))


def drawn(sampling, ids=0):
    return jitted(logits(), keys(), sampling, ids)


@pytest.mark.parametrize("more", [{}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("ids", [0, 900])
def test_each_row_is_plain_sampling_at_its_temperature(more, ids):
    """A row's token depends on that row alone, whatever the others' temperatures are, truncated or not."""
    threshold = float(np.median(entropy()))
    assert np.min(np.abs(entropy() - threshold)) > 1e-4
    fork, other = (drawn(Sampling(t, **more), ids) for t in (1.6, 0.5))
    got = drawn(Sampling(0.5, **more, forks=Forks(threshold, 1.6)), ids)
    for a, b, x in zip(fork, other, got, strict=True):
        assert np.array_equal(x, np.where(entropy() > threshold, a, b))
    assert np.sum(np.asarray(fork[0]) != other[0]) > 100  # the temperatures matter


@functools.cache
def sampled(sampling):
    decoding = Decoding(sampling, 10, CFG.eos_ids)
    return batching.sample(Transformer(CFG), params(), prompts(), jax.random.key(3), n=G, decoding=decoding)


@pytest.mark.parametrize(
    "forks, temperature, plain",
    [
        (Forks(1.0, 0.7), 0.7, 0.7),  # equal temperatures
        (Forks(0.0, 1.3), 0.7, 1.3),  # every position is a fork
        (Forks(math.inf, 1.3), 0.7, 0.7),  # none is
    ],
    ids=["equal", "all", "none"],
)
def test_responses_are_those_of_plain_sampling_where_they_must_be(forks, temperature, plain):
    got, want = sampled(Sampling(temperature, forks=forks)), sampled(Sampling(plain))
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    assert not np.array_equal(sampled(Sampling(0.7)).tokens, sampled(Sampling(1.3)).tokens)


def test_frequencies_are_those_of_each_temperature():
    """Two distributions, of 1.28 and 0.57 nats, with the threshold between them."""
    p = np.array([[0.4, 0.3, 0.2, 0.1], [0.85, 0.08, 0.05, 0.02]])
    sampling, n = Sampling(0.5, forks=Forks(0.672, 1.5)), 40_000
    rows = jnp.repeat(jnp.log(jnp.asarray(p, jnp.float32)), n, axis=0)
    tokens, logp, entropy = jitted(rows, jax.random.split(jax.random.key(2), 2 * n), sampling)
    for i, temperature in enumerate((1.5, 0.5)):
        here = slice(i * n, (i + 1) * n)
        q = p[i] ** (1 / temperature) / np.sum(p[i] ** (1 / temperature))
        counts = np.bincount(tokens[here], minlength=4)
        assert np.sum((counts - n * q) ** 2 / (n * q)) < 21.1  # chi², 3 degrees of freedom, 1 in 10⁴
        np.testing.assert_allclose(logp[here], np.log(q)[tokens[here]], atol=1e-5)
        np.testing.assert_allclose(entropy[here], -np.sum(q * np.log(q)), atol=1e-5)


def test_plain_sampling_has_the_program_that_it_had():
    """One exponential over the vocabulary without forks, two with them."""

    def exponentials(sampling):
        text = str(jax.make_jaxpr(functools.partial(draw, sampling=sampling))(logits(), keys()))
        return text.count(f":f32[{ROWS},{V}] = exp ")

    assert exponentials(Sampling(0.7)) == 1 and exponentials(Sampling(0.7, forks=Forks(0.5, 1.0))) == 2


@pytest.mark.parametrize(
    "sampling, message",
    [
        (Sampling(forks=Forks(-0.1, 1.0)), r"--fork_threshold=-0\.1 must be 0 nats or above"),
        (Sampling(forks=Forks(math.nan, 1.0)), r"--fork_threshold=nan must be 0 nats or above"),
        (Sampling(forks=Forks(0.5, 0.0)), r"--fork_temperature=0\.0 must be a finite number above 0"),
        (Sampling(forks=Forks(0.5, math.inf)), r"--fork_temperature=inf must be a finite number above 0"),
        (Sampling(0.0, forks=Forks(0.5, 1.0)), r"--other_temperature=0\.0 must be a finite number above 0"),
        (Sampling(top_p=0.0, forks=Forks(0.5, 1.0)), r"rollout\.top_p=0\.0 must be above 0"),
    ],
)
def test_what_makes_no_distribution_is_refused(sampling, message):
    assert Sampling(0.7, forks=Forks(0.0, 1.3)).check().forks == Forks(0.0, 1.3)
    with pytest.raises(ValueError, match=message):
        sampling.check()


def test_a_server_has_one_temperature():
    with pytest.raises(ValueError, match=r"--fork_threshold: a server draws all tokens at one temperature"):
        _request(Decoding(Sampling(forks=Forks(0.5, 1.0)), 8, ()))
