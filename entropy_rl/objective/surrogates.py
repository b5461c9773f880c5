"""Surrogate objectives: a loss per token, and the gradient that the token transforms then edit.

B sequences, T response positions. An objective is a factory that returns

    f(logp_BxT, tokens) -> (loss_BxT, clipped_BxT)

with the unweighted loss of each token (to be minimised) and a bool array that is true for the tokens whose gradient
the clip has stopped. r = exp(logp − old_logp) is the ratio; the log-ratio is clipped to ±20 so that losses and
gradients stay finite. `token_weight` defines the normaliser.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array, lax

from entropy_rl import rules
from entropy_rl.objective.registry import Spec, check_spec, split_spec
from entropy_rl.objective.tokens import TokenGrads, TokenInfo, prepare
from entropy_rl.rules import From0, From0To1, number
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped

Objective = Callable[[Array, TokenInfo], tuple[Array, Array]]

AGGREGATIONS = ("token-mean", "sequence-mean-token-mean", "sequence-mean-token-sum-norm")


# Decorates an objective: its options are checked by their annotations, see `rules.of_options`. The ratio is clipped to
# [1 − low, 1 + high].
checked = rules.checked("algo.objective")


def ppo_loss(ratio: Array, advantage: Array, lowest: Array | float, highest: Array | float) -> tuple[Array, Array]:
    """PPO's loss of each token for a given ratio, and the tokens that it clips; elementwise.

    Args:
        ratio: r.
        advantage: A.
        lowest: the smallest ratio at which a token with A < 0 still has a gradient, 1 − ε_low.
        highest: the largest ratio at which a token with A > 0 still has one, 1 + ε_high.

    Returns:
        The loss, f32, and what was clipped, bool, of the arguments' shape.
    """
    free = -advantage * ratio
    held = -advantage * jnp.clip(ratio, lowest, highest)
    clipped = held > free  # the larger loss counts; a tie means that the clip changed nothing
    return jnp.where(clipped, lax.stop_gradient(held), free), clipped


@checked
def ppo_clip(
    low: From0To1 = 0.2, high: From0 = 0.2, dual: Annotated[float, number(above=1)] | None = None
) -> Objective:
    """PPO's clipped surrogate: max(−r·A, −clip(r, 1 − low, 1 + high)·A) (arXiv 1707.06347, eq. 7).

    Args:
        low: ε_low. The official Clip-Cov runs set low = high = 1 and call it no clip.
        high: ε_high; 0.28 is DAPO's clip-higher.
        dual: c > 1 bounds the loss of tokens with A < 0 by −c·A (arXiv 1912.09729); None: no bound.

    Raises:
        ValueError: If an option is out of range.
    """

    def objective(logp_BxT: Array, tokens: TokenInfo) -> tuple[Array, Array]:
        ratio_BxT = jnp.exp(clamped(logp_BxT - tokens.old_logp))
        loss_BxT, clipped_BxT = ppo_loss(ratio_BxT, tokens.advantage, 1 - low, 1 + high)
        if dual is not None:
            bound_BxT = -dual * tokens.advantage
            stopped_BxT = (tokens.advantage < 0) & (loss_BxT > bound_BxT)
            loss_BxT = jnp.where(stopped_BxT, bound_BxT, loss_BxT)
            clipped_BxT |= stopped_BxT
        return loss_BxT, clipped_BxT

    return objective


def policy_gradient() -> Objective:
    """The importance-weighted policy gradient −r·A without a clip, as the official KL-Cov runs use it."""

    def objective(logp_BxT: Array, tokens: TokenInfo) -> tuple[Array, Array]:
        loss_BxT = -tokens.advantage * jnp.exp(clamped(logp_BxT - tokens.old_logp))
        return loss_BxT, jnp.zeros(loss_BxT.shape, bool)

    return objective


@checked
def gspo(low: From0To1 = 3e-4, high: From0 = 4e-4) -> Objective:
    """GSPO in its token form (arXiv 2507.18071): PPO-clip on the sequence's ratio s = exp(mean_t log r_t).

    Each token has the ratio s · π / sg(π), so either all tokens of a response are clipped or none.

    Args:
        low: ε_low.
        high: ε_high.

    Raises:
        ValueError: If an option is out of range.
    """

    def objective(logp_BxT: Array, tokens: TokenInfo) -> tuple[Array, Array]:
        valid_BxT = tokens.mask > 0
        log_ratio_BxT = jnp.where(valid_BxT, lax.stop_gradient(logp_BxT) - tokens.old_logp, 0.0)
        length_Bx1 = jnp.maximum(jnp.sum(valid_BxT, axis=1, keepdims=True), 1)
        log_s_Bx1 = jnp.sum(log_ratio_BxT, axis=1, keepdims=True) / length_Bx1
        ratio_BxT = jnp.exp(clamped(log_s_Bx1 + logp_BxT - lax.stop_gradient(logp_BxT)))
        return ppo_loss(ratio_BxT, tokens.advantage, 1 - low, 1 + high)

    return objective


@checked
def cispo(low: From0To1 = 1.0, high: From0 = 4.0) -> Objective:
    """CISPO: −sg(clip(r, 1 − low, 1 + high)) · A · logp (arXiv 2506.13585); it stops no token's gradient.

    Args:
        low: 1 means no lower bound on the weight, as in the paper's runs.
        high: 4 bounds the weight by 5.

    Raises:
        ValueError: If an option is out of range.
    """

    def objective(logp_BxT: Array, tokens: TokenInfo) -> tuple[Array, Array]:
        ratio_BxT = lax.stop_gradient(jnp.exp(clamped(logp_BxT - tokens.old_logp)))
        loss_BxT = -jnp.clip(ratio_BxT, 1 - low, 1 + high) * tokens.advantage * logp_BxT
        return loss_BxT, jnp.zeros(loss_BxT.shape, bool)

    return objective


@checked
def ce_gppo(low: From0To1 = 0.2, high: From0 = 0.2, beta_low: From0 = 0.5, beta_high: From0 = 1.0) -> Objective:
    """CE-GPPO: PPO whose clipped tokens keep a bounded gradient (arXiv 2509.20712); it stops no token's gradient.

    The loss of a token is
        −β_low (1 − low) (r / sg r) A if A < 0 and r < 1 − low,
        −β_high (1 + high) (r / sg r) A if A > 0 and r > 1 + high,
        −r A otherwise.

    Args:
        low: ε on the low side.
        high: ε on the high side.
        beta_low: β₁, 0.5 to 0.75 in the paper.
        beta_high: β₂.

    Raises:
        ValueError: If an option is out of range.
    """

    def objective(logp_BxT: Array, tokens: TokenInfo) -> tuple[Array, Array]:
        ratio_BxT = jnp.exp(clamped(logp_BxT - tokens.old_logp))
        one_BxT = jnp.exp(logp_BxT - lax.stop_gradient(logp_BxT))
        low_BxT = (tokens.advantage < 0) & (ratio_BxT < 1 - low)
        high_BxT = (tokens.advantage > 0) & (ratio_BxT > 1 + high)
        ratio_BxT = jnp.where(low_BxT, beta_low * (1 - low) * one_BxT, ratio_BxT)
        ratio_BxT = jnp.where(high_BxT, beta_high * (1 + high) * one_BxT, ratio_BxT)
        return -ratio_BxT * tokens.advantage, jnp.zeros(ratio_BxT.shape, bool)

    return objective


@checked
def sapo(
    tau_positive: Annotated[float, number(above=0)] = 1.0, tau_negative: Annotated[float, number(above=0)] = 1.05
) -> Objective:
    """SAPO: −(4 / τ) σ(τ (r − 1)) A, a soft gate in place of the clip (arXiv 2511.20347); it stops no token's gradient.

    The gradient is that of the policy gradient times 4 σ (1 − σ), which is 1 at r = 1 and falls with the distance from
    it, faster with a larger τ. 4 / τ and both defaults are as in verl; the authors published no code.

    Args:
        tau_positive: τ of tokens with A > 0.
        tau_negative: τ of the others; above τ_positive, since a negative advantage raises every other token.

    Raises:
        ValueError: If an option is not above 0.
    """

    def objective(logp_BxT: Array, tokens: TokenInfo) -> tuple[Array, Array]:
        tau_BxT = jnp.where(tokens.advantage > 0, tau_positive, tau_negative)
        ratio_BxT = jnp.exp(clamped(logp_BxT - tokens.old_logp))
        loss_BxT = -tokens.advantage * (4 / tau_BxT * jax.nn.sigmoid(tau_BxT * (ratio_BxT - 1)))
        return loss_BxT, jnp.zeros(loss_BxT.shape, bool)

    return objective


@checked
def dppo(low: From0To1 = 0.15, high: From0To1 = 0.15, cap: Annotated[float, number(least=1)] = 20.0) -> Objective:
    """DPPO-Binary-TV: a token stops once its *probability* moved too far (arXiv 2602.04879).

    The loss of a token is −sg(min(r, cap)) · A · logp, and 0 if A > 0 and p − p_old > high, or A < 0 and
    p − p_old < −low. So a rare token may multiply its probability, which PPO's clip stops, and a sure one may not lose
    much of it, which PPO's clip allows. |p − p_old| is the total variation between the two policies, each reduced to
    this token and all others. p_old is the trainer's (`dppo_binary_tv_recompute` in the official code, whose default
    takes the sampler's). The bounds are those of verl's script for it; the official code caps r at 10, verl at 20.

    Args:
        low: largest fall of the probability of a token with A < 0; 1: no bound, and the objective is `cispo`.
        high: largest rise of that of a token with A > 0.
        cap: largest weight r.

    Raises:
        ValueError: If an option is out of range.
    """

    def objective(logp_BxT: Array, tokens: TokenInfo) -> tuple[Array, Array]:
        moved_BxT = lax.stop_gradient(jnp.exp(logp_BxT) - jnp.exp(tokens.old_logp))
        stopped_BxT = jnp.where(tokens.advantage > 0, moved_BxT > high, moved_BxT < -low) & (tokens.advantage != 0)
        ratio_BxT = lax.stop_gradient(jnp.exp(clamped(logp_BxT - tokens.old_logp)))
        loss_BxT = -jnp.minimum(ratio_BxT, cap) * tokens.advantage * logp_BxT
        return jnp.where(stopped_BxT, 0.0, loss_BxT), stopped_BxT

    return objective


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    f.__name__: f for f in (ce_gppo, cispo, dppo, gspo, policy_gradient, ppo_clip, sapo)
}


def build(spec: Spec) -> Objective:
    """The objective that `algo.objective` names.

    Args:
        spec: a name, or a pair (name, options).

    Raises:
        ValueError: If the name or an option is unknown.
    """
    name, options = split_spec(spec, "algo.objective")
    return check_spec(OBJECTIVES, name, options, "algo.objective")(**options)


def token_weight(mask_BxT: Array, aggregation: str = "token-mean", max_tokens: int | None = None) -> Array:
    """Each token's weight in the loss: loss = Σ weight · token loss.

    With N valid tokens, n_b of them in response b, and R responses that have at least one, the weight is
        token-mean: 1 / N.
        sequence-mean-token-mean: 1 / (R · n_b).
        sequence-mean-token-sum-norm: 1 / (R · max_tokens), the constant normaliser of Dr.GRPO (arXiv 2503.20783).

    Args:
        mask_BxT: f32 or bool[B, T].
        aggregation: one of AGGREGATIONS.
        max_tokens: tokens of the longest possible response; only sequence-mean-token-sum-norm reads it.

    Returns:
        f32[B, T], 0 at masked tokens and everywhere on an empty mask.

    Raises:
        ValueError: If the aggregation is unknown, or needs max_tokens and gets none.

    Example:
        >>> mask = jnp.array([[1, 1, 1], [1, 0, 0]])
        >>> token_weight(mask, "token-mean").tolist()
        [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]
        >>> token_weight(mask, "sequence-mean-token-sum-norm", max_tokens=4).tolist()
        [[0.125, 0.125, 0.125], [0.125, 0.0, 0.0]]
    """
    valid_BxT = mask_BxT > 0
    length_Bx1 = jnp.sum(valid_BxT, axis=1, keepdims=True)
    responses = jnp.maximum(jnp.sum(length_Bx1 > 0), 1)
    if aggregation == "token-mean":
        return masked.token_mean_weight(mask_BxT)
    if aggregation == "sequence-mean-token-mean":
        return valid_BxT / (responses * jnp.maximum(length_Bx1, 1)).astype(jnp.float32)
    if aggregation == "sequence-mean-token-sum-norm":
        if max_tokens is None or max_tokens < 1:
            raise ValueError(
                f"algo.aggregation: {aggregation!r} needs max_tokens, the longest response in tokens, "
                f"got {max_tokens!r}"
            )
        return valid_BxT / (responses.astype(jnp.float32) * max_tokens)
    raise ValueError(f"algo.aggregation: got {aggregation!r}, choose one of {', '.join(AGGREGATIONS)}")


def token_gradient(
    objective: Objective, tokens: TokenInfo, correction_BxT: Array | None = None
) -> tuple[Array, TokenGrads, Array]:
    """The loss Σ weight · token loss, and its exact gradient with respect to logp.

    Args:
        objective: the return value of a factory of this module.
        tokens: statistics of the batch. Masked tokens are not read, nor is `clipped`; `weight` None means mask / N.
        correction_BxT: f32[B, T] factor on each token's loss, detached (`corrections.weights`); None: 1.

    Returns:
        The loss f32[], TokenGrads (with entropy gradients 0), and clipped bool[B, T]; zeros on an empty mask.
    """
    valid_BxT = tokens.mask > 0
    tokens = prepare(tokens)
    weight_BxT = tokens.weight
    if correction_BxT is not None:
        weight_BxT = weight_BxT * lax.stop_gradient(jnp.where(valid_BxT, correction_BxT, 0.0))

    def loss_and_clipped(logp_BxT: Array) -> tuple[Array, Array]:
        loss_BxT, clipped_BxT = objective(logp_BxT, tokens)
        return jnp.sum(weight_BxT * jnp.where(valid_BxT, loss_BxT, 0.0)), clipped_BxT & valid_BxT

    (loss, clipped_BxT), grad_BxT = jax.value_and_grad(loss_and_clipped, has_aux=True)(tokens.logp)
    nucleus_BxT = None if tokens.nucleus_entropy is None else jnp.zeros_like(grad_BxT)
    return loss, TokenGrads(grad_BxT, jnp.zeros_like(grad_BxT), nucleus_BxT), clipped_BxT
