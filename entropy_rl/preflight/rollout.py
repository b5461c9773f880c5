"""The jitted functions of a rollout when its cache is largest, with shapes instead of arrays.

Shapes: N prompts, P prompt positions, G samples per prompt, T response positions, W slots.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from entropy_rl.model import decode, sharding
from entropy_rl.model.decode import DecodeWeights
from entropy_rl.model.sharding import MeshRules
from entropy_rl.model.transformer import Params
from entropy_rl.preflight.programs import Phase, Run, array, random_key
from entropy_rl.preflight.sizes import bytes_per_chip
from entropy_rl.sampling import room
from entropy_rl.sampling import slots as slots_lib
from entropy_rl.sampling.slots import Drawn, Prefilled, Slots

Array = jax.Array


def phases(run: Run) -> dict[str, Phase]:
    """The functions of a rollout by name: each takes the results of those before it.

    `prefill` reads the prompts, `ready` makes the weights that the steps read, `move` places the prefilled prompts for
    the slots (if sampling has its own layout), `admit` fills slots, `decode` makes a chunk of steps.

    If all responses are made at once, the admission doubles the cache to its full length and responses share their
    prompts' keys. With fewer slots, it refills some at the full length, and each slot has a copy of its prompt's keys.
    The parameters are resident throughout. `resident` lacks the rest of the state.
    """
    training, sampling = run.engine.training, run.engine.sampling
    params = bytes_per_chip(run.engine.abstract_state.params)
    prefill = _prefill(run)
    prefilled = prefill.shapes()
    ready, weights = _ready(run, prefilled)
    prompts = placed(sampling, prefilled)
    admit = _admit(run, weights, prompts)
    found = {
        "prefill": prefill,
        "ready": ready,
        "admit": admit._replace(resident=params),
        "decode": _decode(run, weights, admit)._replace(resident=bytes_per_chip(prompts) + params),
    }
    if sampling.mesh is not training.mesh:
        move = Phase(jax.jit(slots_lib.constrain), (placed(training, prefilled),), sampling, run.engine.model.dtype)
        found["move"] = move._replace(resident=params + bytes_per_chip(weights))
    return found


def _prefill(run: Run) -> Phase:
    engine, rollout = run.engine, run.config.rollout

    def read(params: Params, prompt: Array, mask: Array, uid: Array, key: Array) -> Prefilled:
        return slots_lib.read_prompts(engine.model, params, prompt, mask, uid, key, n=rollout.samples)

    tokens = array(jnp.int32, rollout.prompts, run.config.data.max_prompt_len)
    uid = array(jnp.uint32, rollout.prompts)
    args = engine.abstract_state.params, *placed(engine.training, (tokens, tokens, uid, random_key()))
    return Phase(jax.jit(read, keep_unused=True), args, engine.training, engine.model.dtype)


def _ready(run: Run, prefilled: Prefilled) -> tuple[Phase, DecodeWeights]:
    """(the function that makes the steps' weights while the prefilled prompts are resident, their shapes)."""
    engine = run.engine
    places = run.config.data.max_prompt_len + run.config.rollout.max_tokens

    def weights(params: Params) -> DecodeWeights:
        return decode.decode_weights(engine.model, params, places=places)

    shardings = decode.decode_sharding(engine.model, sharding.param_shardings(engine.model_config, *engine.sampling))
    phase = Phase(
        jax.jit(weights, out_shardings=shardings),
        (engine.abstract_state.params,),
        engine.training,
        engine.model.dtype,
        resident=bytes_per_chip(placed(engine.training, prefilled)),
    )
    return phase, jax.tree.map(_with_sharding, phase.shapes(), shardings)


def _admit(run: Run, weights: DecodeWeights, prompts: Prefilled) -> Phase:
    """An admission after which the cache has its full length."""
    engine, lengths = run.engine, room.lengths(run.config.rollout.max_tokens)
    full, shared = lengths[-1], run.config.rollout.samples if run.slots == run.responses else 1
    before = lengths[-2:][0] if run.slots == run.responses else full
    row = placed(engine.sampling, array(jnp.int32, run.slots))
    first = Phase(
        _admission(run, shared, before), (weights, prompts, None, row, row), engine.sampling, engine.model.dtype
    )
    slots, _ = first.shapes()
    args = weights, prompts, placed(engine.sampling, slots), row, row
    refills = before == full  # into the same slots, see `batching.sample`
    admission = jax.jit(_admission(run, shared, full), keep_unused=True, donate_argnums=2 if refills else ())
    return Phase(admission, args, engine.sampling, engine.model.dtype)


def _admission(run: Run, shared: int, cache_len: int) -> Callable[..., tuple[Slots, Drawn]]:
    engine, n = run.engine, run.config.rollout.samples

    def admit(
        weights: DecodeWeights, prompts: Prefilled, slots: Slots | None, keep: Array, row: Array
    ) -> tuple[Slots, Drawn]:
        return slots_lib.admit(
            engine.model,
            weights,
            prompts,
            slots,
            keep,
            row,
            n=n,
            shared=shared,
            cache_len=cache_len,
            decoding=engine.decoding,
        )

    return admit


def _decode(run: Run, weights: DecodeWeights, admit: Phase) -> Phase:
    """A chunk of steps in the slots that the admission returns."""
    engine, steps = run.engine, run.chunk

    def chunk(weights: DecodeWeights, slots: Slots, alive: Array) -> tuple[Slots, Drawn]:
        return slots_lib.advance(engine.model, weights, slots, alive, steps=steps, decoding=engine.decoding)

    slots, _ = admit.shapes()
    alive = array(jnp.bool_, run.slots)
    args = weights, *placed(engine.sampling, (slots, alive))
    return Phase(jax.jit(chunk, keep_unused=True, donate_argnums=1), args, engine.sampling, engine.model.dtype)


def placed(layout: MeshRules, tree: Any) -> Any:
    """Shapes with the shardings that sampling gives them: rows over the batch's axes, heads over the heads' axis."""

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names: tuple[str | None, ...] = ("batch",)[: len(x.shape)]
        if len(x.shape) >= 4:  # keys and values
            names = (None,) * (len(x.shape) - 4) + ("batch", "kv_heads")
        spec = nn.logical_to_mesh_axes(names, layout.rules) or PartitionSpec()
        return _with_sharding(x, NamedSharding(layout.mesh, spec))

    return jax.tree.map(place, tree)


def _with_sharding(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
