"""The jitted functions of a run, with shapes instead of arrays: updates, and the pass that scores a batch.

`rollout.py` has the functions of a rollout.

Shapes: N prompts and B = N·G responses of an update, P prompt and T response positions, W slots of a rollout.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.evaluation.in_training import sampled_batch
from entropy_rl.model import head, lora
from entropy_rl.model.precision import on_mesh
from entropy_rl.model.shapes import SHAPES
from entropy_rl.model.sharding import MeshRules
from entropy_rl.model.transformer import dtype_of_head
from entropy_rl.runtime.mesh import row_shards
from entropy_rl.sampling import room
from entropy_rl.sampling import slots as slots_lib
from entropy_rl.training import engine as engine_lib
from entropy_rl.training import scoring, warmup
from entropy_rl.training.batch import Batch
from entropy_rl.training.engine import Engine
from entropy_rl.training.packing import Packed


class Run(NamedTuple):
    """A run that is compiled and never executed.

    Attributes:
        config: the whole configuration.
        engine: its engine, whose state is only shapes; its mesh may be of devices that are not present.
    """

    config: ConfigDict
    engine: Engine

    @property
    def responses(self) -> int:
        """Responses of a rollout."""
        return self.config.rollout.prompts * self.config.rollout.samples

    @property
    def sequences(self) -> int:
        """B: sequences per update."""
        return self.responses // self.config.train.updates_per_rollout

    @property
    def pieces(self) -> int:
        """Pieces of an update that are computed one after another."""
        plan = self.engine.plan
        return plan.micro if plan.layout == "packed" else self.config.train.micro_batches

    @property
    def slots(self) -> int:
        """W: `rollout.slots`, or all responses of a rollout if that is 0 (a run then takes as many as fit)."""
        shards = row_shards(self.engine.sampling.mesh)
        slots = min(self.config.rollout.slots or self.responses, self.responses)
        return slots if slots == self.responses else max(shards, slots // shards * shards)

    @property
    def chunk(self) -> int:
        """Decode steps per compiled chunk."""
        return min(room.CHUNK, max(self.config.rollout.max_tokens - 1, 1))

    @property
    def is_scored(self) -> bool:
        """An update's batch is scored before it: by the policy that sampled it, or by the reference policy.

        See `loop.py: with_old_logp`; what a server sampled is always scored.
        """
        train, method = self.config.train, self.engine.method
        again = train.updates_per_rollout > 1 or method.turns > 1
        takes_these = (train.layout == "packed" or train.micro_batches > 1) and not method.extras.names
        return method.needs_ref or bool(self.config.rollout.server) or again or takes_these


class Phase(NamedTuple):
    """One jitted function of a run and its arguments.

    Attributes:
        function: the function.
        args: ShapeDtypeStructs, with shardings unless the function has `in_shardings`.
        layout: the mesh and rules under which it runs.
        dtype: the compute dtype.
        resident: bytes per chip of other arrays that are in memory meanwhile.
    """

    function: Any
    args: tuple[Any, ...]
    layout: MeshRules
    dtype: np.dtype
    resident: float = 0.0

    def shapes(self) -> Any:
        """The result's ShapeDtypeStructs."""
        with on_mesh(self.layout, self.dtype):
            return jax.eval_shape(self.function, *self.args)

    def trace(self) -> jax.stages.Traced:
        """The function as a jaxpr."""
        with on_mesh(self.layout, self.dtype):
            return self.function.trace(*self.args)

    def compile(self) -> tuple[jax.stages.Traced, jax.stages.Compiled]:
        """The function as a jaxpr, and compiled for the layout's devices."""
        with on_mesh(self.layout, self.dtype):
            traced = self.function.trace(*self.args)
            return traced, traced.lower().compile()


def prepare(c: ConfigDict, devices: list[jax.Device]) -> Run:
    """The run of a configuration on these devices, which may be those of a topology.

    Raises:
        ValueError: If a run would refuse the configuration at its start.
    """
    config_lib.check(c)
    source = c.model.source
    if source in SHAPES:
        model_config = lora.adapted(SHAPES[source], engine_lib.lora_of(c.model))
    else:
        model_config = engine_lib.load(c.model, c.seed).model_config
    if c.data.max_prompt_len + c.rollout.max_tokens > model_config.max_positions:
        raise ValueError(
            f"data.max_prompt_len={c.data.max_prompt_len} + rollout.max_tokens={c.rollout.max_tokens} must be at most "
            f"the model's {model_config.max_positions} positions"
        )
    return Run(c, Engine.of(c, model_config, None, engine_lib.mesh_of(c, devices)))


def update(run: Run, measured: bool = False) -> Phase:
    """An update, with its effect on the entropy if it is `measured`."""
    engine = run.engine
    args = engine.abstract_state, batch(run), random_key(), array(jnp.bool_)
    function = engine.jitted_measured_update if measured else engine.jitted_update
    return Phase(function, args, engine.training, engine.model.dtype)


def score(run: Run) -> Phase:
    """The pass that scores an update's batch before it. `resident` lacks the rest of the state."""
    engine = run.engine
    return Phase(engine.jitted_score, (engine.abstract_state.params, batch(run)), engine.training, engine.model.dtype)


def warm_up(run: Run) -> Run:
    """The run whose updates are those of the warm-up."""
    engine = warmup.engine_of(run.config, run.engine.model_config, None, run.engine.mesh)
    return Run(warmup.config_of(run.config), engine)


def evaluations(run: Run) -> list[Run]:
    """The runs whose rollouts are batches of an evaluation, if they hold more prompts or slots than training's do."""
    c, shards = (
        run.config,
        math.lcm(*(row_shards(layout.mesh) for layout in (run.engine.training, run.engine.sampling))),
    )
    sizes = [(c.eval.batch, 1)]
    if c.eval.samples:
        sizes.append((sampled_batch(c.eval, shards), c.eval.samples))
    found = []
    for prompts, samples in sizes:
        own = c.copy_and_resolve_references()
        own.rollout.prompts, own.rollout.samples = prompts, samples
        batch = run._replace(config=own)
        if c.eval.every and (prompts > c.rollout.prompts or batch.slots > run.slots):
            found.append(batch)
    return found


def batch(run: Run) -> Batch:
    """An update's batch at its full size, in packed rows if the configuration asks for them."""
    c, plan = run.config, run.engine.plan
    N, P = c.rollout.prompts // c.train.updates_per_rollout, c.data.max_prompt_len
    B, T = N * c.rollout.samples, c.rollout.max_tokens
    packed = None
    if plan.layout == "packed":
        N, rows = 0, array(jnp.int32, plan.rows, plan.micro, plan.length)
        packed = Packed(rows, rows, rows, rows, rows)
    real, tokens = array(jnp.float32, B, T), array(jnp.int32, B, T)
    return Batch(
        prompt=array(jnp.int32, N, P),
        prompt_mask=array(jnp.int32, N, P),
        tokens=tokens,
        mask=tokens,
        valid=array(jnp.bool_, B),
        advantage=real,
        old_logp=real,
        old_entropy=real,
        sampler_logp=real,
        ref_logp=real,
        ref_entropy=real if run.engine.method.needs_ref else None,
        uid=array(jnp.uint32, B),
        packed=packed,
        turn=array(jnp.int32, B) if run.engine.method.turns > 1 else None,
    )


def trips(run: Run) -> dict[str, float]:
    """How often the loops run whose length is data if all responses are full, by the names of their scopes."""
    positions = run.sequences * run.config.rollout.max_tokens / run.pieces / row_shards(run.engine.mesh)
    return {
        scoring.PIECES: run.pieces,
        slots_lib.STEPS: run.chunk,
        head.CHUNKS: positions / head.chunk_of(dtype_of_head(run.engine.model)),
        head.REST: 1,
    }


def array(dtype: DTypeLike, *shape: int) -> Any:
    """A ShapeDtypeStruct; its type is Any, since it takes the place of an array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def random_key() -> Any:
    """A random key's ShapeDtypeStruct."""
    return jax.eval_shape(lambda: jax.random.key(0))
