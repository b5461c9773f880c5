"""One decoder that is Llama, Mistral, Qwen, OLMo, Gemma 3 or SmolLM3 by configuration.

Shapes: B rows, S tokens given, D width, K key/value heads, h head_dim, L layers, V vocabulary.

Attention reads *parts*: the tokens given, the prompt that a group's responses share, a cache. Scoring a padded batch,
scoring a group whose prompt is computed once, prefill and decode are one stack of blocks with different parts. Data
determines which keys a token sees: those of its own segment at positions no later than its own. Segment 0 is padding;
packed rows number their sequences 1, 2, ….
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_rl.model import attention, lookup
from entropy_rl.model.attention import KeyValue, visible
from entropy_rl.model.block import Block, Context, Group, norm_init, rms_norm, weight
from entropy_rl.model.config import ModelConfig
from entropy_rl.model.kinds import kinds, per_option
from entropy_rl.model.rope import rope_tables

Array = jax.Array
Params = Mapping[str, Any]  # a model's parameters by name; "layers" holds those of all layers, stacked


def positions(mask_BxS: Array) -> Array:
    """i32[B, S]: each token's position among the unmasked tokens of its row, for left or right padding.

    Example:
        >>> print(positions(jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])))
        [[0 0 0 1 2]
         [0 1 2 2 2]]
    """
    return jnp.maximum(jnp.cumsum(mask_BxS.astype(jnp.int32), axis=1) - 1, 0)


class Transformer(nn.Module):
    """The decoder without its head: it returns hidden states, so that [B, S, V] is never held by accident.

    Attributes:
        cfg: the shape.
        dtype: the dtype to compute in; parameters are float32.
        remat: what the backward pass recomputes: "none"; "full": whole blocks; "dots": all but their products.
        unroll: decode through the layers one by one, with a cache each, see `decode.unrolled`.
        kernel: for rows that attend to themselves alone, see `attention.kernel_for`; None: they go through `attend`.
        head_dtype: the dtype of the product that gives the logits; None: `dtype`.
    """

    cfg: ModelConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    unroll: bool = False
    kernel: attention.Kernel | None = None
    head_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, tokens_BxS: Array, position_BxS: Array, segment_BxS: Array, group: Group | None = None
    ) -> tuple[Array, KeyValue]:
        """(Hidden states [B, S, D] after the last norm, (keys, values) [L, B, S, K, h]).

        Args:
            tokens_BxS: i32, the tokens.
            position_BxS: i32, their positions in their sequences, for RoPE and causality.
            segment_BxS: i32; a token sees keys of its own segment only; 0 is padding.
            group: the rows hold whole groups: dense layers compute a row as it is, attention cuts it into the prompt
                and the responses.
        """
        c = self.cfg
        table = weight(self, "embed", (c.vocab_size, c.d_model), ("vocab", "embed"), nn.initializers.normal(0.02))
        if not c.tied:
            weight(self, "head", (c.vocab_size, c.d_model), ("vocab", "embed"), nn.initializers.normal(0.02))
        x = self.embed(table, tokens_BxS)
        x, key_value = self.stack(group)(x, None, self.context(position_BxS, segment_BxS, group), kinds(c))
        scale = weight(self, "final_norm", (c.d_model,), ("embed",), norm_init(c))
        return rms_norm(x, scale, c), key_value

    @nn.nowrap
    def embed(self, table_VxD: Array, tokens_BxS: Array) -> Array:
        """[B, S, D]: the first residual."""
        x = lookup.embed(table_VxD, tokens_BxS, self.dtype)
        if self.cfg.scaled_embedding:
            x = x * jnp.asarray(self.cfg.d_model**0.5, self.dtype)  # Gemma was trained with a root that is rounded too
        return nn.with_logical_constraint(x, ("batch", None, None))

    @nn.nowrap
    def context(self, position_BxS: Array, segment_BxS: Array, group: Group | None) -> Context:
        """The inputs that all layers share: RoPE's tables, and segments for a kernel or masks for `attend`."""

        def see(q_position: Array, q_segment: Array, k_position: Array, k_segment: Array) -> Array:
            places = q_position, q_segment, k_position, k_segment
            return per_option(self.cfg.windows, lambda window: visible(*places, window))

        own = position_BxS, segment_BxS
        rows, masks = None, []
        if self.kernel:
            rows = group.apart(segment_BxS) if group else segment_BxS
        elif group:
            shared, own = zip(group.cut(position_BxS), group.cut(segment_BxS))
            position, segment = (jnp.repeat(x, group.samples, axis=0) for x in shared)
            masks = [see(*shared, *shared), see(*own, position, segment)]
        if not self.kernel:
            masks.append(see(*own, *own))
        return Context(*rope_tables(self.cfg, position_BxS), tuple(masks), rows)

    @nn.nowrap
    def stack(self, group: Group | None) -> nn.Module:
        """All blocks as one module that scans over their stacked parameters."""
        saved = {"full": None, "dots": products_but_of_adapters(self.cfg)}
        block = Block if self.remat == "none" else nn.remat(Block, prevent_cse=False, policy=saved[self.remat])
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.cfg.n_layers,
            in_axes=(nn.broadcast, nn.broadcast, 0),
            out_axes=0,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return layers(self.cfg, self.dtype, group, self.kernel, name="layers")


def products_but_of_adapters(cfg: ModelConfig) -> Callable[..., bool]:
    """A policy of `jax.checkpoint`: products with weights are kept for the backward pass, adapters' second ones not.

    These are as large as the products with the weights that they are added to, and cost next to nothing to repeat.
    """
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    if cfg.lora is None:
        return products
    rank = cfg.lora.rank

    def kept(primitive: Any, *arguments: Any, **options: Any) -> bool:
        if not products(primitive, *arguments, **options):
            return False
        (contracted, _), _ = options["dimension_numbers"]
        return arguments[0].shape[contracted[0]] != rank

    return kept


def head_weight(params: Params) -> Array:
    """[V, D]: the output head, which is the embedding if the model ties them."""
    return params.get("head", params["embed"])


def dtype_of_head(model: Transformer) -> jnp.dtype:
    """The dtype of the product of hidden states and output weights."""
    return model.dtype if model.head_dtype is None else model.head_dtype


def head_inputs(model: Transformer, params: Params, hidden: Array) -> tuple[Array, Array]:
    """(Hidden states [..., D], output weights [D, V]) in the dtype of the head."""
    dtype = dtype_of_head(model)
    return hidden.astype(dtype), head_weight(params).astype(dtype).T


def init_params(cfg: ModelConfig, key: Array) -> Params:
    """Fresh float32 parameters as a plain nested dict (no Flax boxes), those of adapters among them."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.jit(lambda key: nn.unbox(Transformer(cfg).init(key, tokens, tokens, tokens + 1))["params"])(key)


def logical_axes(cfg: ModelConfig) -> Params:
    """The tree of parameters with its logical axis names, as flax.linen.spmd PartitionSpecs."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed = jax.eval_shape(Transformer(cfg).init, jax.random.key(0), tokens, tokens, tokens)
    return nn.get_partition_spec(boxed)["params"]


def abstract_params(cfg: ModelConfig) -> Params:
    """The tree of parameters as ShapeDtypeStructs."""
    return jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))
