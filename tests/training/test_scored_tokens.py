"""Scoring piece by piece: whole groups or packed rows, the statistics are those of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from updates import CFG, B, G, N, T, batch, packed, params

from entropy_rl.model.transformer import Transformer
from entropy_rl.stats import blocks
from entropy_rl.training import scoring


@pytest.mark.parametrize("micro_batches, layout", [(2, "group"), (8, "group"), (1, "packed")])
def test_pieces_change_only_rounding(micro_batches, layout):
    want = jax.jit(functools.partial(scoring.token_stats, Transformer(CFG), temperature=0.7))(params(), batch())
    score = jax.jit(functools.partial(scoring.score, Transformer(CFG), 0.7, micro_batches))
    got = score(params(), packed() if layout == "packed" else batch())
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
        assert not np.asarray(a)[batch().mask == 0].any() and np.asarray(a)[batch().mask > 0].all()


def test_blocks_are_whole_groups_strided_over_prompts():
    parts = blocks.split(batch().tokens, 4, N)
    assert parts.shape == (4, 8, T)
    assert np.array_equal(parts[1, :G], batch().tokens[G : 2 * G])
    assert np.array_equal(blocks.join(parts, N), batch().tokens)
    assert np.array_equal(blocks.take(batch().tokens, 1, 4, N), parts[1])
    put = blocks.put(jnp.zeros((B, T), jnp.int32), 1, parts[1], 4, N)
    assert np.array_equal(blocks.split(put, 4, N) != 0, (parts != 0) & (np.arange(4) == 1)[:, None, None])
    with pytest.raises(ValueError, match="train.micro_batches=3 must divide the 8 prompts"):
        scoring.pieces(Transformer(CFG), 1.0, 3, batch())
