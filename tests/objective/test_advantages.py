"""Advantages against NumPy, group by group, including rows that could not be scored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.objective import advantages

G = 4


def numpy_group(name: str, r: np.ndarray, everything: np.ndarray, k: float = 0.4) -> np.ndarray:
    """The advantages of one group's valid rewards; `everything` holds all valid rewards of the batch."""
    if name == "none":
        return np.zeros(r.size)
    if name == "signed":
        return np.where(r > 0.5, 0.1, -1.0)
    pool = everything if name == "reinforce_pp" else r
    if np.ptp(pool) == 0:
        return np.zeros(r.size)
    if name == "dr_grpo":
        return r - r.mean()
    if name == "rloo":
        return np.array([r[i] - np.delete(r, i).mean() for i in range(r.size)])
    if name == "maxrl":
        return (r - r.mean()) / (r.mean() + 1e-6) if r.mean() > 0 else np.zeros(r.size)
    if name == "pass_at_k":
        return np.array([max(r) - max(np.delete(r, i)) for i in range(r.size)])
    if name == "quantile":
        baseline = min(v for v in r if np.mean(r <= v) >= k - 1e-9)
        return (r - baseline) / (r.std(ddof=1) + 1e-6)
    return (r - pool.mean()) / (pool.std(ddof=1) + 1e-6)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", sorted(advantages.ADVANTAGES))
def test_every_advantage_equals_numpy(name, binary):
    advantage = jax.jit(advantages.build(name), static_argnums=2)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        reward = (rng.integers(0, 2, 24) if binary else rng.normal(size=24)).astype(np.float32)
        valid = rng.random(24) < 0.8
        reward[~valid] = np.nan  # must not be read
        out = np.asarray(advantage(reward, valid, G))
        assert not np.any(out[~valid])
        for g in range(0, 24, G):
            rows = np.arange(g, g + G)[valid[g : g + G]]
            if rows.size:
                expected = numpy_group(name, reward[rows].astype(np.float64), reward[valid].astype(np.float64))
                np.testing.assert_allclose(out[rows], expected, rtol=1e-4, atol=1e-5)


BASELINED = sorted(set(advantages.ADVANTAGES) - {"none", "signed"})


@pytest.mark.parametrize("name", BASELINED)
def test_no_signal_is_exactly_zero(name):
    f = advantages.build(name)
    tenth = jnp.full(12, 0.1)  # its mean over three is not 0.1 in float32
    for reward, valid, size in ((tenth, jnp.ones(12), 3), (tenth, jnp.zeros(12), 3), (jnp.ones(12), jnp.ones(12), 12)):
        assert not np.any(f(reward, valid, size)), (reward, valid, size)
    if name != "reinforce_pp":
        assert not np.any(f(jnp.arange(6.0), jnp.ones(6), 1)), "a group of one"
        assert not np.any(f(jnp.arange(6.0), jnp.array([1, 0, 0, 0, 0, 1]), 3)), "one scored of each group"


@pytest.mark.parametrize("value", [1e19, 1e20, -1e25, 1e30, 3e38, -3e38])
@pytest.mark.parametrize("name", BASELINED)
def test_huge_rewards_have_the_advantages_of_their_ratio(name, value):
    """huggingface/trl#3857: the deviation of 1e20 overflows float32, and every advantage was 0."""
    f, one = advantages.build(name), jnp.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    if name == "maxrl" and value < 0:
        assert not np.any(f(one * value, jnp.ones(6), 3)), "a mean below 0 is no success rate"
        return
    valid = jnp.array([1, 1, 1, 1, 1, 0])
    small, huge = (np.asarray(f(one * scale, valid, 3), np.float64) for scale in (np.sign(value) * 1e3, value))
    factor = abs(value) / 1e3 if name in ("dr_grpo", "pass_at_k", "rloo") else 1.0  # these are in units of the reward
    assert np.any(small)
    np.testing.assert_allclose(huge, small * factor, rtol=1e-5, atol=1e-5 * factor)


def test_reinforce_pp_with_baseline_centres_by_group_and_scales_by_batch():
    reward = jnp.array([1.0, 0.0, 1.0, 1.0, 5.0, 3.0])
    out = advantages.build(("reinforce_pp", {"baseline": True}))(reward, jnp.ones(6), 2)
    centred = np.array([0.5, -0.5, 0, 0, 1, -1])
    np.testing.assert_allclose(out, centred / centred.std(ddof=1), rtol=1e-5)


def test_the_quantile_baseline_of_right_and_wrong_answers_is_that_of_the_paper():
    """arXiv 2509.22611: up to an accuracy of 1 − K only right answers push, above it only wrong ones."""
    for right in range(1, 10):
        out = np.asarray(advantages.quantile(jnp.arange(10) < right, jnp.ones(10), 10, k=0.4))
        assert (out[:right].any(), out[right:].any()) == ((True, False) if right <= 6 else (False, True))


def test_maxrl_divides_by_the_success_rate():
    """arXiv 2602.02710: the rarer a right answer, the more it pushes; without one, nothing does."""
    reward = jnp.array([1.0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0])
    out = np.asarray(advantages.maxrl(reward, jnp.ones(12), 4))
    np.testing.assert_allclose(out, [3, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1, 0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(
        out[:8], advantages.dr_grpo(reward, jnp.ones(12), 4)[:8] / np.repeat([0.25, 0.75], 4), rtol=1e-5
    )


def test_only_a_best_answer_that_is_alone_raises_pass_at_k():
    reward = jnp.array([1.0, 0, 0, 0, 1, 1, 0, 0, 0.9, 0.7, 0.2, 1.0])
    valid = jnp.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    out = advantages.pass_at_k(reward, valid, 4)
    np.testing.assert_allclose(out, [1, 0, 0, 0, 0, 0, 0, 0, 0.2, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [0.1, -1, 0]), ({"right": 1.0, "wrong": 0.0}, [1, 0, 0]), ({"right": 0.0, "wrong": -1.0}, [0, -1, 0])],
)
def test_signed_rewards(options, expected):
    out = advantages.build(("signed", options))(jnp.array([1.0, 0.0, 1.0]), jnp.array([1, 1, 0]), 1)
    np.testing.assert_allclose(out, expected)


def test_what_a_config_may_not_set():
    with pytest.raises(ValueError, match=r"algo.advantage: unknown name 'gae'"):
        advantages.build("gae")
    with pytest.raises(ValueError, match=r"algo.advantage: grpo has no option 'k'; legal options: none"):
        advantages.build(("grpo", {"k": 0.4}))
    with pytest.raises(ValueError, match=r"algo.advantage: quantile has no option 'valid_B'; legal options: k"):
        advantages.build(("quantile", {"valid_B": 1}))
    with pytest.raises(ValueError, match=r"group_size: 4 does not divide the 6 rewards"):
        advantages.grpo(jnp.zeros(6), jnp.ones(6), 4)
