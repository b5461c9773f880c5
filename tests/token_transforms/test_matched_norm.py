"""Matched norm: the norm that the inner transform leaves, over all tokens."""

import jax
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt


def norm(grads: tt.TokenGrads) -> float:
    return float(np.sqrt(np.sum(np.square(grads.logp)) + np.sum(np.square(grads.entropy))))


def test_it_matches_the_norm_of_the_inner_transform_and_keeps_the_direction():
    grads, tokens = random_tokens(0, 6, 20)
    made, inner = (tt.build([s]) for s in (("matched_norm", {"inner": ("keep_top_entropy", {})}), "keep_top_entropy"))
    out, state = jax.jit(made.update)(grads, made.init(grads), tokens=tokens, key=None)
    expected, _ = jax.jit(inner.update)(grads, inner.init(grads), tokens=tokens, key=None)
    assert norm(out) == pytest.approx(norm(expected), rel=1e-5)
    assert norm(out) != pytest.approx(norm(grads), rel=1e-2)
    np.testing.assert_allclose(out.logp / norm(out), grads.logp / norm(grads), rtol=1e-4, atol=1e-7)
    assert float(tt.kept_fraction(state)) == 1.0


def test_the_inner_state_is_kept():
    grads, tokens = random_tokens(0, 6, 20)
    made = tt.build([("matched_norm", {"inner": ("positive_reweighting", {"initial": 0.5})})])
    _, state = made.update(grads, made.init(grads), tokens=tokens, key=None)
    assert 0.55 in [pytest.approx(float(x)) for x in jax.tree.leaves(state)]
