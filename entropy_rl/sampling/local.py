"""The sampler on this run's own devices."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
from absl import logging

from entropy_rl.model import decode
from entropy_rl.model.precision import on_mesh
from entropy_rl.model.sharding import MeshRules, param_shardings
from entropy_rl.model.transformer import Params, Transformer
from entropy_rl.runtime import distributed
from entropy_rl.runtime.mesh import replicated, row_sharding, row_shards
from entropy_rl.sampling import batching
from entropy_rl.sampling import slots as slots_lib
from entropy_rl.sampling.base import Decoding, Done, Prompts, Rollout, stopper

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class LocalSampler:
    """Makes responses with the policy's own model, see `base.Sampler`.

    Attributes:
        model: the decoder.
        tokenizer: makes text of tokens, to find stop texts; None if there are none.
        slots: responses made at a time; 0: as many as memory has room for.
        placement: where prompts, weights and slots are placed.
        widths: see `base.Sampler`.
    """

    model: Transformer
    tokenizer: "PreTrainedTokenizerBase | None"
    slots: int = 0
    placement: batching.Placement = batching.LOCAL
    widths: dict[str, int] = dataclasses.field(default_factory=dict, compare=False)

    measures_entropy = True

    def sample(
        self,
        params: Params,
        prompts: Prompts,
        key: jax.Array,
        *,
        n: int,
        decoding: Decoding,
        done: Done | None = None,
    ) -> Rollout:
        """Makes n responses to each prompt, see `base.Sampler.sample`."""
        stop = None
        if self.tokenizer is not None:
            stop, decoding = stopper(self.tokenizer, decoding.stop), decoding._replace(ids=self.ids)
        return batching.sample(
            self.model,
            params,
            prompts,
            key,
            n=n,
            decoding=decoding,
            slots=self.slots,
            widths=self.widths,
            placement=self.placement,
            watch=batching.Watch(stop, done),
        )

    @functools.cached_property
    def ids(self) -> int:
        """The ids of the tokenizer's tokens are below this one; the model's vocabulary may have more."""
        return max(self.tokenizer.get_vocab().values()) + 1 if self.tokenizer is not None else 0


def placement_on(model: Transformer, training: MeshRules, sampling: MeshRules, log_move: bool) -> batching.Placement:
    """Prompts are prefilled in the training layout, responses are made in the sampling layout.

    Args:
        model: the decoder.
        training: the mesh and rules that parameters are placed by.
        sampling: the mesh and rules of the slots: the same devices, perhaps in another shape.
        log_move: log how long weights and prompts took to get there.
    """
    key_sharding = replicated(training.mesh)
    weights_sharding = decode.decode_sharding(model, param_shardings(model.cfg, sampling.mesh, sampling.rules))
    return batching.Placement(
        row_shards(sampling.mesh),
        put_prompts=functools.partial(distributed.put, sharding=row_sharding(training.mesh)),
        put_slots=functools.partial(distributed.put, sharding=row_sharding(sampling.mesh)),
        put_key=jax.jit(_identity, in_shardings=key_sharding, out_shardings=key_sharding),
        weights=jax.jit(decode.decode_weights, static_argnames=("model", "places"), out_shardings=weights_sharding),
        move=batching.LOCAL.move if sampling.mesh is training.mesh else jax.jit(slots_lib.constrain),
        on_moved=_log_second_time() if log_move else batching.LOCAL.on_moved,
        on_mesh=functools.partial(on_mesh, sampling, model.dtype),
    )


def _identity(key: jax.Array) -> jax.Array:
    return key


def _log_second_time() -> Callable[[float, decode.DecodeWeights], None]:
    """A `Placement.on_moved` that logs its second call: the first one includes compilation."""
    calls = itertools.count()

    def on_moved(seconds: float, weights: decode.DecodeWeights) -> None:
        if next(calls) == 1:
            held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(weights))
            logging.info("gathered for sampling: %.3f s, %.2f GB of weights per device", seconds, held / 1e9)

    return on_moved
