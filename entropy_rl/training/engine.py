"""The engine of a run: the model on its mesh, the sampler, and the few functions that are jitted.

Only this file calls jit for training, so only this file knows how arrays are sharded.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl import token_transforms
from entropy_rl.data import tiny_tokenizer
from entropy_rl.model import attention, decode, lora, sharding
from entropy_rl.model.config import Lora
from entropy_rl.model.peft import Adapter
from entropy_rl.model.precision import compiler_options, compute_dtype, head_dtype, on_mesh
from entropy_rl.model.sharding import MeshRules
from entropy_rl.model.source import open_adapter, open_model, resolve
from entropy_rl.model.transformer import ModelConfig, Params, Transformer, abstract_params, init_params
from entropy_rl.objective import corrections, surrogates
from entropy_rl.objective.tokens import TokenGrads
from entropy_rl.runtime import distributed
from entropy_rl.runtime.mesh import make_mesh, replicated, row_sharding, row_shards, sampling_mesh
from entropy_rl.sampling import client
from entropy_rl.sampling.base import GREEDY, Decoding, Done, Prompts, Rollout, Sampler, Sampling
from entropy_rl.sampling.local import LocalSampler, placement_on
from entropy_rl.sampling.remote import ServerSampler
from entropy_rl.token_transforms.chain import ChainState
from entropy_rl.training.batch import Batch, TrainState, cut, lay_out
from entropy_rl.training.measure import measured_step
from entropy_rl.training.optimizer import optimizer_of, rate_of, updates_of
from entropy_rl.training.packing import Plan
from entropy_rl.training.rounding import in_float32
from entropy_rl.training.scoring import score
from entropy_rl.training.update import Method, Metrics, train_step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = jax.Array
Shardings = Any  # a tree of NamedShardings


class Loaded(NamedTuple):
    """A model before its weights are read.

    Attributes:
        model_config: the decoder's shape.
        tokenizer: a transformers tokenizer.
        weights: shardings -> the parameters, made or read, each placed as its sharding says.
    """

    model_config: ModelConfig
    tokenizer: "PreTrainedTokenizerBase"
    weights: Callable[[Shardings], Params]


def load(model: ConfigDict, seed: int) -> Loaded:
    """Opens `model.source`.

    Args:
        model: the config section.
        seed: of the untrained parameters of "tiny".

    Raises:
        ValueError: The source cannot be opened, see `model/source.py: open_model`.
    """
    key, dtype = jax.random.key(seed), base_dtype(model)
    wanted = lora_of(model)
    adapter = _adapter_of(model)
    if model.source == "tiny":
        base, tokenizer, read = _untrained(model.tiny.to_dict(), jax.random.fold_in(key, 0))
    else:
        base, tokenizer, read = open_model(adapter.base if adapter else model.source)
    model_config = lora.adapted(base, wanted)
    if adapter:
        adapter.check(model_config)

    def weights(shardings: Shardings) -> Params:
        if not wanted:
            return read(shardings, dtype=dtype)
        of_adapters, frozen = lora.split(shardings)
        if adapter:
            trained = jax.device_put(adapter.read(model_config), of_adapters)
        else:
            fresh = functools.partial(lora.fresh, model_config)
            trained = jax.jit(fresh, out_shardings=of_adapters)(jax.random.fold_in(key, 3))
        return lora.join(trained, read(frozen, dtype=dtype))

    return Loaded(model_config, tokenizer, weights)


def held_params(cfg: ModelConfig, dtype: np.dtype) -> Params:
    """The parameters of a run as ShapeDtypeStructs: adapters in float32, all others in `dtype`."""
    shapes = abstract_params(cfg)
    trained, frozen = lora.split(shapes)

    def held(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, dtype)

    return lora.join(trained, jax.tree.map(held, frozen)) if frozen else jax.tree.map(held, shapes)


def _untrained(
    tiny: dict[str, Any], key: Array
) -> tuple[ModelConfig, "PreTrainedTokenizerBase", Callable[..., Params]]:
    """The model of the config section `model.tiny`, as `open_model` returns one."""
    tokenizer = tiny_tokenizer(tiny.pop("words"))
    cfg = ModelConfig(len(tokenizer), eos_ids=(tokenizer.eos_token_id,), **tiny)

    def weights(shardings: Shardings, dtype: np.dtype) -> Params:
        return jax.device_put(jax.tree.map(lambda x: x.astype(dtype), init_params(cfg, key)), shardings)

    return cfg, tokenizer, weights


def base_of(model: ConfigDict) -> str:
    """The source of the weights that adapters belong to, by the config section `model`."""
    adapter = _adapter_of(model)
    return adapter.base if adapter else str(model.source)


def _adapter_of(model: ConfigDict) -> Adapter | None:
    """The adapter that a run continues to train, if `model.source` is one and is not merged."""
    return open_adapter(resolve(model.source)) if model.lora.rank and model.source != "tiny" else None


def lora_of(model: ConfigDict) -> Lora | None:
    """The adapters that the config section `model` asks for, or None."""
    c = model.lora
    return Lora(c.rank, c.alpha, tuple(name.removesuffix("_proj") for name in c.targets)) if c.rank else None


def base_dtype(model: ConfigDict, device: jax.Device | None = None) -> np.dtype:
    """The dtype of the parameters that are no adapters: if these are frozen, that in which products take them.

    Args:
        model: the config section.
        device: the device to compute on; None: the first one.
    """
    return head_dtype(model.dtype, device) if model.lora.rank else jnp.dtype(model.param_dtype)


def method_of(algo: ConfigDict, rollout: ConfigDict, train: ConfigDict) -> Method:
    """The recipe in the config section `algo` as functions.

    Raises:
        ValueError: An unknown name or option, or a scope that contradicts the transforms.
    """
    transforms = config_lib.transforms_of(algo)
    named_correction = config_lib.named(algo.correction)
    return Method(
        surrogates.build(config_lib.named(algo.objective)),
        token_transforms.build(transforms, algo.scope, train.micro_batches, rollout.samples),
        algo.aggregation,
        rollout.temperature,
        corrections.build(("token_truncate", {"cap": algo.is_cap}) if algo.is_cap else named_correction),
        needs_ref=bool({"ref_logp", "ref_entropy"} & token_transforms.needs(transforms)),
        turns=token_transforms.turns(transforms),
        schedules=token_transforms.schedules(transforms),
        extras=token_transforms.extras(transforms),
    )


def mesh_of(c: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of the configuration.

    Raises:
        ValueError: The sizes do not make up the devices, or batches do not divide evenly over the mesh.
    """
    mesh = make_mesh(**c.mesh.to_dict(), devices=devices)
    config_lib.check_mesh(c, row_shards(mesh), row_shards(sampling_mesh(mesh, c.rollout.tensor)))
    return mesh


class Engine:
    """What a run computes with. Enter `engine.on_mesh()` before any of its methods is called.

    Attributes:
        model_config: the decoder's shape.
        model: the decoder.
        method: the recipe as functions.
        training: the mesh and rules that parameters are placed by.
        sampling: the mesh and rules of sampling: the same devices (`rollout.tensor`).
        sampler: makes responses.
        decoding: how training samples.
        samples: G, per prompt.
        updates: per rollout.
        micro_batches: per update, in the group layout.
        plan: how the sequences of an update may be laid out in rows.
        abstract_state: the TrainState as ShapeDtypeStructs with shardings, for a restore.
        params_sharding: a tree of shardings, that of the parameters.
        jitted_score: `scoring.score`, jitted; likewise the others for preflight, which traces them.
    """

    def __init__(
        self,
        c: ConfigDict,
        model_config: ModelConfig,
        tokenizer: "PreTrainedTokenizerBase | None",
        mesh: Mesh,
        method: Method,
        optimizer: optax.GradientTransformation,
        samples: int,
    ):
        """See `Engine.of`; `method`, `optimizer` and `samples` replace the configuration's."""
        device = mesh.devices.flat[0]
        dtype = compute_dtype(c.model.dtype, device)
        kernel = attention.kernel_for(device, dtype, model_config.head_dim)
        self.model_config, self.method, self.samples = model_config, method, samples
        self.model = Transformer(
            model_config,
            dtype,
            c.model.remat,
            unroll=decode.unrolled(device),
            kernel=kernel,
            head_dtype=head_dtype(c.model.dtype, device),
        )
        self.training, self.sampling = layouts(model_config, mesh, c.rollout.tensor)
        self.params_sharding = sharding.param_shardings(model_config, *self.training)
        self.sampler = sampler_of(c.rollout, self.model, tokenizer, self.training, self.sampling)
        self.decoding = decoding_of(c.rollout, model_config.eos_ids)
        self.updates, self.micro_batches = c.train.updates_per_rollout, c.train.micro_batches
        prompts = c.rollout.prompts // self.updates
        self.plan = Plan.of(
            "group" if c.algo.scope == "microbatch" else c.train.layout,
            prompts=prompts,
            samples=samples,
            prompt_len=c.data.max_prompt_len,
            max_tokens=c.rollout.max_tokens,
            micro_batches=self.micro_batches,
            shards=row_shards(mesh),
        )

        shape = prompts * samples, c.rollout.max_tokens
        init = functools.partial(init_state, method, optimizer, shape)
        abstract = jax.eval_shape(init, held_params(model_config, base_dtype(c.model, device)))
        state = state_shardings(abstract, self.params_sharding, mesh)
        self.abstract_state: TrainState = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, state
        )

        rows, whole = row_sharding(mesh), replicated(mesh)
        training_jit = functools.partial(spread_jit, compiler_options=compiler_options(device))
        self._jitted_token_state = jax.jit(functools.partial(init_token_state, method, shape), out_shardings=whole)
        self.jitted_init = jax.jit(init, in_shardings=(self.params_sharding,), out_shardings=state, donate_argnums=0)
        self.jitted_score = training_jit(
            functools.partial(score, self.model, method.temperature, self.micro_batches),
            (self.params_sharding, rows),
            out_shardings=rows,
        )
        # Recorded tokens stay on their rows' devices: gathered in every update, their collectives can stop one another.
        metrics = None if method.records else whole
        update_jit = functools.partial(
            training_jit, in_shardings=(state, rows, whole, whole), out_shardings=(state, metrics), donate_argnums=0
        )
        fixed = self.model, method, optimizer, self.micro_batches
        self.jitted_update = update_jit(functools.partial(train_step, *fixed))
        self.jitted_measured_update = update_jit(
            functools.partial(measured_step, *fixed, functools.partial(rate_of, c.optim, updates=updates_of(c)))
        )

    @classmethod
    def of(
        cls, c: ConfigDict, model_config: ModelConfig, tokenizer: "PreTrainedTokenizerBase | None", mesh: Mesh
    ) -> Self:
        """The engine of a configuration.

        Args:
            c: the configuration.
            model_config: the decoder's shape, see `load`.
            tokenizer: the model's; None if the engine samples nothing that has to be read as text.
            mesh: the run's mesh, see `mesh_of`.
        """
        method = method_of(c.algo, c.rollout, c.train)._replace(records=c.log.rollouts > 0)
        optimizer = optimizer_of(c.optim, updates_of(c))
        return cls(c, model_config, tokenizer, mesh, method, optimizer, c.rollout.samples)

    @property
    def mesh(self) -> Mesh:
        """The training mesh."""
        return self.training.mesh

    def on_mesh(self) -> contextlib.AbstractContextManager[None]:
        """The context in which logical axes mean the training mesh's, and products are as precise as the dtype."""
        return on_mesh(self.training, self.model.dtype)

    def init(self, params: Params) -> TrainState:
        """The state before step 1; the parameters are donated."""
        return self.jitted_init(params)

    def fresh(self) -> dict[str, ChainState]:
        """The leaves of the state that a checkpoint of an earlier version may lack, as they are before step 1."""
        return {"token_state": self._jitted_token_state()}

    def rollout(self, params: Params, prompts: Prompts, key: Array, done: Done | None = None) -> Rollout:
        """G responses per prompt, as training samples them; see `sampling/base.py: Sampler.sample`."""
        return self.sampler.sample(params, prompts, key, n=self.samples, decoding=self.decoding, done=done)

    def greedy(self, params: Params, prompts: Prompts, key: Array) -> Rollout:
        """One greedy response per prompt."""
        return self.sampler.sample(params, prompts, key, n=1, decoding=self.decoding._replace(sampling=GREEDY))

    def parts(self, batch: Batch) -> list[Batch]:
        """A rollout's batch (on the host) as one batch per update, each laid out as is cheapest."""
        return [lay_out(self.plan, part) for part in cut(batch, self.updates)]

    def reference(self, state: TrainState) -> Params:
        """The reference policy's parameters; the method has to need one."""
        assert state.ref is not None
        return lora.join(state.ref, lora.split(state.params)[1])

    def score(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        """(logp, entropy), f32[B, T], of an update's batch, see `scoring.score`."""
        return self.jitted_score(params, batch)

    def update(self, state: TrainState, batch: Batch, key: Array, on_policy: bool) -> tuple[TrainState, Metrics]:
        """One update, see `update.train_step`; the state is donated."""
        return self.jitted_update(state, batch, key, on_policy)

    def measured_update(
        self, state: TrainState, batch: Batch, key: Array, on_policy: bool
    ) -> tuple[TrainState, Metrics]:
        """One update with its effect on entropy, see `measure.measured_step`; the state is donated."""
        return self.jitted_measured_update(state, batch, key, on_policy)


def layouts(model_config: ModelConfig, mesh: Mesh, rollout_tensor: int) -> tuple[MeshRules, MeshRules]:
    """(the layout of training, the layout of sampling); the second has the same mesh if `rollout_tensor` is 0."""
    there = sampling_mesh(mesh, rollout_tensor)
    return (
        MeshRules(mesh, sharding.rules(model_config, mesh)),
        MeshRules(there, sharding.rules(model_config, there, "rollout.tensor", gathered=rollout_tensor > 0)),
    )


def sampler_of(
    rollout: ConfigDict,
    model: Transformer,
    tokenizer: "PreTrainedTokenizerBase | None",
    training: MeshRules,
    sampling: MeshRules,
) -> Sampler:
    """The sampler that the config section `rollout` asks for: a server's, or this run's own."""
    if rollout.server and tokenizer is not None:
        server = client.connect(rollout.server, rollout.server_weights)
        return ServerSampler(server, model.cfg, tokenizer, rollout.slots, model.dtype)
    placement = placement_on(model, training, sampling, log_move=rollout.tensor > 0)
    return LocalSampler(model, tokenizer, rollout.slots, placement)


def decoding_of(rollout: ConfigDict, eos_ids: tuple[int, ...]) -> Decoding:
    """How training samples, by the config section `rollout`."""
    sampling = Sampling(rollout.temperature, rollout.top_p, rollout.top_k).check()
    return Decoding(sampling, rollout.max_tokens, tuple(eos_ids), tuple(rollout.stop))


def init_state(
    method: Method, optimizer: optax.GradientTransformation, shape: tuple[int, int], params: Params
) -> TrainState:
    """The state before step 1, for updates of [B, T] = `shape`."""
    zero, (trained, _) = jnp.zeros((), jnp.int32), lora.split(params)
    ref = jax.tree.map(jnp.copy, trained) if method.needs_ref else None
    return TrainState(zero, params, optimizer.init(in_float32(trained)), init_token_state(method, shape), zero, ref)


def init_token_state(method: Method, shape: tuple[int, int]) -> ChainState:
    """The chain's state before step 1, for updates of [B, T] = `shape`."""
    none = jnp.zeros(shape)
    state: ChainState = method.chain.init(TokenGrads(none, none))
    return state


def state_shardings(abstract: TrainState, params_sharding: Shardings, mesh: Mesh) -> TrainState:
    """The shardings of a TrainState: the optimiser's copies like the parameters, all else replicated."""
    shardings: TrainState = jax.tree.map(lambda _: replicated(mesh), abstract)
    opt_state = sharding.like_params(abstract.opt_state, abstract.params, params_sharding, mesh)
    ref = None if abstract.ref is None else lora.split(params_sharding)[0]
    return shardings._replace(params=params_sharding, opt_state=opt_state, ref=ref)


def spread_jit(f: Callable, in_shardings: tuple, **options: Any) -> Any:
    """`jax.jit`, callable with host arrays that are the same on every process."""
    return distributed.spread(jax.jit(f, in_shardings=in_shardings, **options), in_shardings)
