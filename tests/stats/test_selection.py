"""The selection primitive against a plain sort, and its exact counts."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from reference import batches
from reference.transforms import first_by, size_of

from entropy_rl.stats import selection

select = jax.jit(selection.select)


def counts_to_try(n: int) -> list[int]:
    return sorted({0, 1, n // 3, n - 1, n, n + 5} - {-1})


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", batches.SHAPES)
def test_it_equals_a_sort_by_score_uid_and_position(shape, ties):
    for seed in range(4):
        _, tokens = batches.random_tokens(seed, *shape, ties=ties)
        tokens = jax.tree.map(np.asarray, tokens)
        valid = tokens.mask > 0
        for k in counts_to_try(int(valid.sum())):
            chosen = np.asarray(select(tokens.logp, tokens.uid, tokens.mask, k))
            assert chosen.sum() == min(k, valid.sum())
            np.testing.assert_array_equal(chosen, first_by(tokens.logp, tokens, valid, k))


def test_equal_scores_go_by_uid_without_truncation():
    uid = jnp.array([2**32 - 1, 2**24 + 1, 2**24, 0], jnp.uint32)  # the middle two are one float32
    score, mask = jnp.zeros((4, 3)), jnp.ones((4, 3))
    for k in range(13):
        chosen = np.asarray(select(score, uid, mask, k))
        np.testing.assert_array_equal(chosen[::-1].ravel(), np.arange(12) < k)


def test_the_count_is_exact_if_sequences_share_a_uid():
    score, mask = jnp.zeros((6, 5)), jnp.ones((6, 5))
    for k in range(31):
        assert int(select(score, jnp.zeros(6, jnp.uint32), mask, k).sum()) == k


def test_extreme_scores_have_their_order():
    score = jnp.array([[jnp.inf, 3.4e38, 1e-40, 0.0, -0.0, -1e-40, -3.4e38, -jnp.inf, jnp.nan]])
    mask, uid = jnp.ones_like(score), jnp.zeros(1, jnp.uint32)
    for k in range(10):
        np.testing.assert_array_equal(np.asarray(select(score, uid, mask, k))[0], np.arange(9) < k)


def test_nothing_valid_selects_nothing():
    assert not select(jnp.ones((3, 4)), jnp.arange(3, dtype=jnp.uint32), jnp.zeros((3, 4)), 2).any()
    assert float(selection.kth_largest(jnp.ones((3, 4)), jnp.zeros((3, 4)), 1)) == 0.0


def test_nothing_retraces_when_the_counts_change():
    traced = []

    @jax.jit
    def run(score, mask, k):
        traced.append(k)
        return selection.select(score, jnp.arange(4, dtype=jnp.uint32), mask, k)

    for k in (0, 3, 9):
        run(jnp.ones((4, 5)), (jnp.arange(20) < k).reshape(4, 5), k)
    assert len(traced) == 1


def test_a_sharded_selection_is_the_same_set_and_gathers_no_score():
    _, tokens = batches.random_tokens(5, 16, 40, ties=True)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    arguments = [jax.device_put(x, rows) for x in (tokens.logp, tokens.uid, tokens.mask)]
    compiled = select.lower(*arguments, 50).compile()
    np.testing.assert_array_equal(
        np.asarray(compiled(*arguments, 50)), np.asarray(select(tokens.logp, tokens.uid, tokens.mask, 50))
    )
    gathers = [line for line in compiled.as_text().splitlines() if "all-gather" in line]
    assert not [line for line in gathers if "40]" in line], gathers
    assert "all-reduce" in compiled.as_text()  # otherwise the program was not sharded


def counts(fraction: float, sizes: list[int]) -> list[int]:
    return np.asarray(jax.vmap(lambda n: selection.count(fraction, n))(jnp.array(sizes, jnp.uint32))).tolist()


@pytest.mark.parametrize("fraction", [2e-4, 2e-3, 0.02, 0.2, 0.29, 0.8, 0.9999, 1.0])
def test_a_count_is_the_floor_of_the_decimal_product(fraction):
    sizes = [0, 1, 5, 10, 100, 8192, 2**24 + 7, 2**31 - 1]
    assert counts(fraction, sizes) == [size_of(fraction, n) for n in sizes]


def test_a_complement_is_read_as_intended():
    assert 1 - 0.8 < 0.2  # the float is below a fifth
    sizes = [3, 10, 35, 2**24 + 9]
    assert counts(1 - 0.8, sizes) == [max(1, n // 5) for n in sizes]
    assert counts(1 / 3, sizes) == [n // 3 for n in sizes]


def test_floor_product_gives_the_remainder():
    floor, rest = selection.floor_product(0.3, 2**24 + 1)
    exact = Fraction(3, 10) * (2**24 + 1)
    assert int(floor) == math.floor(exact)
    assert float(rest) == pytest.approx(float(exact - math.floor(exact)))


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_an_error(fraction):
    with pytest.raises(ValueError, match="a share of tokens must be from 0 to 1"):
        selection.as_ratio(fraction)


def test_random_scores_depend_only_on_salt_sequence_and_position():
    draw = jax.jit(selection.random_scores, static_argnums=3)
    key, uid = jax.random.key(3), jnp.array([7, 9, 4_000_000_000], jnp.uint32)
    scores = draw(key, 0, uid, 6)
    assert scores.dtype == jnp.uint32
    np.testing.assert_array_equal(scores, draw(key, 0, uid[::-1], 11)[::-1, :6])
    assert not np.any(scores == draw(key, 1, uid, 6))
    assert not np.any(scores == draw(jax.random.key(4), 0, uid, 6))
    assert len(np.unique(scores)) == scores.size


def test_random_scores_are_uniform():
    scores = selection.random_scores(jax.random.key(0), 0, jnp.arange(64, dtype=jnp.uint32), 512)
    share = np.asarray(scores) / 2**32
    for part in (share[:, :256], share[:, 256:], share[::2], share[1::2]):
        assert abs(part.mean() - 0.5) < 5 / np.sqrt(12 * part.size)
