"""One update: token statistics, the token gradient and its edits, one pull-back to the parameters, Optax.

Shapes: B responses, T response positions. A batch here is one *update*: whole groups, over the whole mesh. Every
statistic, rank and normaliser is taken over it, however it is split into micro-batches.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from entropy_rl import covariance, token_transforms
from entropy_rl.model import lora
from entropy_rl.model.head_extras import NONE, Extras
from entropy_rl.model.transformer import Params, Transformer
from entropy_rl.objective import corrections
from entropy_rl.objective.surrogates import Objective, token_gradient, token_weight
from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped
from entropy_rl.token_transforms.chain import Chain
from entropy_rl.token_transforms.schedule import Schedule
from entropy_rl.training import rounding
from entropy_rl.training.batch import Batch, TrainState
from entropy_rl.training.scoring import pieces, pull, pull_back, score, token_stats

Array = jax.Array
Metrics = dict[str, Any]  # Arrays, f32[] each; and "tokens", a TokenRecord, if the method records


class TokenRecord(NamedTuple):
    """What one update did with each token, [B, T] each; 0 at masked tokens.

    Attributes:
        logp: f32, nats, under the policy that the update starts from.
        entropy: f32, nats, likewise.
        covariance: f32, the token's term of the batch covariance (`covariance.py: token_covariance`).
        ratio: f32, exp(logp − old_logp), to the policy that sampled.
        gradient: f32, d loss / d logp of the objective, before the transforms.
        gradient_after: f32, the same after the transforms.
        entropy_gradient: f32, d loss / d entropy after the transforms.
        fate: u8, see `FATES`; from len(FATES) on, the transforms of the chain in their order.
    """

    logp: Array
    entropy: Array
    covariance: Array
    ratio: Array
    gradient: Array
    gradient_after: Array
    entropy_gradient: Array
    fate: Array


# What may happen to a token besides the transforms: nothing; it has no advantage, nor a gradient from elsewhere; the
# correction between sampler and trainer stopped it; the objective's clip did. The first of these three counts.
FATES = ("kept", "no advantage", "correction", "clip")


class Method(NamedTuple):
    """What a recipe decides about the gradient: which tokens may push the policy, and how hard.

    Attributes:
        objective: (logp, tokens) -> (loss_BxT, clipped_BxT), see `objective/surrogates.py`.
        chain: the Optax chain over token gradients.
        aggregation: how per-token losses are averaged, see `objective/surrogates.py: token_weight`.
        temperature: the sampling temperature.
        correction: weights of the tokens by the gap between sampler and trainer; None: all 1.
        needs_ref: a transform reads `ref_logp` or `ref_entropy`.
        turns: how often all updates of a rollout are made; above 1 a transform divides the tokens among the turns.
        schedules: the options of transforms that move with the steps, by "transform.option".
        extras: the statistics beside logp and entropy that the transforms read.
        records: the metrics of an update hold a `TokenRecord`.
    """

    objective: Objective
    chain: Chain
    aggregation: str = "token-mean"
    temperature: float = 1.0
    correction: corrections.Correction | None = None
    needs_ref: bool = False
    turns: int = 1
    schedules: tuple[tuple[str, Schedule], ...] = ()
    extras: Extras = NONE
    records: bool = False


def edit(
    method: Method,
    logp: Array,
    entropy: Array,
    batch: Batch,
    token_state: Any,
    key: Array,
    on_policy: Array | bool,
    step: Array | int = 0,
    *extras: Array,
) -> tuple[TokenGrads, Any, Metrics]:
    """The token gradient of one update after the chain, the chain's new state, and the update's metrics.

    Args:
        method: the recipe.
        logp: f32[B, T], nats, under the current parameters.
        entropy: f32[B, T], nats, under the current parameters.
        batch: the update.
        token_state: the chain's state.
        key: of the chain's random draws.
        on_policy: no update of this rollout has been made yet.
        step: the run's steps done, which options with a schedule move with.
        extras: f32[B, T] each, the statistics that `method.extras` names, under the current parameters.
    """
    mask = (batch.mask * batch.valid[:, None]).astype(jnp.float32)
    # Before the first update the policy is the one that sampled: the ratio is 1 to the last bit.
    old_logp = jnp.where(on_policy, logp, batch.old_logp)
    tokens = TokenInfo(
        logp=logp,
        old_logp=old_logp,
        advantage=batch.advantage,
        entropy=entropy,
        mask=mask,
        clipped=jnp.zeros(mask.shape, bool),
        old_entropy=jnp.where(on_policy, entropy, batch.old_entropy),
        ref_logp=batch.ref_logp,
        ref_entropy=batch.ref_entropy,
        uid=batch.uid,
        weight=token_weight(mask, method.aggregation, mask.shape[1]),
        turn=batch.turn,
        **dict(zip(method.extras.names, extras, strict=True)),
    )
    # at the parameters that sampled, the trainer's logp is old_logp
    weight = None
    if method.correction is not None:
        weight = corrections.weights(method.correction, old_logp, batch.sampler_logp, mask)
    loss, before, clipped = token_gradient(method.objective, tokens, weight)
    tokens = tokens._replace(clipped=clipped)
    moment = {"key": key, "on_policy": on_policy, "step": step}
    grads, token_state, acted = method.chain.trace(before, token_state, tokens=tokens, **moment)
    cov = covariance.token_covariance(logp, batch.advantage, mask)
    tail = covariance.heavy_tail(cov, mask)
    metrics: Metrics = {
        "loss": loss,
        "cov/mean": tail.pop("all"),
        **{f"cov/{share}": value for share, value in tail.items()},
        "tokens/kept_frac": token_transforms.kept_fraction(token_state),
        "ratio/clip_frac": masked.mean(clipped, mask),
        "kl/old": masked.mean(old_logp - logp, mask),
        **{f"sampler/gap_{k}": v for k, v in corrections.sampler_gap(old_logp, batch.sampler_logp, mask).items()},
    }
    metrics |= {f"schedule/{name}": schedule.at(step) for name, schedule in method.schedules}
    if weight is not None:
        metrics |= {f"correction/{k}": v for k, v in corrections.stopped(weight, mask).items()}
    if method.records:
        metrics["tokens"] = record(tokens, weight, cov, before, grads, acted)
    return grads, token_state, metrics


def record(
    tokens: TokenInfo, correction: Array | None, cov: Array, before: TokenGrads, after: TokenGrads, acted: Array
) -> TokenRecord:
    """The record of an update's tokens.

    Args:
        tokens: with `clipped` as the objective found it.
        correction: f32[B, T], the weights between sampler and trainer; None: all 1.
        cov: f32[B, T], the tokens' covariance.
        before: the objective's gradient.
        after: the gradient after the chain.
        acted: u8[B, T], of `Chain.trace`.
    """
    fate = jnp.where(acted > 0, acted + jnp.uint8(len(FATES) - 1), jnp.uint8(0))
    stopped = jnp.zeros(fate.shape, bool) if correction is None else correction == 0
    no_advantage = (tokens.advantage == 0) & (after.logp == 0)
    for number, holds in ((3, tokens.clipped), (2, stopped), (1, no_advantage)):
        fate = jnp.where(holds, jnp.uint8(number), fate)
    ratio = jnp.exp(clamped(tokens.logp - tokens.old_logp))
    made = TokenRecord(tokens.logp, tokens.entropy, cov, ratio, before.logp, after.logp, after.entropy, fate)

    def shown(x: Array) -> Array:
        return nn.with_logical_constraint(jnp.where(tokens.mask > 0, x, jnp.zeros_like(x)), ("batch", None))

    return TokenRecord(*map(shown, made))


def loss_fn(
    model: Transformer,
    method: Method,
    params: Params,
    batch: Batch,
    key: Array,
    token_state: Any = None,
    on_policy: Array | bool = False,
    step: Array | int = 0,
) -> tuple[Array, tuple[Any, Metrics]]:
    """The update as a loss: `functools.partial(loss_fn, model, method)` is a function of (params, batch, key).

    Its `jax.grad` is the pull-back of the edited token gradient g: the gradient of Σ stop_gradient(g)·logp is vjp(g)
    bit for bit, so the chain acts inside a differentiable, jittable loss.

    Args:
        model: the decoder.
        method: the recipe.
        params: the parameters.
        batch: the update, in whole groups.
        key: of the chain's random draws.
        token_state: the chain's state; None: a fresh one.
        on_policy: no update of this rollout has been made yet.
        step: the run's steps done.

    Returns:
        (loss f32[], (the chain's new state, metrics)), for `has_aux=True`.
    """
    stats = token_stats(model, params, batch, method.temperature, method.extras)
    if token_state is None:
        token_state = method.chain.init(TokenGrads(*map(jnp.zeros_like, stats[:2])))
    logp, entropy, *extras = jax.lax.stop_gradient(stats)
    g, token_state, metrics = edit(method, logp, entropy, batch, token_state, key, on_policy, step, *extras)
    surrogate = pull(g, *stats)
    return surrogate + jax.lax.stop_gradient(metrics["loss"] - surrogate), (token_state, metrics)


def gradients(
    model: Transformer,
    method: Method,
    micro_batches: int,
    state: TrainState,
    batch: Batch,
    key: Array,
    on_policy: Array | bool,
) -> tuple[Params, Any, Metrics]:
    """(the gradient of the trained parameters, the chain's new state, metrics) of one update.

    With one micro-batch the chain runs between the forward and the backward pass. With several, and in packed rows,
    a forward-only pass gathers the statistics of the whole update first. The first update of a rollout does not need
    that pass, unless the recipe reads more: its logp and entropy are the batch's `old_logp` and `old_entropy`.
    """
    if micro_batches == 1 and batch.packed is None:
        trained, frozen = lora.split(state.params)

        def loss(trained: Params) -> tuple[Array, tuple[Any, Metrics]]:
            params = lora.join(trained, frozen)
            return loss_fn(model, method, params, batch, key, state.token_state, on_policy, state.step)

        (_, (token_state, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        return grads, token_state, metrics

    def known() -> tuple[Array, Array]:
        return batch.old_logp, batch.old_entropy

    def forward() -> tuple[Array, ...]:
        return score(model, method.temperature, micro_batches, state.params, batch, method.extras)

    stats = forward() if method.extras.names else jax.lax.cond(on_policy, known, forward)
    logp, entropy, *extras = stats
    g, token_state, metrics = edit(method, logp, entropy, batch, state.token_state, key, on_policy, state.step, *extras)
    pulled = pieces(model, method.temperature, micro_batches, batch, method.extras.differentiable)
    return pull_back(pulled, state.params, g), token_state, metrics


def train_step(
    model: Transformer,
    method: Method,
    optimizer: optax.GradientTransformation,
    micro_batches: int,
    state: TrainState,
    batch: Batch,
    key: Array,
    on_policy: Array | bool,
) -> tuple[TrainState, Metrics]:
    """One update: (the new state, metrics). Jit it with the first four arguments bound, and donate the state.

    An update whose gradient is not finite changes nothing but `skipped`.
    """
    grads, token_state, metrics = gradients(model, method, micro_batches, state, batch, key, on_policy)
    grads = rounding.in_float32(grads)
    norm = optax.tree.norm(grads)

    finite, (trained, frozen) = jnp.isfinite(norm), lora.split(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, rounding.in_float32(trained))
    new = rounding.moved(trained, updates, key), opt_state, token_state

    def keep(new: Array, old: Array) -> Array:
        # element by element, so that the donated state is written in place: a branch would hold it twice
        return jnp.where(finite, new, old)

    trained, opt_state, token_state = jax.tree.map(keep, new, (trained, state.opt_state, state.token_state))
    params = lora.join(trained, frozen)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    metrics |= {"grad/norm": norm, "grad/skipped": 1 - finite.astype(jnp.int32)}
    return TrainState(state.step, params, opt_state, token_state, skipped, state.ref), metrics
