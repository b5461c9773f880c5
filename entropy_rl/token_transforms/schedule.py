"""An option of a transform that moves with the run's steps: a coefficient that is annealed, a share that grows.

A covariance method is unbiased in the limit if its coefficient is annealed, while an entropy bonus moves the point that
the policy goes to (arXiv 2604.09676; its abstract was read, which fixes no shape).
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo

SHAPES = ("linear", "cosine")


class Schedule(NamedTuple):
    """The value of an option as a function of the steps done, and of nothing else: a resumed run needs no state for it.

    Attributes:
        start: the value in the first step.
        to: the value once `steps` steps are done.
        steps: of the run, over which it moves.
        shape: "linear"; "cosine": half a wave, level at both ends.
    """

    start: float
    to: float
    steps: int
    shape: str = "linear"

    def at(self, step: Array | int) -> Array:
        """f32[]: the value after `step` steps.

        >>> [round(float(Schedule(1.0, 0.0, 4).at(step)), 3) for step in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
        """
        done = jnp.clip(jnp.asarray(step, jnp.float32) / self.steps, 0.0, 1.0)
        if self.shape == "cosine":
            done = jnp.where(done < 1, (1 - jnp.cos(math.pi * done)) / 2, 1.0)
        return jnp.where(done < 1, self.start + (self.to - self.start) * done, self.to)


class Scheduled(NamedTuple):
    """A transform whose options move; a chain asks it at each update for the transform of that step.

    Attributes:
        at: the run's steps done -> the transform; its state has the same structure at every step.
    """

    at: Callable[[Array | int], optax.GradientTransformationExtraArgs]


def scheduled(
    factory: Callable[..., optax.GradientTransformationExtraArgs], options: Mapping[str, Any], key: str
) -> optax.GradientTransformationExtraArgs | Scheduled:
    """The transform of a factory some of whose options may be a `Schedule`; a plain one if none of them moves.

    Args:
        factory: of the transform.
        options: its options.
        key: the config key of the transform, for messages.

    Raises:
        ValueError: An option is out of its range at either end, or cannot move: the factory reads it as a number.
    """
    first = {k: v.start if isinstance(v, Schedule) else v for k, v in options.items()}
    moving = {k: v for k, v in options.items() if isinstance(v, Schedule) and v.to != v.start}
    start, unchecked = factory(**first), inspect.unwrap(factory)
    if not moving:
        return start
    factory(**first | {k: v.to for k, v in moving.items()})
    for option in moving:
        if not _reads(partial(_with, unchecked, first, option), start):
            raise ValueError(
                f"{key}.{option} cannot have a schedule: it is read once, when the run starts; leave "
                f"algo.schedule.{key.rpartition('.')[2]}.{option} out"
            )

    def at(step: Array | int) -> optax.GradientTransformationExtraArgs:
        return unchecked(**first | {option: schedule.at(step) for option, schedule in moving.items()})

    return Scheduled(at)


def _with(
    factory: Callable[..., optax.GradientTransformationExtraArgs], options: Mapping[str, Any], name: str, value: Array
) -> optax.GradientTransformationExtraArgs:
    return factory(**{**options, name: value})


def _reads(
    made: Callable[[Array], optax.GradientTransformationExtraArgs], start: optax.GradientTransformationExtraArgs
) -> bool:
    """Whether an update is a function of the value that `made` takes, which may be known only when the update runs."""
    one = jnp.ones((1, 1))
    fields = {name: one for name in TokenInfo._fields} | {"clipped": one > 1}
    fields |= {"uid": jnp.ones(1, jnp.uint32), "turn": jnp.zeros(1, jnp.int32)}
    tokens, grads = TokenInfo(**fields), TokenGrads(one, one)
    state = start.init(grads)

    def update(value: Array) -> Any:
        return made(value).update(grads, state, tokens=tokens, key=jax.random.key(0), on_policy=True)

    try:
        traced = jax.make_jaxpr(update)(jnp.float32(1)).jaxpr
    except TypeError:  # Python's own arithmetic or a comparison needs the number itself
        return False
    return any(operand is traced.invars[0] for step in traced.eqns for operand in step.invars)
