"""The scope of statistics: the whole update for any number of micro-batches, or each one separately on request."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.objective.registry import Spec
from entropy_rl.stats import blocks

SPECS = [("kl_cov", {"fraction": 0.1}), ("clip_cov", {"fraction": 0.1, "low": 0.0})]
RARE = [("kl_cov", {"fraction": 2e-4})]


def run(specs: list[Spec], grads: tt.TokenGrads, tokens: tt.TokenInfo, **scope: Any) -> tt.TokenGrads:
    made = tt.build(specs, **scope)
    return jax.jit(made.update)(grads, made.init(grads), tokens=tokens, key=jax.random.key(0))[0]


def test_with_global_scope_the_number_of_micro_batches_changes_nothing():
    grads, tokens = random_tokens(0, 8, 20)
    whole = run(SPECS, grads, tokens)
    for n in (2, 4, 8):
        jax.tree.map(np.testing.assert_array_equal, run(SPECS, grads, tokens, micro_batches=n), whole)


def test_each_micro_batch_is_edited_as_if_alone():
    grads, tokens = random_tokens(0, 8, 20)
    out = run(SPECS, grads, tokens, scope="microbatch", micro_batches=2, group_size=2)
    for i in range(2):  # prompts 0 and 2, prompts 1 and 3: the blocks of the train step
        block = blocks.split(np.arange(8), 2, 4)[i]
        assert block.tolist() == [2 * i, 2 * i + 1, 2 * i + 4, 2 * i + 5]
        expected, g, t = jax.tree.map(lambda x, block=block: x[block], (out, grads, tokens))
        alone = run(SPECS, g, t)  # its weights are those of the whole batch
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), expected, alone)


def test_2e_4_of_8192_tokens_is_one_as_a_whole_and_eight_in_eight_micro_batches():
    _, tokens = random_tokens(0, 64, 128)
    full = jnp.ones((64, 128))
    tokens = tokens._replace(mask=full, weight=None, old_logp=tokens.logp - 1.0)
    zero = tt.TokenGrads(0 * full, 0 * full)
    held = [
        np.count_nonzero(run(RARE, zero, tokens, scope=scope, micro_batches=8).logp)
        for scope in ("global", "microbatch")
    ]
    assert held == [1, 8]


def test_the_kept_share_is_over_all_micro_batches():
    grads, tokens = random_tokens(0, 8, 20)
    made = tt.build(["keep_top_entropy"], scope="microbatch", micro_batches=8)
    _, state = made.update(grads, made.init(grads), tokens=tokens, key=None)
    per_row = np.asarray(tokens.mask.sum(1))
    expected = sum(max(1, int(0.2 * n + 1e-6)) for n in per_row if n)
    assert float(tt.kept_fraction(state)) == pytest.approx(expected / per_row.sum())


def test_what_cannot_be_split_is_refused():
    grads, tokens = random_tokens(0, 6, 20)
    with pytest.raises(ValueError, match=r"rows divisible by the 4 micro-batches of groups of 1, got 6"):
        run(["keep_top_entropy"], grads, tokens, scope="microbatch", micro_batches=4)
    with pytest.raises(ValueError, match=r"algo.scope: 'microbatch' is for transforms without state"):
        tt.build(["adaptive_entropy_bonus"], scope="microbatch", micro_batches=2)


def test_matched_norm_matches_the_norm_over_micro_batches():
    grads, tokens = random_tokens(0, 8, 20)
    scope = {"scope": "microbatch", "micro_batches": 4}
    inner = ("keep_top_entropy", {"normalizer": "all"})
    a, b = run([("matched_norm", {"inner": inner})], grads, tokens, **scope), run([inner], grads, tokens, **scope)
    assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=1e-5)
