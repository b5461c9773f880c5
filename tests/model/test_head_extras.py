"""What the head computes beside logp and entropy, against dense logits. B sequences, T positions, D width, V tokens."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from entropy_rl.model import head, head_extras
from entropy_rl.model.head_extras import NONE, Extras
from entropy_rl.runtime.mesh import FSDP, ROWS, TENSOR, make_mesh

B, T, D, V = 8, 3, 8, 56
ALL = Extras(prob_square=True, score_mean=True, top_p=0.8)
OFFICIAL = np.load(pathlib.Path(__file__).parents[1] / "golden" / "official_entropy_scores.npz")


def inputs(scale=1.0):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, W = scale * jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (D, V))
    return hidden, W, jax.random.randint(keys[2], (B, T), 0, V), jax.random.bernoulli(keys[3], 0.7, (B, T))


def nucleus_of(p, top_p):
    """The fewest tokens of highest probability that have top_p together, bool[..., V], by a sort."""
    order = np.argsort(-p, axis=-1, kind="stable")
    ordered = np.take_along_axis(p, order, -1)
    inside = np.zeros(p.shape, bool)
    np.put_along_axis(inside, order, np.cumsum(ordered, -1) - ordered < top_p, -1)
    return inside


def dense(logits, targets, mask, inside):
    """(logp, entropy, Σ π², E_π S, nucleus entropy) of whole logits; `inside` is the nucleus."""
    logp = jax.nn.log_softmax(logits)
    p = jnp.exp(logp)
    entropy = -jnp.sum(p * logp, -1)
    log_q = logp - jax.nn.logsumexp(logp, axis=-1, where=inside, keepdims=True)
    at_target = jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
    score_mean = jnp.sum(p**2 * (entropy[..., None] + logp), -1)
    nucleus = -jnp.sum(jnp.where(inside, jnp.exp(log_q) * log_q, 0), -1)
    return tuple(mask * x for x in (at_target, entropy, jnp.sum(p**2, -1), score_mean, nucleus))


@pytest.mark.parametrize(
    "temperature, top_p, scale", [(1.0, 0.8, 1.0), (0.7, 0.5, 0.3), (1.0, 0.95, 2.0), (1.0, 1.0, 1.0)]
)
def test_equals_dense_forward_and_backward(temperature, top_p, scale):
    hidden, W, targets, mask = inputs(scale)
    extras = ALL._replace(top_p=top_p)
    inside = nucleus_of(np.asarray(jax.nn.softmax(hidden @ W / temperature), np.float64), top_p)
    ours = jax.jit(lambda h, w: head.token_statistics(h, w, targets, temperature, mask, 4, extras))
    want, want_vjp = jax.vjp(lambda h, w: dense(h @ w / temperature, targets, mask, inside), hidden, W)
    got, got_vjp = jax.vjp(ours, hidden, W)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
    for keep in (1.0, 0.3):  # share of cotangents that are not zero
        g = jax.random.normal(jax.random.key(2), (5, B, T)) * jax.random.bernoulli(jax.random.key(3), keep, (5, B, T))
        detached = (g[0], g[1], 0 * g[2], 0 * g[3], g[4])  # the two sums have no gradient
        for a, b in zip(got_vjp(tuple(g)), want_vjp(detached), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5)


@pytest.mark.parametrize("extras", [Extras(prob_square=True), Extras(score_mean=True), Extras(top_p=0.8)])
def test_each_alone_is_what_it_is_among_all(extras):
    hidden, W, targets, mask = inputs()
    every = dict(zip(("logp", "entropy", *ALL.names), head.token_statistics(hidden, W, targets, 1.0, mask, 4, ALL)))
    (name,) = extras.names
    got = head.token_statistics(hidden, W, targets, 1.0, mask, 4, extras)
    for a, key in zip(got, ("logp", "entropy", name), strict=True):
        np.testing.assert_allclose(a, every[key], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 2, 2)])
def test_a_mesh_changes_only_rounding(shape):
    hidden, W, targets, mask = inputs()
    g = tuple(jax.random.normal(jax.random.key(2), (5, B, T)))

    def run(hidden, W):
        out, vjp = jax.vjp(lambda h, w: head.token_statistics(h, w, targets, 0.7, mask, 8, ALL), hidden, W)
        return out, vjp(g)

    want = jax.jit(run)(hidden, W)
    with jax.set_mesh(make_mesh(*shape)):
        placed = jax.device_put(hidden, P(ROWS)), jax.device_put(W, P(FSDP, TENSOR))
        for a, b in zip(jax.tree.leaves(jax.jit(run)(*placed)), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_tokens_that_tie_with_the_last_one_belong_to_the_nucleus():
    """Of probabilities 0.4, 0.2, 0.2, 0.1, 0.1 the nucleus of 0.5 has the first three."""
    W = jnp.log(jnp.array([[0.4, 0.2, 0.2, 0.1, 0.1]]))
    _, _, got = head.token_statistics(jnp.ones((1, 1, 1)), W, jnp.zeros((1, 1), jnp.int32), extras=Extras(top_p=0.5))
    q = np.array([0.5, 0.25, 0.25])
    assert float(got[0, 0]) == pytest.approx(-(q * np.log(q)).sum(), rel=1e-5)


def test_infinite_logits_stay_finite():
    """One token has all the probability, and one cannot be drawn: its nucleus has entropy 0."""
    hidden, W, targets = jnp.full((1, 2, 1), 10.0), jnp.array([[1e5, -1e5, -3e38]]), jnp.zeros((1, 2), jnp.int32)

    def f(h, w):
        out = head.token_statistics(h, w, targets, extras=ALL)
        return sum(jnp.sum(x) for x in out), out

    (_, out), grads = jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(hidden, W)
    assert [float(x[0, 0]) for x in out] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert all(np.all(np.isfinite(g)) for g in grads)


def test_what_is_not_asked_for_is_not_computed():
    """Three arrays of positions are filled, as ever: logp, entropy and the normaliser; and there is no bisection."""
    hidden, W, targets, mask = inputs()

    def program(extras):
        return str(jax.make_jaxpr(lambda h, w: head.token_statistics(h, w, targets, 1.0, mask, 4, extras))(hidden, W))

    plain, every = program(NONE), program(ALL)
    assert "bitcast_convert" not in plain and "bitcast_convert" in every
    filled = [len(re.findall(r"= scatter\[", text)) for text in (plain, every)]
    assert filled == [2 * 3, 2 * 8]  # in the loop over chunks and in the rest's


@pytest.mark.parametrize("case", range(3))
def test_the_official_code_gives_the_same_numbers(case):
    """E_π S of agentscope-ai/Trinity-RFT, the nucleus entropy of Linn3a/siren.

    The numbers come from `compute_N_from_logits` (examples/entropy/clipv_dp_actor.py in hiyuchang/Trinity-RFT at
    eedef4b5) and from `efficient_top_p_sampling` (verl/verl/workers/actor/dp_actor.py at fa59a8df), run in torch. The
    latter's nucleus lacks the token that reaches p. So ours is asked for a p that the token before has reached.
    """
    logits = OFFICIAL[f"case{case}/logits"]
    number, V = logits.shape[0] * logits.shape[1], logits.shape[2]
    hidden = logits.reshape(1, number, V)
    targets = jnp.zeros((1, number), jnp.int32)
    _, _, mean = head.token_statistics(hidden, jnp.eye(V), targets, extras=Extras(score_mean=True))
    np.testing.assert_allclose(mean.reshape(logits.shape[:2]), OFFICIAL[f"case{case}/score_mean"], atol=2e-6)

    d = logits - logits.max(-1, keepdims=True)
    e = jnp.exp(d)
    log_total = jnp.log(e.sum(-1))
    ordered = -np.sort(-np.asarray(jax.nn.softmax(logits), np.float64), axis=-1)
    reached = np.cumsum(ordered, -1)
    for top_p in (0.8, 0.95):
        size = (reached < top_p).sum(-1)
        official = OFFICIAL[f"case{case}/nucleus_{top_p}"]
        assert size.max() > 2 and not official[size == 0].any()
        for n in range(1, 4):
            for b, t in zip(*np.nonzero(size == n), strict=True):
                part = (float(reached[b, t, n - 1]) - 1e-6, d[b, t, None], e[b, t, None], log_total[b, t, None], None)
                assert float(head_extras.nucleus(*part).entropy[0]) == pytest.approx(official[b, t], abs=2e-5)
