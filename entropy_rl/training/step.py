"""The train step: token statistics, the token gradient and its edits, one pull-back to the parameters, Optax.

Shapes: N prompts, P prompt positions, G samples a prompt, B = N·G responses, T response positions, M micro-batches.

The batch of one call is one *update*: whole groups, over the whole mesh. Every statistic, rank and normaliser is
taken over it, however it is split in micro-batches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from entropy_rl import covariance, token_transforms
from entropy_rl.model import head
from entropy_rl.model.transformer import Group, Transformer, head_weight, positions
from entropy_rl.objective.importance import importance_weights, sampler_gap
from entropy_rl.objective.surrogates import token_gradient, token_weight
from entropy_rl.stats import blocks, masked
from entropy_rl.token_transforms import TokenGrads, TokenInfo
from entropy_rl.training.packing import Packed, Plan

Array = jax.Array
Rows = Any  # an array, on the host or on devices
PIECES = "update_pieces"  # the name of a loop over an update's pieces: preflight counts how often it runs


class Batch(NamedTuple):
    """One update's groups; response b belongs to prompt b // G.

    Attributes:
      prompt, prompt_mask: i32[N, P], padded on the left.
      tokens, mask: i32[B, T], responses padded on the right.
      valid: bool[B], the response could be scored; else its tokens push nothing and count in no mean.
      advantage: f32[B, T].
      old_logp, old_entropy: f32[B, T], under the policy before the first update of this rollout.
      sampler_logp: f32[B, T], what the sampler said it drew with; read where the method corrects for the gap.
      ref_logp: f32[B, T], under the reference policy; zeros where the method does not need it.
      uid: u32[B], what random draws and ties hang on.
      packed: the same sequences in rows without padding, where that is cheaper.
    """

    prompt: Rows
    prompt_mask: Rows
    tokens: Rows
    mask: Rows
    valid: Rows
    advantage: Rows
    old_logp: Rows
    old_entropy: Rows
    sampler_logp: Rows
    ref_logp: Rows
    uid: Rows
    packed: Packed | None = None


def lay_out(plan: Plan, batch: Batch) -> Batch:
    """The update's batch (on the host) with its packed rows, which hold the prompts too, where these are cheaper."""
    packed = plan.pack(batch.prompt, batch.prompt_mask, batch.tokens, batch.mask)
    if packed is None:
        return batch
    return batch._replace(prompt=batch.prompt[:0], prompt_mask=batch.prompt_mask[:0], packed=packed)


def cut(batch: Batch, updates: int) -> list[Batch]:
    """The rollout as `updates` batches of whole groups, in order."""
    piece = lambda i: jax.tree.map(lambda x: x[len(x) // updates * i : len(x) // updates * (i + 1)], batch)
    return [piece(i) for i in range(updates)]


class TrainState(NamedTuple):
    """All that training carries from step to step.

    Attributes:
      step: i32[], rollout steps done.
      params, opt_state: parameters and the optimiser's state.
      token_state: the state of the chain over token gradients.
      skipped: i32[], updates refused in a row because the gradient was not finite.
      ref: the reference policy's parameters, those before step 1; None where the method does not need them.
    """

    step: Rows
    params: Any
    opt_state: Any
    token_state: Any
    skipped: Rows
    ref: Any = None


class Method(NamedTuple):
    """What a recipe decides about the gradient: which tokens may push the policy, and how hard.

    Attributes:
      objective: (logp, tokens) -> (loss_BxT, clipped_BxT), see `objectives`.
      chain: the Optax chain over token gradients.
      aggregation: how per-token losses are averaged, see `objectives.token_weight`.
      temperature: the sampling temperature.
      is_cap: the largest importance weight between sampler and trainer; 0: no correction.
      needs_ref: a transform reads `ref_logp`.
    """

    objective: Callable
    chain: optax.GradientTransformationExtraArgs
    aggregation: str = "token-mean"
    temperature: float = 1.0
    is_cap: float = 0.0
    needs_ref: bool = False


def token_stats(model: Transformer, params, batch: Batch, temperature: float) -> tuple[Array, Array]:
    """(logp, entropy), f32[B, T] in nats, of the responses; 0 where masked.

    The prompt of a group is computed once: its responses attend to it and each to itself, and the first token of
    each is predicted from the prompt's last position.
    """
    group = Group(batch.prompt.shape[1], batch.tokens.shape[0] // batch.prompt.shape[0])
    start_Bx1 = jnp.repeat(jnp.sum(batch.prompt_mask, axis=1), group.samples)[:, None]
    places_BxT = start_Bx1 + jnp.arange(batch.tokens.shape[1])[None, :]
    # the last token predicts nothing
    hidden, _ = model.apply(
        {"params": params},
        group.paste(batch.prompt, batch.tokens[:, :-1]),
        group.paste(positions(batch.prompt_mask), places_BxT[:, :-1]),
        group.paste(batch.prompt_mask, batch.mask[:, :-1]),
        group=group,
    )
    prompt, inner = group.cut(hidden)
    hidden_BxTxD = jnp.concatenate([jnp.repeat(prompt[:, -1:], group.samples, axis=0), inner], axis=1)
    return head.logp_and_entropy(
        hidden_BxTxD, head_weight(params).astype(model.dtype).T, batch.tokens, temperature, batch.mask
    )


class Pieces(NamedTuple):
    """An update as the micro-batches that are computed one after another.

    Attributes:
      count: how many; a number known at compile time, or an i32[].
      stats: (params, i) -> (logp, entropy) of piece i, in a shape of its own.
      take: (x_BxT, i) -> x in that shape, 0 where piece i has no token of it.
      put: (x_BxT, i, piece) -> x with the tokens of piece i replaced.
    """

    count: Any
    stats: Callable
    take: Callable
    put: Callable


def pieces(model: Transformer, temperature: float, micro_batches: int, batch: Batch) -> Pieces:
    """The batch as whole groups in `micro_batches`, or as packed rows where it holds them."""
    if batch.packed is not None:
        return _packed_pieces(model, temperature, batch.packed, batch.tokens.size)
    n = batch.prompt.shape[0]
    if n % micro_batches:
        raise ValueError(f"train.micro_batches={micro_batches} must divide the {n} prompts of an update")
    take = lambda x, i: blocks.take(x, i, micro_batches, n)
    part = lambda i: batch if micro_batches == 1 else jax.tree.map(lambda x: take(x, i), batch)
    return Pieces(
        micro_batches,
        lambda params, i: token_stats(model, params, part(i), temperature),
        take,
        lambda x, i, piece: blocks.put(x, i, piece, micro_batches, n),
    )


def _packed_pieces(model: Transformer, temperature: float, packed: Packed, size: int) -> Pieces:
    at = lambda x, i: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)

    def stats(params, i):
        tokens, position, segment, target, slot = (at(x, i) for x in packed)
        hidden, _ = model.apply({"params": params}, tokens, position, segment)
        W_DxV = head_weight(params).astype(model.dtype).T
        return head.logp_and_entropy(hidden, W_DxV, target, temperature, slot < size)

    return Pieces(
        jnp.sum(jnp.any(packed.segment > 0, axis=(0, 2)), dtype=jnp.int32),
        stats,
        lambda x, i: jnp.take(x.ravel(), at(packed.slot, i), mode="fill", fill_value=0),
        lambda x, i, piece: x.ravel().at[at(packed.slot, i)].set(piece, mode="drop").reshape(x.shape),
    )


def score(model: Transformer, temperature: float, micro_batches: int, params, batch: Batch) -> tuple[Array, Array]:
    """(logp, entropy), f32[B, T], of an update, piece by piece and without a gradient."""
    p = pieces(model, temperature, micro_batches, batch)
    if isinstance(p.count, int) and p.count == 1:
        return p.stats(params, 0)
    put = lambda i, out: tuple(p.put(x, i, piece) for x, piece in zip(out, p.stats(params, i), strict=True))
    zeros = jnp.zeros(batch.tokens.shape, jnp.float32)
    with jax.named_scope(PIECES):
        return jax.lax.fori_loop(0, p.count, put, (zeros, zeros))


def pull_back(p: Pieces, params, g: TokenGrads):
    """The gradient of Σ g·statistics by the parameters, summed over the pieces."""

    def piece(i):
        part = TokenGrads(*(p.take(x, i) for x in g))
        return jax.grad(lambda params: pull(part, *p.stats(params, i)))(params)

    if isinstance(p.count, int) and p.count == 1:
        return piece(0)
    # XLA for TPUs (libtpu 0.0.42) stops at an all-reduce that it would move out of this loop and cannot: the barrier
    add = lambda i, total: jax.tree.map(jnp.add, total, jax.lax.optimization_barrier(piece(i)))
    with jax.named_scope(PIECES):
        return jax.lax.fori_loop(0, p.count, add, jax.tree.map(jnp.zeros_like, params))


def edit(
    method: Method, logp: Array, entropy: Array, batch: Batch, token_state, key: Array, first
) -> tuple[TokenGrads, Any, dict[str, Array]]:
    """The token gradient of one update after the chain, the chain's new state, and the update's metrics."""
    mask = (batch.mask * batch.valid[:, None]).astype(jnp.float32)
    # Before the first update the policy is the one that sampled: the ratio is 1 to the last bit.
    old_logp = jnp.where(first, logp, batch.old_logp)
    tokens = TokenInfo(
        logp=logp,
        old_logp=old_logp,
        advantage=batch.advantage,
        entropy=entropy,
        mask=mask,
        clipped=jnp.zeros(mask.shape, bool),
        old_entropy=jnp.where(first, entropy, batch.old_entropy),
        ref_logp=batch.ref_logp,
        uid=batch.uid,
        weight=token_weight(mask, method.aggregation, mask.shape[1]),
    )
    # at the parameters that sampled, the trainer's logp is old_logp
    correction = importance_weights(old_logp, batch.sampler_logp, mask, method.is_cap) if method.is_cap else None
    loss, grads, clipped = token_gradient(method.objective, tokens, correction)
    tokens = tokens._replace(clipped=clipped)
    grads, token_state = method.chain.update(grads, token_state, tokens=tokens, key=key)
    cov = covariance.token_covariance(logp, batch.advantage, mask)
    tail = covariance.heavy_tail(cov, mask)
    metrics = {
        "loss": loss,
        "cov/mean": tail.pop("all"),
        **{f"cov/{share}": value for share, value in tail.items()},
        "tokens/kept_frac": token_transforms.kept_fraction(token_state),
        "ratio/clip_frac": masked.mean(clipped, mask),
        "kl/old": masked.mean(old_logp - logp, mask),
        **{f"sampler/gap_{k}": v for k, v in sampler_gap(old_logp, batch.sampler_logp, mask).items()},
    }
    return grads, token_state, metrics


def make_loss_fn(model: Transformer, method: Method):
    """The public form: `loss_fn(params, batch, key) -> (loss, (token_state, metrics))`, for `has_aux=True`.

    A chain with a state takes it as `token_state` (None: a fresh one); `first` marks an on-policy update.

    Its `jax.grad` is the pull-back of the edited token gradient g: the gradient of Σ stop_gradient(g)·logp is
    vjp(g) bit for bit, so the chain acts inside a differentiable, jittable loss.
    """

    def loss_fn(params, batch: Batch, key: Array, token_state=None, first=False):
        logp, entropy = token_stats(model, params, batch, method.temperature)
        if token_state is None:
            token_state = method.chain.init(TokenGrads(jnp.zeros_like(logp), jnp.zeros_like(entropy)))
        g, token_state, metrics = edit(method, *jax.lax.stop_gradient((logp, entropy)), batch, token_state, key, first)
        surrogate = pull(g, logp, entropy)
        return surrogate + jax.lax.stop_gradient(metrics["loss"] - surrogate), (token_state, metrics)

    return loss_fn


def pull(g: TokenGrads, logp: Array, entropy: Array) -> Array:
    """Σ g·statistics, f32[]: the function whose gradient is the pull-back of g."""
    return jnp.sum(jax.lax.stop_gradient(g.logp) * logp) + jnp.sum(jax.lax.stop_gradient(g.entropy) * entropy)


def make_train_step(
    model: Transformer, method: Method, optimizer: optax.GradientTransformation, micro_batches: int = 1
):
    """One update: `train_step(state, batch, key, first) -> (state, metrics)`; jit it and donate the state.

    With one micro-batch the chain runs between the forward and the backward pass. With several, and in packed rows,
    the statistics of the whole update are gathered first by a forward-only pass, which the first update of a rollout
    does not need: its statistics are the batch's `old_logp` and `old_entropy`.

    An update whose gradient is not finite changes nothing but `skipped`.
    """
    loss_fn = make_loss_fn(model, method)

    def gradients(state: TrainState, batch: Batch, key, first):
        if micro_batches == 1 and batch.packed is None:
            out = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key, state.token_state, first)
            (_, (token_state, metrics)), grads = out
            return grads, token_state, metrics
        forward = lambda: score(model, method.temperature, micro_batches, state.params, batch)
        logp, entropy = jax.lax.cond(first, lambda: (batch.old_logp, batch.old_entropy), forward)
        g, token_state, metrics = edit(method, logp, entropy, batch, state.token_state, key, first)
        grads = pull_back(pieces(model, method.temperature, micro_batches, batch), state.params, g)
        return grads, token_state, metrics

    def train_step(state: TrainState, batch: Batch, key: Array, first) -> tuple[TrainState, dict[str, Array]]:
        grads, token_state, metrics = gradients(state, batch, key, first)
        norm = optax.tree.norm(grads)

        finite = jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = optax.apply_updates(state.params, updates), opt_state, token_state
        # element by element, so that the donated state is written in place: a branch would hold it twice
        keep = lambda new, old: jnp.where(finite, new, old)
        params, opt_state, token_state = jax.tree.map(keep, new, (state.params, state.opt_state, state.token_state))
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics |= {"grad/norm": norm, "grad/skipped": 1 - finite.astype(jnp.int32)}
        return TrainState(state.step, params, opt_state, token_state, skipped, state.ref), metrics

    return train_step


def make_measured_step(train_step, model: Transformer, method: Method, micro_batches: int, step_size: float):
    """`train_step` that also says what the update did to the entropy of its own tokens, nats.

    `entropy/delta` is the change of their mean entropy; `entropy/delta_predicted` the same exactly to first order,
    ⟨∇H, Δθ⟩ with the Δθ that the optimiser took; `entropy/delta_thm1` and `_thm2` the covariance proxies of
    arXiv 2505.22617 with η = `step_size`. `quadrant/*` tells the change apart by probability and sign of the
    advantage. Costs two forward passes, a pass forward and back, and a tree of gradients.
    """

    def measured_step(state: TrainState, batch: Batch, key: Array, first) -> tuple[TrainState, dict[str, Array]]:
        mask = batch.mask * batch.valid[:, None]
        logp, before = score(model, method.temperature, micro_batches, state.params, batch)
        p = pieces(model, method.temperature, micro_batches, batch)
        slope = pull_back(p, state.params, TokenGrads(jnp.zeros_like(before), mask.astype(jnp.float32)))
        new, metrics = train_step(state, batch, key, first)
        _, after = score(model, method.temperature, micro_batches, new.params, batch)
        moved = jax.tree.map(lambda d, a, b: jnp.sum(d * (a - b)), slope, new.params, state.params)
        table = covariance.quadrants(logp, batch.advantage, mask, after - before)
        theorem = lambda k: covariance.predicted_entropy_change(logp, batch.advantage, mask, step_size, k)
        return new, metrics | {
            "entropy/delta": masked.mean(after - before, mask),
            "entropy/delta_predicted": sum(jax.tree.leaves(moved)) / jnp.maximum(masked.size(mask), 1),
            "entropy/delta_thm1": theorem(1),
            "entropy/delta_thm2": theorem(2),
            **{f"quadrant/{name}/{field}": x for name, row in table.items() for field, x in row.items()},
        }

    return measured_step
