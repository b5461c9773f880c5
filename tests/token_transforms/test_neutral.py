"""With its knob at the neutral value a method has the gradient of the recipe that it extends, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.config.recipes import recipe
from entropy_rl.objective import surrogates

NEUTRAL = [
    ("archer", {"clip_above": 0.2, "coef": 0.0}, "grpo"),
    ("clip_cov_top", {"pick": "random"}, "clip_cov"),
    ("lopti", {"bound": 1.0}, "grpo"),
    ("low_probability_reweighting", {"alpha": 0.0}, "grpo"),
    ("repo", {"initial": 0.0}, "grpo"),
    ("repo_r", {"initial": 0.0}, "grpo"),
    ("stapo", {"probability": 0.0}, "dapo"),
    ("rsi", {"low": 0.0, "high": 1e30}, "grpo"),
]


def gradient_of(settings, tokens):
    objective, chain = surrogates.build(settings["objective"]), tt.build(settings["transforms"])

    @jax.jit
    def update(tokens):
        _, grads, clipped = surrogates.token_gradient(objective, tokens)
        seen = tokens._replace(clipped=clipped)
        return chain.update(grads, chain.init(grads), tokens=seen, key=jax.random.key(0), on_policy=False)[0]

    return update(tokens)


@pytest.mark.parametrize(("name", "knob", "extended"), NEUTRAL, ids=[name for name, *_ in NEUTRAL])
def test_it_equals_the_recipe_that_it_extends(name, knob, extended):
    settings = recipe(name)
    ((transform, options),) = settings["transforms"]
    neutral = settings | {"transforms": [(transform, options | knob)]}
    _, tokens = random_tokens(5, 6, 20)
    tokens = tokens._replace(turn=jnp.zeros(6, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, gradient_of(neutral, tokens), gradient_of(recipe(extended), tokens))
    acting = settings | {"transforms": [(transform, options | ACTS.get(name, {}))]}
    assert np.any(gradient_of(acting, tokens).logp != gradient_of(recipe(extended), tokens).logp)


# Options at which a method acts on so small a batch.
ACTS = {"clip_cov_top": {"fraction": 0.1, "low": 0.1}, "stapo": {"probability": 0.3}}
