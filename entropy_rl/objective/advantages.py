"""Advantages from rewards: one number for each response, from its group or from the batch.

B responses in groups of G consecutive rows, samples of one prompt. A row that could not be scored (valid 0) takes
no part in any mean or deviation and gets advantage 0. A group whose valid rewards are all equal, and so a
group of one, gets exactly 0 wherever the group is the baseline.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from entropy_rl.objective.registry import check_spec, split_spec
from entropy_rl.stats.selection import as_ratio, floor_product

EPS = 1e-6  # added to standard deviations, as in verl


def _groups(reward_B: Array, valid_B: Array, group_size: int) -> tuple[Array, Array, Array]:
    """Rewards (0 where invalid) and validity as [B/G, G], and the number of valid rows, at least 1, [B/G, 1]."""
    if reward_B.shape[0] % group_size:
        raise ValueError(f"group_size: {group_size} does not divide the {reward_B.shape[0]} rewards of the batch")
    valid_NxG = jnp.reshape(valid_B, (-1, group_size)) > 0
    reward_NxG = jnp.where(valid_NxG, jnp.reshape(reward_B, (-1, group_size)).astype(jnp.float32), 0.0)
    return reward_NxG, valid_NxG, jnp.maximum(jnp.sum(valid_NxG, axis=1, keepdims=True), 1)


def _centred(reward_NxG: Array, valid_NxG: Array, n_Nx1: Array) -> Array:
    """Rewards minus their group's mean; exactly 0 where the group's valid rewards are equal, and where invalid."""
    low_Nx1 = jnp.min(jnp.where(valid_NxG, reward_NxG, jnp.inf), axis=1, keepdims=True)
    high_Nx1 = jnp.max(jnp.where(valid_NxG, reward_NxG, -jnp.inf), axis=1, keepdims=True)
    mean_Nx1 = jnp.sum(reward_NxG, axis=1, keepdims=True) / n_Nx1
    return jnp.where(valid_NxG & (low_Nx1 < high_Nx1), reward_NxG - mean_Nx1, 0.0)


def _std(centred_NxG: Array, n_Nx1: Array) -> Array:
    """Sample standard deviation (n − 1) of each group, [B/G, 1]; 0 for a group of one."""
    return jnp.sqrt(jnp.sum(centred_NxG**2, axis=1, keepdims=True) / jnp.maximum(n_Nx1 - 1, 1))


def grpo(reward_B: Array, valid_B: Array, group_size: int) -> Array:
    """(R − mean) / (std + 1e-6) within the group (arXiv 2402.03300); std over n − 1 as in verl. f32[B].

    Args:
      reward_B: f32[B].
      valid_B: f32 or bool[B], 0 where the response could not be scored.
      group_size: G, responses per prompt; groups are consecutive rows.
    """
    reward_NxG, valid_NxG, n_Nx1 = _groups(reward_B, valid_B, group_size)
    centred_NxG = _centred(reward_NxG, valid_NxG, n_Nx1)
    return jnp.reshape(centred_NxG / (_std(centred_NxG, n_Nx1) + EPS), -1)


def dr_grpo(reward_B: Array, valid_B: Array, group_size: int) -> Array:
    """R − mean within the group, without the division that favours easy and hard prompts (2503.20783). f32[B]."""
    return jnp.reshape(_centred(*_groups(reward_B, valid_B, group_size)), -1)


def rloo(reward_B: Array, valid_B: Array, group_size: int) -> Array:
    """R − mean of the *other* valid rewards of the group (arXiv 2402.14740): n / (n − 1) times R − mean. f32[B]."""
    reward_NxG, valid_NxG, n_Nx1 = _groups(reward_B, valid_B, group_size)
    others_Nx1 = n_Nx1 / jnp.maximum(n_Nx1 - 1, 1).astype(jnp.float32)
    return jnp.reshape(_centred(reward_NxG, valid_NxG, n_Nx1) * others_Nx1, -1)


def reinforce_pp(reward_B: Array, valid_B: Array, group_size: int, baseline: bool = False) -> Array:
    """REINFORCE++ (arXiv 2501.03262): (R − mean) / (std + 1e-6) over the whole batch, by response. f32[B].

    Args:
      baseline: subtract the group's mean first, then divide by the batch's deviation (REINFORCE++-baseline).
    """
    centred_B = dr_grpo(reward_B, valid_B, group_size) if baseline else reward_B
    return grpo(centred_B, valid_B, reward_B.shape[0])


def quantile(reward_B: Array, valid_B: Array, group_size: int, k: float = 0.4) -> Array:
    """(R − Q_k) / (std + 1e-6) within the group (arXiv 2509.22611). f32[B].

    Q_k is the least reward that at least a share k of the group does not exceed. With rewards 0 and 1 it is 0 up to
    an accuracy of 1 − k, where only right answers push, and 1 above, where only wrong ones do.

    Args:
      k: K, from 0 to 1.
    """
    reward_NxG, valid_NxG, n_Nx1 = _groups(reward_B, valid_B, group_size)
    centred_NxG = _centred(reward_NxG, valid_NxG, n_Nx1)
    above_Nx1 = jax.vmap(lambda n: floor_product(float(1 - Fraction(*as_ratio(k))), n[0])[0])(n_Nx1)[:, None]
    rank_Nx1 = jnp.maximum(n_Nx1 - above_Nx1 - 1, 0)
    ascending_NxG = jnp.sort(jnp.where(valid_NxG, reward_NxG, jnp.inf), axis=1)
    quantile_Nx1 = jnp.take_along_axis(ascending_NxG, rank_Nx1, axis=1)
    spread_NxG = valid_NxG & (_std(centred_NxG, n_Nx1) > 0)
    pushed_NxG = jnp.where(spread_NxG, reward_NxG - quantile_Nx1, 0.0)
    return jnp.reshape(pushed_NxG / (_std(centred_NxG, n_Nx1) + EPS), -1)


def signed(reward_B: Array, valid_B: Array, group_size: int, right: float = 0.1, wrong: float = -1.0) -> Array:
    """`right` where R > 0.5, `wrong` elsewhere, with no baseline: W-REINFORCE (arXiv 2506.01347). f32[B].

    PSR is (1, 0), NSR is (0, −1). The group does not enter, so equal rewards do push here.

    Args:
      right: λ.
      wrong: advantage of a wrong answer.
    """
    return jnp.where(valid_B > 0, jnp.where(reward_B > 0.5, right, wrong), 0.0)


ADVANTAGES: dict[str, Callable[..., Array]] = {
    f.__name__: f for f in (dr_grpo, grpo, quantile, reinforce_pp, rloo, signed)
}


def build(spec: Any) -> Callable[[Array, Array, int], Array]:
    """The function (reward_B, valid_B, group_size) -> advantage_B that `algo.advantage` names.

    Args:
      spec: a name, or a pair (name, options).

    Raises:
      ValueError: unknown name or option.
    """
    name, options = split_spec(spec, "algo.advantage")
    given = ("reward_B", "valid_B", "group_size")
    return partial(check_spec(ADVANTAGES, name, options, "algo.advantage", given), **options)
