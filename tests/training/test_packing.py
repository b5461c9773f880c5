"""Rows of whole sequences: nothing is lost, little is padded, and the layout is chosen by what it costs."""

import numpy as np
import pytest
import updates

from entropy_rl.training.packing import Plan, first_fit

P, T, G = 16, 256, 8


def skewed(n, seed=0):
    """n groups: most responses stop by 16 of 256 tokens, a few run to the end."""
    rng = np.random.default_rng(seed)
    length = np.where(rng.random(n * G) < 0.9, rng.integers(1, 17, n * G), T)
    asked = rng.integers(P // 2, P + 1, n)
    prompt_mask = (np.arange(P) >= P - asked[:, None]).astype(np.int32)
    mask = (np.arange(T) < length[:, None]).astype(np.int32)
    return rng.integers(1, 9, (n, P)) * prompt_mask, prompt_mask, rng.integers(1, 9, (n * G, T)) * mask, mask


def plan(layout="auto", n=64, rows=8):
    return Plan(layout, rows, -(-n * G // rows), P + T - 1, n * (P + G * (T - 1)))


def padding(packed):
    used = (packed.segment > 0).any(axis=(0, 2))
    return 1 - (packed.segment[:, used] > 0).mean()


@pytest.mark.parametrize("seed", range(3))
def test_skewed_lengths_waste_less_than_a_tenth(seed):
    assert padding(plan().pack(*skewed(64, seed))) < 0.1


def test_the_cheaper_layout_is_taken():
    prompt, prompt_mask, tokens, mask = skewed(64)
    assert plan().pack(prompt, prompt_mask, tokens, mask) is not None
    full = np.ones_like(mask)
    assert plan().pack(prompt, prompt_mask, full, full) is None
    assert plan("group").pack(prompt, prompt_mask, tokens, mask) is None
    assert plan("packed").pack(prompt, prompt_mask, full, full) is not None


def test_the_longest_responses_fit_in_the_room_there_is():
    prompt_mask, mask = np.ones((4, P), np.int32), np.ones((4 * G, T), np.int32)
    packed = plan("packed", n=4, rows=8).pack(prompt_mask, prompt_mask, mask, mask)
    assert np.sort(packed.slot[packed.slot < mask.size]).tolist() == list(range(mask.size))


def test_a_response_without_tokens_takes_no_room():
    prompt_mask, none = np.ones((2, P), np.int32), np.zeros((2 * G, T), np.int32)
    assert not plan("packed", n=2).pack(prompt_mask, prompt_mask, none, none).segment.any()


def test_packed_rows_hold_every_response_token_once():
    p, b = updates.packed().packed, updates.batch()
    predicts = p.slot < b.mask.size
    assert np.array_equal(np.sort(p.slot[predicts]), np.flatnonzero(b.mask))
    assert np.array_equal(p.target[predicts], b.tokens.ravel()[p.slot[predicts]])


def test_first_fit():
    row, start, used = first_fit(np.array([3, 7, 0, 5, 4]), 10)
    assert (row.tolist(), start.tolist(), used) == ([0, 0, 0, 1, 1], [7, 0, 0, 0, 5], 2)
    with pytest.raises(ValueError, match="a sequence of 11 positions does not fit in a row of 10"):
        first_fit(np.array([11]), 10)
