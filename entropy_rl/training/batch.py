"""The arrays of training: one update's batch, and the state carried from step to step.

Shapes: N prompts, P prompt positions, G samples per prompt, B = N·G responses, T response positions.
"""

from typing import Any, NamedTuple, Self

import jax
import numpy as np
import optax

from entropy_rl.model.transformer import Params
from entropy_rl.sampling.base import Prompts, Rollout
from entropy_rl.token_transforms.chain import ChainState
from entropy_rl.training.packing import Packed, Plan


class Batch(NamedTuple):
    """Whole groups, those of one update or of a whole rollout; response b belongs to prompt b // G.

    Until it is handed to a jitted function, a batch holds NumPy arrays of these shapes.

    Attributes:
        prompt: i32[N, P], padded on the left; N = 0 if `packed` holds the prompts.
        prompt_mask: i32[N, P].
        tokens: i32[B, T], responses padded on the right.
        mask: i32[B, T].
        valid: bool[B], the response counts; the tokens of the others push nothing and enter no mean.
        advantage: f32[B, T].
        old_logp: f32[B, T], nats, under the policy before the first update of this rollout.
        old_entropy: f32[B, T], nats, under that policy.
        sampler_logp: f32[B, T], nats, as the sampler reported it; read if the method corrects for the gap.
        ref_logp: f32[B, T], nats, under the reference policy; zeros if the method does not need it.
        uid: u32[B], the hash that random draws and ties depend on.
        ref_entropy: f32[B, T], nats, under the reference policy; None if the method does not need that policy.
        packed: the same sequences in rows without padding, if that is cheaper.
        turn: i32[B], which of the method's turns this update belongs to; None if it has one.
    """

    prompt: jax.Array
    prompt_mask: jax.Array
    tokens: jax.Array
    mask: jax.Array
    valid: jax.Array
    advantage: jax.Array
    old_logp: jax.Array
    old_entropy: jax.Array
    sampler_logp: jax.Array
    ref_logp: jax.Array
    uid: jax.Array
    ref_entropy: jax.Array | None = None
    packed: Packed | None = None
    turn: jax.Array | None = None

    @classmethod
    def of(
        cls,
        prompts: Prompts,
        rollout: Rollout,
        *,
        valid: np.ndarray | None = None,
        advantage: np.ndarray | None = None,
        old_logp: np.ndarray | None = None,
        uid: np.ndarray | None = None,
    ) -> Self:
        """The batch of a rollout, on the host.

        Args:
            prompts: N prompts.
            rollout: B responses to them.
            valid: bool[B]; None: all of them.
            advantage: f32[B], one per response; None: zeros.
            old_logp: f32[B, T]; None: zeros.
            uid: u32[B]; None: zeros.
        """
        zeros, B = np.zeros_like(rollout.logp), len(rollout.tokens)
        on_host: dict[str, Any] = dict(
            prompt=prompts.tokens_NxP,
            prompt_mask=prompts.mask_NxP,
            tokens=rollout.tokens,
            mask=rollout.mask,
            valid=np.ones(B, bool) if valid is None else valid,
            advantage=zeros if advantage is None else advantage[:, None] * np.asarray(rollout.mask, np.float32),
            old_logp=zeros if old_logp is None else old_logp,
            old_entropy=rollout.entropy,
            sampler_logp=rollout.logp,
            ref_logp=zeros,
            uid=np.zeros(B, np.uint32) if uid is None else uid,
        )
        return cls(**on_host)


def cut(batch: Batch, updates: int) -> list[Batch]:
    """The rollout's batch as `updates` batches of whole groups, in order."""

    def piece(i: int) -> Batch:
        return jax.tree.map(lambda x: x[len(x) // updates * i : len(x) // updates * (i + 1)], batch)

    return [piece(i) for i in range(updates)]


def lay_out(plan: Plan, batch: Batch) -> Batch:
    """The update's batch (on the host), with packed rows, which hold the prompts too, if these are cheaper."""
    packed = plan.pack(batch.prompt, batch.prompt_mask, batch.tokens, batch.mask)
    if packed is None:
        return batch
    return batch._replace(prompt=batch.prompt[:0], prompt_mask=batch.prompt_mask[:0], packed=packed)


def in_turn(batch: Batch, turn: int) -> Batch:
    """The update's batch (on the host) as that of one of the method's turns, counted from 0."""
    turn_B: Any = np.full(len(batch.valid), turn, np.int32)
    return batch._replace(turn=turn_B)


class TrainState(NamedTuple):
    """Everything that training carries from step to step; a checkpoint holds it.

    Attributes:
        step: i32[], rollout steps done.
        params: the parameters.
        opt_state: the optimiser's state.
        token_state: the state of the chain over token gradients.
        skipped: i32[], updates refused in a row because the gradient was not finite.
        ref: the trained part of the reference policy's parameters, those before step 1; None if the method does not
            need them.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    token_state: ChainState
    skipped: jax.Array
    ref: Params | None = None
