"""Rows 24 to 26: gradients that are not finite, groups without a signal, extreme logits, for every recipe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from updates import CFG, B, G, T, batch, method, params, token_state

from entropy_rl import entropy as entropy_lib
from entropy_rl import loop
from entropy_rl.config.recipes import RECIPES
from entropy_rl.model.transformer import Transformer
from entropy_rl.objective import advantages
from entropy_rl.training import update
from entropy_rl.training.batch import TrainState, in_turn

QUICK = {"clip_cov", "entropy_ratio", "grpo", "gspo"}  # one of each kind; the others are slow together
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(RECIPES)]

# Terms of the loss that do not come from rewards: they act on a batch without a signal too.
OWN_TERMS = {"adaptive_entropy_bonus", "archer", "entropy_bonus", "kl_cov", "reference_kl", "repo"}


def test_24_a_gradient_that_is_not_finite_changes_nothing_and_is_counted():
    """Neither the parameters nor the moments nor the chain's state; once too often, the run ends."""
    how, opt = method("adaptive_entropy"), optax.adam(1e-3)
    state = TrainState(jnp.int32(3), params(), opt.init(params()), token_state(how), jnp.int32(0))
    step = jax.jit(functools.partial(update.train_step, Transformer(CFG), how, opt, 1))
    good, _ = step(state, batch(), jax.random.key(0), False)
    assert any(np.any(x) for x in jax.tree.leaves(good.opt_state[0].mu))
    one = np.zeros((B, T), np.float32)
    one[np.nonzero(batch().mask * batch().valid[:, None])[0][0], 0] = np.nan
    for bad in (one, np.where(batch().mask > 0, np.inf, 0).astype(np.float32)):
        after = good
        for count in (1, 2, 3, 4):
            after, metrics = step(after, batch()._replace(advantage=bad), jax.random.key(0), False)
            assert metrics["grad/skipped"] == 1 and after.skipped == count
        for part in ("params", "opt_state", "token_state"):
            assert jax.tree.all(jax.tree.map(np.array_equal, getattr(good, part), getattr(after, part)))
        recovered, metrics = step(after, batch(), jax.random.key(0), False)
        assert recovered.skipped == 0 and metrics["grad/skipped"] == 0
    loop.check_finite(7, skipped=3, max_skipped=3)
    with pytest.raises(RuntimeError, match=r"step 7: the gradient was not finite in 4 updates .*max_skipped=3"):
        loop.check_finite(7, skipped=4, max_skipped=3)


@functools.cache
def compiled(name):
    how = method(name)
    return jax.jit(functools.partial(update.edit, how)), token_state(how), how.turns


def edited(name, logp, entropy, data):
    """(d loss / d logp, d loss / d entropy, loss) of a recipe, with these statistics of the tokens."""
    act, state, turns = compiled(name)
    data = in_turn(data, 0) if turns > 1 else data
    grads, _, metrics = act(jnp.asarray(logp), entropy, data, state, jax.random.key(1), False)
    return np.asarray(grads.logp), np.asarray(grads.entropy), float(metrics["loss"])


@pytest.mark.parametrize("name", ALL)
def test_25_groups_without_a_signal_teach_nothing(name):
    """All rewards of a group equal, none scored, all tokens masked: the loss and every gradient are 0, not nearly."""
    kind, options = RECIPES[name]["advantage"]
    of = advantages.build((kind, options))
    equal = np.repeat(np.random.default_rng(0).integers(0, 2, B // G) / 10, G).astype(np.float32)
    if kind == "reinforce_pp":  # it also compares with the other groups of the batch
        equal = np.full(B, 0.1, np.float32)
    logp, data = batch().old_logp * 1.1, batch()
    scored, none = np.ones(B, bool), np.zeros(B, bool)
    cases = {
        "none scored": data._replace(valid=none, advantage=np.asarray(of(equal, none, G)[:, None] * data.mask)),
        "all masked": data._replace(mask=0 * data.mask, advantage=np.zeros((B, T), np.float32)),
    }
    if kind != "signed":  # which has no baseline: a right answer is worth something whatever the others are
        cases["equal rewards"] = data._replace(
            valid=scored, advantage=np.asarray(of(equal, scored, G)[:, None] * data.mask)
        )
    own = OWN_TERMS & {transform for transform, _ in RECIPES[name]["transforms"]}
    for case, data in cases.items():
        by_logp, by_entropy, loss = edited(name, logp, data.old_entropy, data)
        assert np.isfinite(loss) and np.isfinite(by_logp).all() and np.isfinite(by_entropy).all(), case
        assert own and case == "equal rewards" or not (loss or by_logp.any() or by_entropy.any()), case


def test_25_a_group_of_one_teaches_nothing():
    for name in set(advantages.ADVANTAGES) - {"signed", "reinforce_pp"}:
        assert not np.any(advantages.build(name)(jnp.arange(6.0), jnp.ones(6), 1)), name


@pytest.mark.parametrize("name", ALL)
def test_26_extreme_logits_stay_finite(name):
    """Logits of −∞, certainty, and log-ratios of ±10⁴."""
    logits = jnp.full((B, T, 8), -jnp.inf).at[..., 0].set(0.0)  # all but one token are forbidden
    certain = jax.nn.log_softmax(logits)[..., 0]
    entropy = entropy_lib.entropy(logits)
    far = jnp.full((B, T), -1e4)
    for logp, old in ((certain, certain), (certain, far), (far, certain), (far, far)):
        data = batch()._replace(old_logp=old, old_entropy=entropy, ref_logp=old, sampler_logp=old)
        by_logp, by_entropy, loss = edited(name, logp, entropy, data)
        assert np.isfinite(loss) and np.isfinite(by_logp).all() and np.isfinite(by_entropy).all()
