"""The classic entropy bonus: loss −= coef · mean entropy."""

import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.token_transforms.base import checked, stateless


@checked
def entropy_bonus(coef: float) -> optax.GradientTransformationExtraArgs:
    """Subtracts coef · weight from d loss / d entropy, which adds −coef · Σ weight · H to the loss.

    Args:
        coef: per nat. For 7B models arXiv 2505.22617 found that 1e-3 has little effect, 0.005 holds the entropy and
            0.01 makes it explode. Below 0 it lowers the entropy: with −1 and no advantage the loss is the mean entropy.

    Returns:
        A transform without state.
    """

    def edit(grads: TokenGrads, tokens: TokenInfo, key: Array) -> TokenGrads:
        return grads._replace(entropy=grads.entropy - coef * tokens.weight)

    return stateless(edit)
