"""REPO: takes out of the advantage what moves with the log-probability, as much as holds the entropy (2603.11682)."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0, number, one_of
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped
from entropy_rl.token_transforms.base import checked, stateful


class Repo(NamedTuple):
    """State of REPO; it is part of the checkpoint.

    Attributes:
        coef: ζ of this rollout's updates, f32[].
        target: the entropy to hold, nats, f32[]; −1 until the first rollout sets it.
    """

    coef: Array
    target: Array


@checked
def repo(
    form: Annotated[str, one_of("subtract", "rescale")] = "subtract",
    target: From0 | None = None,
    initial: float = 1e-3,
    least: Annotated[float, number(above=0)] = 1e-4,
    most: Annotated[float, number(above=0)] = 0.05,
    factor: Annotated[float, number(least=1)] = 2.0,
) -> optax.GradientTransformationExtraArgs:
    """Replaces A by A' = A − β·L, in which ζ sets β and follows the entropy once per rollout.

    With form "subtract", β = ζ and L = log π + H, the log-probability minus its mean over the tokens that could have
    been drawn. In expectation this is an entropy bonus of ζ, without a gradient of H, and it acts on tokens with A = 0
    too. The term is that of `policy_gradient` and `ppo_clip`; what these clip, by the sign of A, stays clipped.

    With form "rescale", β = ζ·|A| and L = log π: the paper's REPO-R. The gradient of a token with A > 0 is multiplied
    by 1 − ζ·log π, that of one with A < 0 by 1 + ζ·log π, and none by less than 0.

    H₀, the token mean of the entropy over the first update of a rollout, moves ζ before that update. Below the target,
    ζ > 0 is multiplied by `factor`, up to `most`; ζ < 0 is divided by it, and becomes `least` if its size falls below
    that. Above the target it is the reverse, so ζ may lower the entropy too. ζ = 0 stays 0.

    The doubling, the halving, the change of sign and the range are those of REPO-R in the paper's appendix D.2, as a
    public implementation describes them (SkyRL, pull request 1896); that the target is the entropy at the start is the
    paper's. No official code was found. No range was found for the other form: it has the same one, which is that of
    usual entropy bonuses.

    Args:
        form: "subtract" or "rescale".
        target: nats; None: H₀ of the first rollout, as in the paper.
        initial: ζ of the first rollout; advantage per nat, or 1 / nat with "rescale".
        least: the smallest |ζ| before it changes its sign.
        most: the largest |ζ|.
        factor: by which |ζ| moves; 1 keeps ζ.

    Returns:
        A transform with state `Repo`. On an empty batch it adds nothing, and its state stays.

    Raises:
        ValueError: If an option is out of range, the form is unknown, or `least` is above `most`.
    """
    if least > most:
        raise ValueError(f"algo.transforms.repo.least={least!r} must not be above most={most!r}")

    def init() -> Repo:
        return Repo(jnp.float32(initial), jnp.float32(-1))

    def raised(coef: Array) -> Array:
        shrunk = jnp.where(coef / factor <= -least, coef / factor, least)
        return jnp.where(coef > 0, jnp.minimum(coef * factor, most), jnp.where(coef < 0, shrunk, 0.0))

    def begin(state: Repo, tokens: TokenInfo) -> Repo:
        entropy = masked.mean(tokens.entropy, tokens.mask)
        first = jnp.where(state.target < 0, entropy, state.target)
        held = first if target is None else jnp.float32(target)
        lowered = -raised(-state.coef)
        coef = jnp.where(entropy < held, raised(state.coef), jnp.where(entropy > held, lowered, state.coef))
        some = masked.size(tokens.mask) > 0
        return Repo(jnp.where(some, coef, state.coef), jnp.where(some, held, state.target))

    def edit(grads: TokenGrads, state: Repo, tokens: TokenInfo, key: Array) -> tuple[TokenGrads, Repo]:
        if form == "rescale":
            kept_BxT = 1 - jnp.sign(tokens.advantage) * state.coef * tokens.logp
            return grads._replace(logp=grads.logp * jnp.maximum(kept_BxT, 0.0)), state
        ratio_BxT = jnp.exp(clamped(tokens.logp - tokens.old_logp))
        term_BxT = tokens.weight * ratio_BxT * state.coef * (tokens.logp + tokens.entropy)
        return grads._replace(logp=grads.logp + jnp.where(tokens.clipped, 0.0, term_BxT)), state

    return stateful(init, edit, begin)
