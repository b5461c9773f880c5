"""What a run is made of: the model on its mesh, and the few functions that are jitted.

Only this file calls jit for training, so only this file knows how things are sharded.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl import token_transforms
from entropy_rl.data import tiny_tokenizer
from entropy_rl.model import attention, decode, sharding
from entropy_rl.model.source import open_model
from entropy_rl.model.transformer import ModelConfig, Transformer, abstract_params, init_params
from entropy_rl.objective import surrogates as objectives
from entropy_rl.runtime import distributed, host
from entropy_rl.runtime.mesh import BATCH, make_mesh, row_shards, sampling_mesh
from entropy_rl.sampling import batching as rollouts
from entropy_rl.sampling import client as server
from entropy_rl.sampling import slots as sampler
from entropy_rl.stats import masked
from entropy_rl.token_transforms import TokenGrads
from entropy_rl.training import step
from entropy_rl.training.packing import Plan


class Engine(NamedTuple):
    """The compiled parts of a run.

    Attributes:
        cfg, tokenizer: of the model.
        mesh, rules: where arrays live; enter `engine.on_mesh()` before anything is called.
        sampling: the engine's mesh and rules while it samples, the same devices (`rollout.tensor`).
        drawing: (n, sampling) -> a function (params, prompt_NxP, prompt_mask_NxP, uid_N, key, done=None) -> Rollout on
            the host, n responses a prompt; `done` as in `rollouts.Watch`.
        rollout: that of the config's samples.
        greedy: that of one greedy response a prompt.
        score: (params, batch) -> (logp, entropy), f32[B, T].
        plan: how an update's sequences may be laid out in rows.
        update: (state, batch, key, first) -> (state, metrics); the state is donated.
        measured_update: the same, and what it did to the entropy beside what theory says it would do.
        init: params -> TrainState; the parameters are donated.
        abstract_state: the TrainState as ShapeDtypeStructs with shardings, for a restore.
        params_sharding: of the parameters.
    """

    cfg: ModelConfig
    tokenizer: Any
    model: Transformer
    mesh: Mesh
    rules: Any
    sampling: tuple[Mesh, Any]
    plan: Plan
    drawing: Callable[[int, sampler.Sampling], Callable[..., sampler.Rollout]]
    rollout: Any
    greedy: Any
    score: Any
    update: Any
    measured_update: Any
    init: Any
    abstract_state: Any
    params_sharding: Any

    def on_mesh(self):
        """The context in which logical axes have a meaning."""
        return on_mesh(self.mesh, self.rules, self.model.dtype)


def on_mesh(mesh: Mesh, rules, dtype) -> contextlib.ExitStack:
    """The context in which logical axes mean this mesh's, and products are as precise as the dtype."""
    stack = contextlib.ExitStack()
    stack.enter_context(jax.set_mesh(mesh))
    stack.enter_context(nn.logical_axis_rules(rules))
    stack.enter_context(precision(dtype))
    return stack


def compute_dtype(name: str, device=None):
    """The dtype that `model.dtype` names; "auto" is bfloat16 where the accelerator multiplies it natively."""
    if name != "auto":
        return jnp.dtype(name)
    device = device or jax.devices()[0]
    native = device.platform == "tpu" or host.compute_capability(device) >= 8
    return jnp.dtype(jnp.bfloat16 if native else jnp.float32)


def precision(dtype):
    """Float32 is float32: accelerators take bfloat16 passes through a float32 product unless told otherwise."""
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default")


def compiler_options(device) -> dict[str, str] | None:
    """What the compiler is told for training.

    A TPU's would else multiply with a small gathered weight slice by slice as the slices arrive, and read and write the
    sum each time: on 16 chips scoring with a 0.5B model took four times as long, by preflight's count.
    """
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"} if device.platform == "tpu" else None


def load(c: ConfigDict) -> tuple[ModelConfig, Any, Callable]:
    """(ModelConfig, tokenizer, weights) of `model.source`; `weights(shardings)` makes or reads the parameters."""
    if c.model.source != "tiny":
        return open_model(c.model.source)
    tokenizer = tiny_tokenizer()
    cfg = ModelConfig(vocab_size=len(tokenizer), eos_ids=(tokenizer.eos_token_id,), **c.model.tiny.to_dict())
    key = jax.random.fold_in(jax.random.key(c.seed), 0)
    return cfg, tokenizer, lambda shardings: jax.device_put(init_params(cfg, key), shardings)


def method(c: ConfigDict) -> step.Method:
    """The recipe in `config.algo` as functions. Raises ValueError for what nobody would read."""
    objective = objectives.build(config_lib.named(c.algo.objective))
    transforms = config_lib.transforms_of(c.algo)
    chain = token_transforms.build(transforms, c.algo.scope, c.train.micro_batches, c.rollout.samples)
    needs_ref = "ref_logp" in token_transforms.needs(transforms)
    return step.Method(objective, chain, c.algo.aggregation, c.rollout.temperature, c.algo.is_cap, needs_ref)


def optimizer(c: ConfigDict) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, or plain SGD, at a constant rate after a linear warm-up."""
    o = c.optim
    lr = optax.linear_schedule(0.0, o.lr, o.warmup_updates) if o.warmup_updates else o.lr
    adamw = lambda: optax.adamw(lr, o.b1, o.b2, o.eps, weight_decay=o.weight_decay)
    return optax.chain(optax.clip_by_global_norm(o.grad_clip), adamw() if o.name == "adamw" else optax.sgd(lr))


def mesh_of(c: ConfigDict, devices=None) -> Mesh:
    """The mesh of the config; raises ValueError where batches do not spread evenly over it."""
    mesh = make_mesh(**c.mesh.to_dict(), devices=devices)
    config_lib.check_mesh(c, row_shards(mesh), row_shards(sampling_mesh(mesh, c.rollout.tensor)))
    return mesh


def make_plan(c: ConfigDict, shards: int, prompts: int, samples: int) -> Plan:
    """The layouts of an update of so many prompts: a packed micro-batch computes about as much as one of groups."""
    P, T, micro = c.data.max_prompt_len, c.rollout.max_tokens, c.train.micro_batches
    length, positions = P + T - 1, prompts * (P + samples * (T - 1))
    rows = max(1, round(positions / micro / length / shards)) * shards
    layout = "group" if c.algo.scope == "microbatch" else c.train.layout
    return Plan(layout, rows, -(-prompts * samples // rows), length, positions * (1 if micro == 1 else 4 / 3))


def build(
    c: ConfigDict,
    cfg: ModelConfig,
    tokenizer,
    mesh: Mesh,
    how: step.Method | None = None,
    opt: optax.GradientTransformation | None = None,
    samples: int | None = None,
) -> Engine:
    """The engine of a config; `how`, `opt` and `samples` stand in for the config's own (the warm-up's do)."""
    how, opt = how or method(c), opt or optimizer(c)
    samples = samples or c.rollout.samples
    device = mesh.devices.flat[0]
    dtype = compute_dtype(c.model.dtype, device)
    kernel = attention.kernel_for(device, dtype, cfg.head_dim)
    model = Transformer(cfg, dtype, c.model.remat, unroll=device.platform == "cpu", kernel=kernel)
    rules = sharding.rules(cfg, mesh)
    params_sharding = sharding.param_shardings(cfg, mesh, rules)
    rows, replicated = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())
    there = sampling_mesh(mesh, c.rollout.tensor)
    rules_there = sharding.rules(cfg, there, "rollout.tensor", gathered=c.rollout.tensor > 0)
    prompts_per_update = c.rollout.prompts // c.train.updates_per_rollout
    rows_per_update = prompts_per_update * samples

    def init(params) -> step.TrainState:
        zero = jnp.zeros((), jnp.int32)
        none = jnp.zeros((rows_per_update, c.rollout.max_tokens))
        ref = jax.tree.map(jnp.copy, params) if how.needs_ref else None
        return step.TrainState(zero, params, opt.init(params), how.chain.init(TokenGrads(none, none)), zero, ref)

    abstract = jax.eval_shape(init, abstract_params(cfg))
    shardings = step.TrainState(
        replicated,
        params_sharding,
        sharding.like_params(abstract.opt_state, abstract.params, params_sharding, mesh),
        jax.tree.map(lambda _: replicated, abstract.token_state),
        replicated,
        params_sharding if how.needs_ref else None,
    )
    ready = jax.jit(
        decode.ready,
        static_argnames=("model", "places"),
        out_shardings=decode.shardings(model, sharding.param_shardings(cfg, there, rules_there)),
    )
    sampling_rows = NamedSharding(there, BATCH)
    layout = rollouts.Layout(
        row_shards(there),
        prompts=lambda x: distributed.put(x, rows),
        slots=lambda x: distributed.put(x, sampling_rows),
        ready=ready,
        move=(lambda prompts: prompts) if there is mesh else jax.jit(sampler.constrain),
        moved=second_time() if c.rollout.tensor else rollouts.LOCAL.moved,
        on_mesh=lambda: on_mesh(there, rules_there, dtype),
    )
    everywhere = jax.jit(lambda key: key, in_shardings=replicated, out_shardings=replicated)

    def drawing(n: int, sampling: sampler.Sampling) -> Callable[..., sampler.Rollout]:
        if c.rollout.server:
            rest = dict(max_tokens=c.rollout.max_tokens, stop=c.rollout.stop, slots=c.rollout.slots)
            there = server.connect(c.rollout.server, c.rollout.server_weights)
            return server.drawing(there, cfg, tokenizer, n=n, sampling=sampling, **rest)
        how = sampler.How(sampling, c.rollout.max_tokens, tuple(cfg.eos_ids))
        stop = rollouts.stopper(tokenizer, c.rollout.stop)

        def draw(params, prompt_NxP, prompt_mask_NxP, uid_N, key, done=None) -> sampler.Rollout:
            return rollouts.sample(
                model,
                params,
                prompt_NxP,
                prompt_mask_NxP,
                uid_N,
                everywhere(key),
                n=n,
                how=how,
                slots=c.rollout.slots,
                layout=layout,
                watch=rollouts.Watch(stop, done),
            )

        return draw

    sampling = sampler.Sampling(c.rollout.temperature, c.rollout.top_p, c.rollout.top_k).check()
    train_step = step.make_train_step(model, how, opt, c.train.micro_batches)
    jit = lambda f, ins, **how: distributed.spread(
        jax.jit(f, in_shardings=ins, compiler_options=compiler_options(device), **how), ins
    )
    update_in = (shardings, rows, replicated, replicated)
    update_how: dict[str, Any] = dict(donate_argnums=0, out_shardings=(shardings, replicated))
    return Engine(
        cfg,
        tokenizer,
        model,
        mesh,
        rules,
        (there, rules_there),
        plan=make_plan(c, row_shards(mesh), prompts_per_update, samples),
        drawing=drawing,
        rollout=drawing(samples, sampling),
        greedy=drawing(1, sampler.Sampling(temperature=0.0)),
        score=jit(
            functools.partial(step.score, model, how.temperature, c.train.micro_batches),
            (params_sharding, rows),
            out_shardings=rows,
        ),
        update=jit(train_step, update_in, **update_how),
        measured_update=jit(
            step.make_measured_step(train_step, model, how, c.train.micro_batches, c.optim.lr), update_in, **update_how
        ),
        init=jax.jit(init, in_shardings=(params_sharding,), out_shardings=shardings, donate_argnums=0),
        abstract_state=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        ),
        params_sharding=params_sharding,
    )


def second_time() -> Callable[[float, decode.Ready], None]:
    """`rollouts.Layout.moved`, which logs the second time: the first compiles."""
    calls = itertools.count()

    def moved(seconds: float, weights: decode.Ready) -> None:
        if next(calls) == 1:
            held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(weights))
            logging.info("gathered for sampling: %.3f s, %.2f GB of weights a device", seconds, held / 1e9)

    return moved


@jax.jit
def rollout_entropy(logp, entropy, mask) -> dict:
    """The sampling policy's entropy over the tokens it drew, nats."""
    return {
        "entropy/mean": masked.mean(entropy, mask),
        "entropy/response_mean": masked.response_mean(entropy, mask),
        "entropy/sampled": masked.mean(-logp, mask),
        "entropy/p80": masked.quantile(entropy, mask, 0.8),
        "entropy/frac_below_0.01": masked.fraction_below(entropy, mask, 0.01),
    }
