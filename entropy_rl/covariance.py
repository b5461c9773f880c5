"""The covariance of log-probability and advantage that drives a policy's entropy (arXiv 2505.22617).

B sequences, T response positions. Everything is detached: no gradient flows through a covariance.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from entropy_rl.entropy import entropy_score
from entropy_rl.stats import masked

TOP_SHARES = {"top_0.02pct": 2e-4, "top_0.2pct": 2e-3, "top_2pct": 0.02, "top_20pct": 0.2, "top_50pct": 0.5, "all": 1.0}


def token_covariance(logp: Array, advantage: Array, mask: Array) -> Array:
    """Each token's term of the batch covariance (eq. 10): (logp − mean logp) · (A − mean A).

    Means are over the valid tokens of the whole batch and do not depend on the order of rows or on the mesh.

    Args:
        logp: f32[B, T], nats, log π(y_t).
        advantage: f32[B, T].
        mask: f32 or bool[B, T].

    Returns:
        f32[B, T], exactly 0 at masked tokens and everywhere on an empty mask.

    Example:
        >>> logp = jnp.array([[-1.0, -2.0], [-3.0, -9.0]])
        >>> advantage = jnp.array([[1.0, 1.0], [-2.0, -2.0]])
        >>> mask = jnp.array([[1, 1], [1, 0]])  # mean logp −2, mean advantage 0
        >>> token_covariance(logp, advantage, mask).tolist()
        [[1.0, 0.0], [2.0, 0.0]]
    """
    logp, advantage = lax.stop_gradient((logp, advantage))
    cov_BxT = (logp - masked.exact_mean(logp, mask)) * (advantage - masked.exact_mean(advantage, mask))
    return jnp.where(mask > 0, cov_BxT, 0.0)


def batch_covariance(logp: Array, advantage: Array, mask: Array) -> Array:
    """Cov(logp, A) over the valid tokens of the batch, f32[]; normaliser N, not N − 1; 0 on an empty mask."""
    return masked.mean(token_covariance(logp, advantage, mask), mask)


def prompt_covariance(logp: Array, advantage: Array, mask: Array, group_size: int) -> Array:
    """`token_covariance` with the means taken over each prompt's own tokens, f32[B, T].

    Args:
        logp: as for `token_covariance`.
        advantage: as for `token_covariance`.
        mask: as for `token_covariance`.
        group_size: responses per prompt, in consecutive rows.

    Raises:
        ValueError: If group_size does not divide B.
    """
    B, T = logp.shape
    if B % group_size:
        raise ValueError(f"group_size: {group_size} does not divide the {B} sequences of the batch")
    grouped = (jnp.reshape(x, (-1, group_size, T)) for x in (logp, advantage, mask))
    return jnp.reshape(jax.vmap(token_covariance)(*grouped), (B, T))


def heavy_tail(cov_BxT: Array, mask_BxT: Array) -> dict[str, Array]:
    """Mean covariance of the top 0.02%, 0.2%, 2%, 20%, 50% and of all valid tokens (Table 1), f32[] each.

    Each share is of at least one token; all are 0 on an empty mask.
    """
    return {name: masked.top_mean(cov_BxT, mask_BxT, share) for name, share in TOP_SHARES.items()}


QUADRANTS = ("high_prob_positive", "high_prob_negative", "low_prob_positive", "low_prob_negative")


def quadrants(logp: Array, advantage: Array, mask: Array, entropy_change: Array) -> dict[str, dict[str, Array]]:
    """The tokens by probability and sign of the advantage, and the effect of each quadrant on the entropy.

    A probability is high if logp is above the batch's mean. Rewarding a likely token or punishing an unlikely one has
    positive covariance and lowers entropy; the other two raise it. Tokens with A = 0 are in no quadrant.

    Args:
        logp: as for `token_covariance`.
        advantage: as for `token_covariance`.
        mask: as for `token_covariance`.
        entropy_change: f32[B, T], nats, each token's entropy after the update minus before.

    Returns:
        For each of QUADRANTS the `share` of the valid tokens, and its tokens' mean `covariance` and mean
        `entropy_change`, f32[] each; 0 if a quadrant is empty.
    """
    cov_BxT = token_covariance(logp, advantage, mask)
    high_BxT = logp > masked.exact_mean(logp, mask)
    table = {}
    for name in QUADRANTS:
        side_BxT = high_BxT if name.startswith("high") else ~high_BxT
        sign_BxT = advantage > 0 if name.endswith("positive") else advantage < 0
        in_BxT = (mask > 0) & side_BxT & sign_BxT
        table[name] = {
            "share": masked.mean(in_BxT, mask),
            "covariance": masked.mean(cov_BxT, in_BxT),
            "entropy_change": masked.mean(entropy_change, in_BxT),
        }
    return table


def predicted_entropy_change(logp: Array, advantage: Array, mask: Array, step_size: float, theorem: int) -> Array:
    """The first-order change of mean entropy after one update of a softmax policy, nats, f32[].

    Theorem 1 (policy gradient): −η · Cov(log π, π · A), A centred. Theorem 2 (natural gradient): −η · Cov(log π, A).
    Both are taken over the sampled tokens as if they were one state's actions. For a neural network and under AdamW
    they are therefore only proxies: compare them with the metric `entropy/delta`. 0 on an empty mask.

    Args:
        logp: as for `token_covariance`.
        advantage: as for `token_covariance`.
        mask: as for `token_covariance`.
        step_size: η.
        theorem: 1 or 2.

    Raises:
        ValueError: If `theorem` is neither.
    """
    if theorem == 2:
        return -step_size * batch_covariance(logp, advantage, mask)
    if theorem == 1:
        centred_BxT = advantage - masked.exact_mean(advantage, mask)
        return -step_size * batch_covariance(logp, jnp.exp(logp) * centred_BxT, mask)
    raise ValueError(f"theorem: got {theorem!r}, choose 1 or 2")


def entropy_change_by_score(
    logp: Array, entropy: Array, score_mean: Array, advantage: Array, mask: Array, step_size: Array | float
) -> Array:
    """The first-order change of mean entropy after one update, by each token's own entropy score, nats, f32[].

    −η · mean of A (S − E_π S), S = π(y) (H + log π(y)) (arXiv 2602.03392, Theorem 3.3). It is Theorem 1 of
    `predicted_entropy_change` without its approximation that all tokens were one state's actions: if tokens are drawn
    from π, its expectation is −η · mean over positions of Cov_π(log π, π · A). Like the theorems it takes the logits of
    positions to be independent, and the step to be plain gradient ascent. 0 on an empty mask.

    Args:
        logp: f32[B, T], nats, log π(y_t).
        entropy: f32[B, T], nats.
        score_mean: f32[B, T], nats, E_π S.
        advantage: f32[B, T].
        mask: f32 or bool[B, T].
        step_size: η.
    """
    return -step_size * masked.mean(advantage * (entropy_score(logp, entropy) - score_mean), mask)
