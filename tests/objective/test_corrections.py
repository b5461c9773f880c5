"""The corrections between sampler and trainer against NumPy, and the gap that they correct."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.objective import corrections

TRAINER = jnp.array([[-1.0, -2.0, -1e4], [-1.0, 0.0, jnp.nan]])
SAMPLER = jnp.array([[-1.5, -2.0, 0.0], [-9.0, -1e4, jnp.nan]])
MASK = jnp.array([[1, 1, 1], [1, 1, 0]])

RNG = np.random.default_rng(3)
LENGTH = np.array([6, 1, 0, 4, 6])
CLOSE = np.arange(6) < LENGTH[:, None]
LOG_RHO = RNG.normal(0, [[0.3], [0.3], [0.3], [0.005], [2.0]], (5, 6)).astype(np.float32)
LOG_RHO[4, 2] = -12.0


def reference(name: str, log_rho: np.ndarray, mask: np.ndarray, **o: float) -> np.ndarray:
    out = np.zeros(log_rho.shape)
    for row in range(len(log_rho)):
        valid = log_rho[row][mask[row]].astype(np.float64)
        if not valid.size or (valid < np.log(o.get("veto", 0) or 1e-300)).any():
            continue
        product, mean = np.exp(valid.sum()), np.exp(valid.mean())
        out[row, mask[row]] = {
            "token_truncate": lambda v, p, m: np.minimum(np.exp(v), o["cap"]),
            "token_mask": lambda v, p, m: np.where((np.exp(v) >= o["low"]) & (np.exp(v) <= o["high"]), np.exp(v), 0),
            "sequence_truncate": lambda v, p, m: min(p, o["cap"]),
            "sequence_mask": lambda v, p, m: p if o["low"] <= p <= o["high"] else 0,
            "geometric_mask": lambda v, p, m: float(o["low"] <= m <= o["high"]),
        }[name](valid, product, mean)
    return out


@pytest.mark.parametrize("veto", [0.0, 1e-4])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("token_truncate", {"cap": 1.2}),
        ("token_mask", {"low": 0.8, "high": 1.2}),
        ("sequence_truncate", {"cap": 1.2}),
        ("sequence_mask", {"low": 0.5, "high": 1.5}),
        ("geometric_mask", {"low": 0.99, "high": 1.01}),
    ],
)
def test_a_correction_equals_its_reference(name, options, veto):
    correction = corrections.build((name, options | {"veto": veto}))
    sampler = np.where(CLOSE, 0.0, np.nan).astype(np.float32)
    got = corrections.weights(correction, jnp.asarray(LOG_RHO), jnp.asarray(sampler), jnp.asarray(CLOSE))
    want = reference(name, LOG_RHO, CLOSE, veto=veto, **options)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    stopped = corrections.stopped(got, jnp.asarray(CLOSE))
    assert float(stopped["stopped_frac"]) == pytest.approx((want == 0)[CLOSE].mean())
    assert float(stopped["mean"]) == pytest.approx(want[CLOSE].mean(), rel=1e-5)


def test_every_correction_has_a_reference_and_is_one_where_sampler_and_trainer_agree():
    for name in corrections.CORRECTIONS:
        correction = corrections.build(name)
        if correction is not None:
            same = corrections.weights(correction, jnp.asarray(LOG_RHO), jnp.asarray(LOG_RHO), jnp.asarray(CLOSE))
            np.testing.assert_array_equal(same, CLOSE.astype(np.float32))
    assert corrections.build("none") is None


def test_weights_are_the_capped_ratio_and_finite_at_the_extremes():
    weights = corrections.weights(corrections.token_truncate(2.0), TRAINER, SAMPLER, MASK)
    np.testing.assert_allclose(weights, [[np.exp(0.5), 1.0, 0.0], [2.0, 2.0, 0.0]], rtol=1e-6, atol=1e-8)
    for name in corrections.CORRECTIONS.keys() - {"none"}:
        assert np.isfinite(corrections.weights(corrections.build(name), TRAINER, SAMPLER, MASK)).all()


def test_weights_are_detached():
    def total(x: jax.Array) -> jax.Array:
        return corrections.weights(corrections.token_truncate(2.0), x, SAMPLER, MASK).sum()

    assert not np.any(jax.grad(total)(TRAINER))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (("token_truncate", {"cap": 0.0}), r"algo.correction.cap=0.0 must be above 0"),
        (("token_mask", {"low": 1.5}), r"algo.correction.low=1.5 must be from 0 to 1"),
        (("geometric_mask", {"veto": 1.0}), r"algo.correction.veto=1.0 must be from 0 to below 1"),
        ("icepop", "algo.correction: unknown name 'icepop'"),
    ],
)
def test_a_wrong_option_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        corrections.build(spec)


def test_the_gap():
    mask = jnp.array([[1, 1, 0], [1, 0, 0]])
    gap = corrections.sampler_gap(TRAINER, SAMPLER, mask)
    assert float(gap["mean_abs"]) == pytest.approx(8.5 / 3)
    assert float(gap["max_abs"]) == 8.0
    assert float(gap["kl"]) == pytest.approx((np.expm1(0.5) - 0.5 + np.expm1(8.0) - 8.0) / 3, rel=1e-5)
    assert all(float(v) == 0.0 for v in corrections.sampler_gap(TRAINER, SAMPLER, 0 * MASK).values())
