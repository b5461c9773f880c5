"""A tabular softmax policy: Lemma 1, Theorem 1 and Theorem 2 of arXiv 2505.22617 hold to first order in the step.

S states, A actions. The theorems predict the change of the entropy. The measured change may differ from that only to
second order, so with a step ten times smaller the error must be a hundred times smaller.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.covariance import entropy_change_by_score, predicted_entropy_change

S, A = 3, 6


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def entropy(z: np.ndarray) -> np.ndarray:
    p = softmax(z)
    return -(p * np.log(p)).sum(-1)


def cov(p: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Covariance of two functions of the action under the policy, per state."""
    return (p * x * y).sum(-1) - (p * x).sum(-1) * (p * y).sum(-1)


def policy_and_advantage(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z, advantage = rng.normal(size=(S, A)), rng.normal(size=(S, A))
    p = softmax(z)
    return z, p, advantage - (p * advantage).sum(-1, keepdims=True)  # E_π A = 0, as for any advantage


def lemma_1(p: np.ndarray, step: np.ndarray, advantage: np.ndarray, eta: float) -> np.ndarray:
    return -cov(p, np.log(p), step)


def theorem_1(p: np.ndarray, step: np.ndarray, advantage: np.ndarray, eta: float) -> np.ndarray:
    return -eta * cov(p, np.log(p), p * advantage)


def theorem_2(p: np.ndarray, step: np.ndarray, advantage: np.ndarray, eta: float) -> np.ndarray:
    return -eta * cov(p, np.log(p), advantage)


def policy_gradient(p: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """d E_π[A] / dz per state; a test below compares it with finite differences."""
    return p * advantage


def natural_gradient(p: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """F⁺ · gradient, with the Fisher information F = diag(p) − p pᵀ of each state."""
    fisher = [np.diag(q) - np.outer(q, q) for q in p]
    return np.stack([np.linalg.pinv(f) @ g for f, g in zip(fisher, policy_gradient(p, advantage), strict=True)])


def any_direction(p: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    return np.cos(np.arange(S * A)).reshape(S, A)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("prediction", "direction"),
    [
        (lemma_1, any_direction),
        (theorem_1, policy_gradient),
        (theorem_2, natural_gradient),
    ],
)
def test_the_error_falls_with_the_square_of_the_step(prediction, direction, seed):
    z, p, advantage = policy_and_advantage(seed)
    errors = []
    for eta in (1e-2, 1e-3):
        step = eta * direction(p, advantage)
        change, predicted = entropy(z + step) - entropy(z), prediction(p, step, advantage, eta)
        errors.append(np.abs(predicted - change).max())
    assert errors[1] < errors[0] / 50
    assert errors[1] < 0.02 * np.abs(change).max()


def test_the_gradient_is_that_of_the_expected_advantage():
    z, p, advantage = policy_and_advantage(0)
    for s, a in np.ndindex(S, A):
        d = np.zeros((S, A))
        d[s, a] = 1e-6
        slope = ((softmax(z + d) - softmax(z - d)) * advantage).sum() / 2e-6
        assert policy_gradient(p, advantage)[s, a] == pytest.approx(slope, abs=1e-8)


def test_the_package_predicts_the_change_from_samples():
    """On tokens in the proportions of one state's policy, the proxies equal the theorems."""
    counts = np.array([1, 2, 3, 4, 6, 16])
    p = counts / counts.sum()
    advantage = np.random.default_rng(0).normal(size=6)
    advantage -= (p * advantage).sum()
    tokens = [jnp.asarray(np.repeat(x, counts), jnp.float32)[None] for x in (np.log(p), advantage)]
    mask, eta = jnp.ones((1, counts.sum())), 1e-2
    for theorem, step in ((1, p * advantage), (2, advantage)):
        predicted = predicted_entropy_change(*tokens, mask, eta, theorem)
        change = entropy(np.log(p) + eta * step) - entropy(np.log(p))
        assert float(predicted) == pytest.approx(float(change), rel=0.05)


def score_statistics(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy and E_π S of each state, [S, 1]."""
    h = -(p * np.log(p)).sum(-1, keepdims=True)
    return h, (p**2 * (h + np.log(p))).sum(-1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_entropy_score_predicts_a_step_on_one_action_per_state(seed):
    """The logit step η A (e_k − p) of a sampled action k in each state; A differs from state to state."""
    z, p, _ = policy_and_advantage(seed)
    rng = np.random.default_rng(seed)
    k, advantage = rng.integers(0, A, (S, 1)), rng.normal(size=(S, 1))
    direction = advantage * (np.eye(A)[k[:, 0]] - p)
    h, mean = score_statistics(p)
    logp = np.log(np.take_along_axis(p, k, 1))
    errors = []
    for eta in (1e-2, 1e-3):
        predicted = entropy_change_by_score(*map(jnp.asarray, (logp, h, mean, advantage, np.ones((S, 1)))), eta)
        change = (entropy(z + eta * direction) - entropy(z)).mean()
        errors.append(abs(float(predicted) - change))
    assert errors[1] < errors[0] / 50 or errors[1] < 1e-8
    assert errors[1] < 0.05 * abs(change)


@pytest.mark.parametrize("seed", range(5))
def test_over_all_actions_it_is_theorem_1_of_each_state(seed):
    _, p, advantage = policy_and_advantage(seed)
    h, mean = score_statistics(p)
    whole = np.ones((S, A))
    weighted = A * p * advantage  # the mean over the actions of A p f is the expectation of f
    predicted = entropy_change_by_score(*map(jnp.asarray, (np.log(p), h * whole, mean * whole, weighted, whole)), 0.1)
    np.testing.assert_allclose(predicted, theorem_1(p, None, advantage, 0.1).mean(), rtol=1e-4, atol=1e-7)


def test_it_is_0_on_an_empty_mask_and_does_not_read_masked_tokens():
    full = jnp.full((1, 2), jnp.nan)
    assert float(entropy_change_by_score(full, full, full, full, jnp.zeros((1, 2)), 0.1)) == 0
