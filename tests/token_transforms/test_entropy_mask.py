"""Forking tokens: the exact count, the exact complement and the two normalisers."""

import jax
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.objective.registry import Spec


def run(transforms: list[Spec], tokens: tt.TokenInfo) -> tuple[tt.TokenGrads, tt.ChainState]:
    made = tt.build(transforms)
    grads = tt.TokenGrads(tokens.mask, tokens.mask)
    return jax.jit(made.update)(grads, made.init(grads), tokens=tokens, key=None)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3])
def test_bottom_is_the_exact_complement_of_top(fraction, ties):
    _, tokens = random_tokens(1, 8, 25, ties=ties)
    top, top_state = run([("keep_top_entropy", {"fraction": fraction})], tokens)
    bottom, bottom_state = run([("keep_bottom_entropy", {"fraction": 1 - fraction})], tokens)
    top, bottom, valid = (np.asarray(x) != 0 for x in (top.logp, bottom.logp, tokens.mask))
    assert top.sum() == int(fraction * valid.sum() + 1e-9)
    assert not np.any(top & bottom) and np.array_equal(top | bottom, valid)
    assert np.asarray(tokens.entropy)[top].min() >= np.asarray(tokens.entropy)[bottom].max()
    assert float(top_state.kept + bottom_state.kept) == pytest.approx(1.0)


def test_the_normalisers_differ_by_n_over_kept():
    _, tokens = random_tokens(1, 8, 25)
    selected, state = run([("keep_top_entropy", {"normalizer": "selected"})], tokens)
    every, _ = run([("keep_top_entropy", {"normalizer": "all"})], tokens)
    np.testing.assert_allclose(selected.logp, every.logp / state.kept, rtol=1e-6)
    weighed = np.asarray(selected.logp * tokens.weight).sum()
    assert weighed == pytest.approx(1.0), "a mean over the selected tokens"


def test_a_bonus_before_the_mask_is_masked_and_one_after_is_not():
    _, tokens = random_tokens(1, 8, 25)
    bonus, mask = ("entropy_bonus", {"coef": 0.5}), ("keep_top_entropy", {})
    before, _ = run([bonus, mask], tokens)
    after, _ = run([mask, bonus], tokens)
    valid, stopped = np.asarray(tokens.mask) > 0, np.asarray(before.logp) == 0
    assert not np.any(np.asarray(before.entropy)[stopped])
    assert np.all(np.asarray(after.entropy)[valid & stopped] != 0)


def test_an_unknown_normaliser_is_an_error():
    for factory in (tt.keep_top_entropy, tt.keep_bottom_entropy, tt.random_mask):
        with pytest.raises(ValueError, match="normalizer='kept' must be one of selected, all"):
            factory(normalizer="kept")
