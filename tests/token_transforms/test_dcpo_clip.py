import jax
import jax.numpy as jnp
import pytest

from entropy_rl import token_transforms as tt


def kept(q: list[float], ratio: list[float], advantage: list[float], **options: float) -> tuple[list[float], float]:
    old_logp, ones = jnp.log(jnp.array([q])), jnp.ones((1, len(q)))
    logp = old_logp + jnp.log(jnp.array([ratio]))
    tokens = tt.TokenInfo(logp, old_logp, jnp.array([advantage]), ones, ones, ones < 0)
    made = tt.build([("dcpo_clip", options)])
    grads = tt.TokenGrads(ones, ones)
    out, state = jax.jit(made.update)(grads, made.init(grads), tokens=tokens, key=None)
    assert out.entropy.tolist() == out.logp.tolist()
    return out.logp[0].tolist(), float(tt.kept_fraction(state))


def test_the_bounds_depend_on_the_old_probability():
    """q = 0.8: from 0.5 + 0.5 · sqrt(0.2) = 0.724 to 0.5 + 0.5 · sqrt(2) = 1.207; q = 0.01: from 0.5 to 5."""
    ratio = [1.20, 1.21, 0.73, 0.72, 4.9, 5.1, 0.51, 0.49]
    advantage = [1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0]
    keep, share = kept([0.8] * 4 + [0.01] * 4, ratio, advantage)
    assert keep == [1, 0, 1, 0, 1, 0, 1, 0] and share == pytest.approx(0.5)


def test_a_move_against_the_advantage_is_clipped_by_the_cap_alone():
    """q = 0.001: the upper bound would be 0.5 + 0.5 · sqrt(801) = 14.7."""
    ratio, advantage = [9.9, 10.1, 9.9, 10.1, 10.1, 0.1, 14.0], [1.0, 1.0, -1.0, -1.0, 0.0, 1.0, 1.0]
    assert kept([0.001] * 7, ratio, advantage)[0] == [1, 0, 1, 0, 1, 1, 0]
    assert kept([0.001] * 2, [14.6, 14.8], [1.0, 1.0], cap=20.0)[0] == [1, 0]


def test_a_probability_of_zero_has_the_widest_bounds():
    """exp(old_logp) underflows: low / q must not be 0 / 0."""
    ones = jnp.ones((1, 3))
    tokens = tt.TokenInfo(
        jnp.array([[-198.0, -197.0, -201.0]]), -200 * ones, jnp.array([[1.0, 1.0, -1.0]]), ones, ones, ones < 0
    )
    grads = tt.TokenGrads(ones, ones)
    for low, expected in ((0.16, [1, 0, 0]), (0.0, [1, 0, 0])):
        made = tt.dcpo_clip(low=low)
        assert made.update(grads, made.init(grads), tokens=tokens, key=None)[0].logp.tolist() == [expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"low": -0.1}, r"dcpo_clip\.low=-0\.1 must be 0 or above"), ({"cap": 0.5}, r"cap=0\.5 must be 1 or above")],
)
def test_bounds_that_no_clip_can_have(options, message):
    with pytest.raises(ValueError, match=message):
        tt.dcpo_clip(**options)
