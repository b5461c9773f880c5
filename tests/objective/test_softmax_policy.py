"""A tabular softmax policy: Lemma 1, Theorem 1 and Theorem 2 of arXiv 2505.22617 hold to first order in the step.

S states, A actions. The theorems say what a step does to the entropy; the measured change may differ by the second
order only, so a step ten times smaller must bring the error down a hundredfold.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.covariance import predicted_entropy_change

S, A = 3, 6


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def entropy(z):
    p = softmax(z)
    return -(p * np.log(p)).sum(-1)


def cov(p, x, y):
    """Covariance of two functions of the action under the policy, by state."""
    return (p * x * y).sum(-1) - (p * x).sum(-1) * (p * y).sum(-1)


def policy_and_advantage(seed):
    rng = np.random.default_rng(seed)
    z, advantage = rng.normal(size=(S, A)), rng.normal(size=(S, A))
    p = softmax(z)
    return z, p, advantage - (p * advantage).sum(-1, keepdims=True)  # E_π A = 0, as an advantage is


def lemma_1(p, step, advantage, eta):
    return -cov(p, np.log(p), step)


def theorem_1(p, step, advantage, eta):
    return -eta * cov(p, np.log(p), p * advantage)


def theorem_2(p, step, advantage, eta):
    return -eta * cov(p, np.log(p), advantage)


def policy_gradient(p, advantage):
    """d E_π[A] / dz by state, held by the finite difference below."""
    return p * advantage


def natural_gradient(p, advantage):
    """F⁺ · gradient with the Fisher information F = diag(p) − p pᵀ of each state."""
    fisher = [np.diag(q) - np.outer(q, q) for q in p]
    return np.stack([np.linalg.pinv(f) @ g for f, g in zip(fisher, policy_gradient(p, advantage), strict=True)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("prediction", "direction"),
    [
        (lemma_1, lambda p, advantage: np.cos(np.arange(S * A)).reshape(S, A)),
        (theorem_1, policy_gradient),
        (theorem_2, natural_gradient),
    ],
)
def test_the_error_falls_as_the_square_of_the_step(prediction, direction, seed):
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


def test_the_package_predicts_it_from_samples():
    """On tokens in the proportions of one state's policy the proxies are the theorems themselves."""
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
