"""Advantages from rewards: one number per response, relative to its group or to the batch.

B responses in N = B / G groups of G consecutive rows, the samples of one prompt. Every function returns f32[B]. A row
that could not be scored (valid 0) enters no mean or deviation and gets advantage 0. If the baseline is the group's, a
group whose valid rewards are all equal, such as a group of one, gets exactly 0. Where advantages do not depend on the
scale of the rewards, they do not for any finite float32 rewards.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from entropy_rl.objective.registry import Spec, check_spec, split_spec
from entropy_rl.rules import From0To1
from entropy_rl.stats.selection import as_ratio, floor_product

INPUTS = ("reward_B", "valid_B", "group_size")  # the arguments that are no options of a config
EPS = 1e-6  # added to standard deviations, as in verl


def _groups(reward_B: Array, valid_B: Array, group_size: int) -> tuple[Array, Array, Array]:
    """Rewards (0 if invalid) and validity as [N, G], and the number of valid rows, at least 1, as [N, 1]."""
    if reward_B.shape[0] % group_size:
        raise ValueError(f"group_size: {group_size} does not divide the {reward_B.shape[0]} rewards of the batch")
    valid_NxG = jnp.reshape(valid_B, (-1, group_size)) > 0
    reward_NxG = jnp.where(valid_NxG, jnp.reshape(reward_B, (-1, group_size)).astype(jnp.float32), 0.0)
    return reward_NxG, valid_NxG, jnp.maximum(jnp.sum(valid_NxG, axis=1, keepdims=True), 1)


def _scale(reward_NxG: Array) -> Array:
    """A power of two per group, [N, 1], by which even the squares of its rewards fit in float32; 1 up to 2**40.

    A product with a power of two is exact, so results that do not depend on the rewards' scale keep their bits.
    """
    exponent_Nx1 = jnp.frexp(jnp.max(jnp.abs(reward_NxG), axis=1, keepdims=True))[1]
    return jnp.ldexp(jnp.float32(1), jnp.minimum(40 - exponent_Nx1, 0))


def _centred(reward_NxG: Array, valid_NxG: Array, n_Nx1: Array) -> Array:
    """Rewards minus their group's mean; exactly 0 in a group of equal valid rewards and at invalid rows."""
    low_Nx1 = jnp.min(jnp.where(valid_NxG, reward_NxG, jnp.inf), axis=1, keepdims=True)
    high_Nx1 = jnp.max(jnp.where(valid_NxG, reward_NxG, -jnp.inf), axis=1, keepdims=True)
    mean_Nx1 = jnp.sum(reward_NxG, axis=1, keepdims=True) / n_Nx1
    return jnp.where(valid_NxG & (low_Nx1 < high_Nx1), reward_NxG - mean_Nx1, 0.0)


def _std(centred_NxG: Array, n_Nx1: Array) -> Array:
    """Sample standard deviation (normaliser n − 1) of each group, [N, 1]; 0 for a group of one."""
    return jnp.sqrt(jnp.sum(centred_NxG**2, axis=1, keepdims=True) / jnp.maximum(n_Nx1 - 1, 1))


def grpo(reward_B: Array, valid_B: Array, group_size: int) -> Array:
    """(R − mean) / (std + 1e-6) within the group (arXiv 2402.03300); std has normaliser n − 1, as in verl.

    Args:
        reward_B: f32[B].
        valid_B: f32 or bool[B], 0 if the response could not be scored.
        group_size: G, responses per prompt; groups are consecutive rows.

    Example:
        >>> reward = jnp.array([1.0, 0.0, 0.0, 0.0, 1.0, 1.0])  # the second group has nothing to teach
        >>> valid = jnp.array([1, 1, 0, 1, 1, 1])  # the third response could not be scored
        >>> [round(a, 3) for a in grpo(reward, valid, 3).tolist()]
        [0.707, -0.707, 0.0, -1.155, 0.577, 0.577]
    """
    reward_NxG, valid_NxG, n_Nx1 = _groups(reward_B, valid_B, group_size)
    scale_Nx1 = _scale(reward_NxG)
    centred_NxG = _centred(reward_NxG * scale_Nx1, valid_NxG, n_Nx1)
    return jnp.reshape(centred_NxG / (_std(centred_NxG, n_Nx1) + EPS * scale_Nx1), -1)


def dr_grpo(reward_B: Array, valid_B: Array, group_size: int) -> Array:
    """R − mean within the group, without the division that favours easy and hard prompts (arXiv 2503.20783)."""
    reward_NxG, valid_NxG, n_Nx1 = _groups(reward_B, valid_B, group_size)
    scale_Nx1 = _scale(reward_NxG)
    return jnp.reshape(_centred(reward_NxG * scale_Nx1, valid_NxG, n_Nx1) / scale_Nx1, -1)


def rloo(reward_B: Array, valid_B: Array, group_size: int) -> Array:
    """R − mean of the group's *other* n − 1 valid rewards, n / (n − 1) times R − mean (arXiv 2402.14740)."""
    reward_NxG, valid_NxG, n_Nx1 = _groups(reward_B, valid_B, group_size)
    others_Nx1 = n_Nx1 / jnp.maximum(n_Nx1 - 1, 1).astype(jnp.float32)
    return jnp.reshape(dr_grpo(reward_B, valid_B, group_size).reshape(reward_NxG.shape) * others_Nx1, -1)


def reinforce_pp(reward_B: Array, valid_B: Array, group_size: int, baseline: bool = False) -> Array:
    """REINFORCE++: (R − mean) / (std + 1e-6) over the responses of the whole batch (arXiv 2501.03262).

    Args:
        reward_B: as for `grpo`.
        valid_B: as for `grpo`.
        group_size: as for `grpo`.
        baseline: subtract the group's mean first, then divide by the batch's deviation (REINFORCE++-baseline).
    """
    centred_B = dr_grpo(reward_B, valid_B, group_size) if baseline else reward_B
    return grpo(centred_B, valid_B, reward_B.shape[0])


def quantile(reward_B: Array, valid_B: Array, group_size: int, k: From0To1 = 0.4) -> Array:
    """(R − Q_k) / (std + 1e-6) within the group (arXiv 2509.22611).

    Q_k is the smallest reward v such that at least a share k of the group's rewards are ≤ v. With rewards 0 and 1 it is
    0 up to an accuracy of 1 − k, where only right answers push, and 1 above that, where only wrong answers push.

    Args:
        reward_B: as for `grpo`.
        valid_B: as for `grpo`.
        group_size: as for `grpo`.
        k: K, from 0 to 1.
    """
    reward_NxG, valid_NxG, n_Nx1 = _groups(reward_B, valid_B, group_size)
    scale_Nx1 = _scale(reward_NxG)
    reward_NxG *= scale_Nx1
    centred_NxG = _centred(reward_NxG, valid_NxG, n_Nx1)
    above = float(1 - Fraction(*as_ratio(k)))
    above_Nx1 = jax.vmap(lambda n: floor_product(above, n[0])[0])(n_Nx1)[:, None]
    rank_Nx1 = jnp.maximum(n_Nx1 - above_Nx1 - 1, 0)
    ascending_NxG = jnp.sort(jnp.where(valid_NxG, reward_NxG, jnp.inf), axis=1)
    quantile_Nx1 = jnp.take_along_axis(ascending_NxG, rank_Nx1, axis=1)
    spread_NxG = valid_NxG & (_std(centred_NxG, n_Nx1) > 0)
    pushed_NxG = jnp.where(spread_NxG, reward_NxG - quantile_Nx1, 0.0)
    return jnp.reshape(pushed_NxG / (_std(centred_NxG, n_Nx1) + EPS * scale_Nx1), -1)


def signed(reward_B: Array, valid_B: Array, group_size: int, right: float = 0.1, wrong: float = -1.0) -> Array:
    """W-REINFORCE: `right` if R > 0.5 and `wrong` otherwise, with no baseline (arXiv 2506.01347).

    PSR is (1, 0), NSR is (0, −1). The group is not read, so equal rewards do push here.

    Args:
        reward_B: as for `grpo`.
        valid_B: as for `grpo`.
        group_size: not read.
        right: λ, the advantage of a right answer.
        wrong: the advantage of a wrong answer.
    """
    return jnp.where(valid_B > 0, jnp.where(reward_B > 0.5, right, wrong), 0.0)


def maxrl(reward_B: Array, valid_B: Array, group_size: int) -> Array:
    """MaxRL: (R − mean) / (mean + 1e-6) within the group (arXiv 2602.02710); 0 in a group whose mean is not above 0.

    The mean is the success rate, so rewards are meant to be 0 and 1: then a right answer gets at most G − 1, if it is
    the only one. The official code divides by any mean; a negative one would reverse the update.
    """
    reward_NxG, valid_NxG, n_Nx1 = _groups(reward_B, valid_B, group_size)
    scale_Nx1 = _scale(reward_NxG)
    reward_NxG *= scale_Nx1
    mean_Nx1 = jnp.sum(reward_NxG, axis=1, keepdims=True) / n_Nx1
    rate_Nx1 = jnp.where(mean_Nx1 > 0, mean_Nx1 + EPS * scale_Nx1, jnp.inf)
    return jnp.reshape(_centred(reward_NxG, valid_NxG, n_Nx1) / rate_Nx1, -1)


def pass_at_k(reward_B: Array, valid_B: Array, group_size: int) -> Array:
    """R − (largest other reward) for the best response of the group, 0 for all others (arXiv 2503.19595).

    It is what a response adds to the largest reward of its group, so it raises pass@G: only a right answer that is the
    only one pushes. verl's `grpo_passk` also divides by the group's deviation unless `norm_adv_by_std_in_grpo` is off.
    """
    reward_NxG, valid_NxG, _ = _groups(reward_B, valid_B, group_size)
    ascending_NxG = jnp.sort(jnp.where(valid_NxG, reward_NxG, -jnp.inf), axis=1)
    best_Nx1, second_Nx1 = ascending_NxG[:, -1:], ascending_NxG[:, -2:-1] if group_size > 1 else -jnp.inf
    pushed_NxG = valid_NxG & (reward_NxG == best_Nx1) & jnp.isfinite(second_Nx1)  # of equals, each gets best − best = 0
    return jnp.reshape(jnp.where(pushed_NxG, reward_NxG - second_Nx1, 0.0), -1)


def none(reward_B: Array, valid_B: Array, group_size: int) -> Array:
    """0 for every response: no reward is read, and only what transforms add to the gradient acts."""
    return jnp.zeros_like(reward_B, jnp.float32)


ADVANTAGES: dict[str, Callable[..., Array]] = {
    f.__name__: f for f in (dr_grpo, grpo, maxrl, none, pass_at_k, quantile, reinforce_pp, rloo, signed)
}

_BY_GROUP = ("dr_grpo", "grpo", "maxrl", "pass_at_k", "quantile", "rloo")


def reads_group(spec: Spec) -> bool:
    """Whether an advantage compares a response with the others of its group, so that a group of one gets exactly 0.

    >>> reads_group("grpo"), reads_group("reinforce_pp"), reads_group(("reinforce_pp", {"baseline": True}))
    (True, False, True)
    """
    name, options = split_spec(spec, "algo.advantage")
    return name in _BY_GROUP or bool(options.get("baseline"))


def build(spec: Spec) -> Callable[[Array, Array, int], Array]:
    """The function (reward_B, valid_B, group_size) -> advantage_B that `algo.advantage` names.

    Args:
        spec: a name, or a pair (name, options).

    Raises:
        ValueError: If the name or an option is unknown.
    """
    name, options = split_spec(spec, "algo.advantage")
    return partial(check_spec(ADVANTAGES, name, options, "algo.advantage", INPUTS), **options)
