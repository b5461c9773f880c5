"""Chains: they equal optax.chain; the share that all masks keep; and errors in a config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt

SPEC = [("entropy_bonus", {"coef": 0.1}), ("clip_cov", {"fraction": 0.2, "low": -1.0}), "keep_top_entropy"]


def test_it_edits_like_optax_chain():
    grads, tokens = random_tokens(0, 6, 20)
    ours = tt.build(SPEC)
    theirs = optax.chain(tt.entropy_bonus(0.1), tt.clip_cov(0.2, low=-1.0), tt.keep_top_entropy())
    key = jax.random.key(0)
    a, _ = ours.update(grads, ours.init(grads), tokens=tokens, key=key)
    b, _ = theirs.update(grads, theirs.init(grads), tokens=tokens, key=key)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_kept_share_is_of_all_masks_together():
    grads, tokens = random_tokens(0, 6, 20)
    overlapping = tt.build([("keep_top_entropy", {"fraction": 0.5}), ("keep_top_entropy", {"fraction": 0.3})])
    disjoint = tt.build([("keep_top_entropy", {"fraction": 0.3}), ("keep_bottom_entropy", {"fraction": 0.7})])
    n = int(tokens.mask.sum())
    for made, own in ((overlapping, (n // 2, int(0.3 * n))), (disjoint, (int(0.3 * n), n - int(0.3 * n)))):
        _, state = made.update(grads, made.init(grads), tokens=tokens, key=None)
        np.testing.assert_allclose([s.kept for s in state.inner], np.array(own) / n, rtol=1e-6)
        joint = 0.0 if made is disjoint else own[1] / n
        assert float(tt.kept_fraction(state)) == pytest.approx(joint)


def test_zero_advantage_and_ppo_clip_do_not_count_as_masked():
    grads, tokens = random_tokens(0, 6, 20)
    made = tt.build(["keep_top_entropy"])
    _, state = made.update(jax.tree.map(jnp.zeros_like, grads), made.init(grads), tokens=tokens, key=None)
    assert float(tt.kept_fraction(state)) == pytest.approx(int(0.2 * tokens.mask.sum()) / float(tokens.mask.sum()))


def test_without_masks_all_tokens_are_kept():
    grads, tokens = random_tokens(0, 6, 20)
    made = tt.build([])
    out, state = made.update(grads, made.init(grads), tokens=tokens, key=None)
    jax.tree.map(np.testing.assert_array_equal, out, grads)
    assert float(tt.kept_fraction(state)) == 1.0
    assert float(tt.kept_fraction(optax.EmptyState())) == 1.0


def test_weights_and_uids_default_to_the_token_mean_and_the_row():
    grads, tokens = random_tokens(0, 6, 20, ties=True)
    rows = tokens._replace(uid=jnp.arange(6, dtype=jnp.uint32), weight=tokens.mask / tokens.mask.sum())
    made, key = tt.build(SPEC), jax.random.key(0)
    a, b = (
        made.update(grads, made.init(grads), tokens=t, key=key)[0] for t in (rows, rows._replace(uid=None, weight=None))
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_different_shapes_are_an_error():
    grads, tokens = random_tokens(0, 6, 20)
    for spec in ("keep_top_entropy", ("entropy_bonus", {"coef": 0.1})):
        made = tt.build([spec])
        with pytest.raises(ValueError, match=r"shapes differ: logp gradient \(6, 10\), entropy gradient \(6, 20\)"):
            made.update(grads._replace(logp=grads.logp[:, :10]), made.init(grads), tokens=tokens, key=None)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("clip_cv", r"algo.transforms: unknown name 'clip_cv' \(did you mean 'clip_cov'\?\); legal names: adap"),
        (
            ("clip_cov", {"ratio": 1}),
            "algo.transforms: clip_cov has no option 'ratio'; legal options: fraction, low, high",
        ),
        ("entropy_bonus", "algo.transforms: entropy_bonus needs the option 'coef', which is missing"),
        (("clip_cov", 0.1), "algo.transforms: got .* expected a name or a pair"),
        (("matched_norm", {"inner": "nothing"}), r"algo.transforms.matched_norm.inner: unknown name 'nothing'"),
    ],
)
def test_a_spec_that_cannot_be_built_is_an_error(spec, match):
    with pytest.raises(ValueError, match=match):
        tt.build([spec])


def test_an_unknown_scope_is_an_error():
    with pytest.raises(ValueError, match=r"algo.scope: got 'local', choose 'global' or 'microbatch'"):
        tt.build([], scope="local")


def test_the_trace_names_the_transform_that_acted_on_a_token():
    grads, tokens = random_tokens(0, 6, 20)
    spec = [
        ("keep_top_entropy", {"fraction": 0.6}),
        ("keep_bottom_entropy", {"fraction": 0.6}),
        ("kl_cov", {"fraction": 0.2}),
    ]
    made, key = tt.build(spec), jax.random.key(0)
    after, state, acted = jax.jit(made.trace)(grads, made.init(grads), tokens=tokens, key=key)
    plain, plain_state = jax.jit(made.update)(grads, made.init(grads), tokens=tokens, key=key)
    jax.tree.map(np.testing.assert_array_equal, (after, state), (plain, plain_state))
    there = np.asarray(tokens.mask) > 0
    top, bottom = (
        np.asarray(t.factor(tokens, key)) > 0 for t in (tt.keep_top_entropy(0.6), tt.keep_bottom_entropy(0.6))
    )
    alone = tt.kl_cov(0.2)
    penalised = np.asarray(alone.update(grads, alone.init(grads), tokens=tokens, key=key)[0].logp != grads.logp)
    want = np.where(~top, 1, np.where(~bottom, 2, np.where(penalised, 3, 0)))  # a mask counts, and then the last one
    np.testing.assert_array_equal(np.asarray(acted)[there], want[there])
    assert set(want[there].tolist()) == {0, 1, 2, 3} and acted.dtype == np.uint8
    assert not np.asarray(acted)[~there].any()
