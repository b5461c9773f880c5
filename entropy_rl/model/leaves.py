"""The leaves of the parameters, and the tensors of a Hugging Face folder that they are made of.

Shapes: V vocabulary, D width, F mlp width, H query heads, K key/value heads, h head_dim, L layers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from entropy_rl.model.config import ModelConfig
from entropy_rl.model.transformer import Params

Shardings = jax.sharding.Sharding | Params  # one for all leaves, or a tree of them like the parameters
Read = Callable[[str, tuple[int, ...]], np.ndarray]  # (name, shape) -> the tensor, float32

# the names on disk of a layer's norms: the same name has two meanings
NORMS = {
    "before": {"attn_norm": "input", "mlp_norm": "post_attention"},
    "after": {"attn_post_norm": "post_attention", "mlp_post_norm": "post_feedforward"},
    "both": {
        "attn_norm": "input",
        "attn_post_norm": "post_attention",
        "mlp_norm": "pre_feedforward",
        "mlp_post_norm": "post_feedforward",
    },
}


class Leaf(NamedTuple):
    """How one leaf of the parameters is stored on disk: ours = theirs.reshape(split).transpose(axes).

    Attributes:
        name: the tensor's name; a leaf that is stacked over layers has {} for the layer's number.
        shape: the shape on disk, in which heads and head_dim are one axis.
        split: the shape with heads and head_dim apart.
        axes: the transposition from split to ours.
    """

    name: str
    shape: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        """The leaf, or one layer of it, from the tensor on disk."""
        return theirs.reshape(self.split).transpose(self.axes)

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `ours`."""
        return ours.transpose(np.argsort(self.axes)).reshape(self.shape)


def leaves(cfg: ModelConfig) -> dict[str, Leaf]:
    """Every leaf of the model's parameters, by its path in our tree."""
    V, D, F, H, K, h = cfg.vocab_size, cfg.d_model, cfg.d_ff, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim

    def plain(name: str, *shape: int) -> Leaf:
        return Leaf(name, shape, shape, tuple(range(len(shape))))

    def transposed(name: str, *shape: int) -> Leaf:
        return Leaf(name, shape, shape, (1, 0))

    table = {"embed": plain("model.embed_tokens.weight", V, D), "final_norm": plain("model.norm.weight", D)}
    if not cfg.tied:
        table["head"] = plain("lm_head.weight", V, D)
    layer = {
        **{x: plain(f"{name}_layernorm.weight", D) for x, name in NORMS[cfg.norms].items()},
        "o": Leaf("self_attn.o_proj.weight", (D, H * h), (D, H, h), (1, 2, 0)),
        "gate": transposed("mlp.gate_proj.weight", F, D),
        "up": transposed("mlp.up_proj.weight", F, D),
        "down": transposed("mlp.down_proj.weight", D, F),
    }
    for x, N in (("q", H), ("k", K), ("v", K)):
        layer[x] = Leaf(f"self_attn.{x}_proj.weight", (N * h, D), (N, h, D), (2, 0, 1))
        if cfg.qkv_bias:
            layer[f"{x}_bias"] = Leaf(f"self_attn.{x}_proj.bias", (N * h,), (N, h), (0, 1))
    for x, N in (("q", H), ("k", K)):
        if cfg.qk_norm == "head":
            layer[f"{x}_norm"] = plain(f"self_attn.{x}_norm.weight", h)
        elif cfg.qk_norm == "width":
            layer[f"{x}_norm"] = Leaf(f"self_attn.{x}_norm.weight", (N * h,), (N, h), (0, 1))
    return table | {f"layers/{x}": leaf._replace(name="model.layers.{}." + leaf.name) for x, leaf in layer.items()}


def nest(flat: Mapping[str, Any]) -> Params:
    """The tree of the leaves by their paths.

    Example:
        >>> nest({"embed": 1, "layers/q": 2})
        {'layers': {'q': 2}, 'embed': 1}
    """
    tree: dict[str, Any] = {"layers": {}}
    for path, value in flat.items():
        if path.startswith("layers/"):
            tree["layers"][path.removeprefix("layers/")] = value
        else:
            tree[path] = value
    return tree


def assemble(cfg: ModelConfig, read: Read, shardings: Shardings | None = None, dtype: DTypeLike = np.float32) -> Params:
    """The tree of parameters, one tensor at a time.

    Args:
        cfg: the shape.
        read: returns the float32 tensor of a Hugging Face name, in the given shape, or raises.
        shardings: None: numpy arrays on the host. Otherwise each leaf is put on its devices as soon as it is read, so
            that the host never holds the whole model.
        dtype: that of the parameters.
    """
    flat = {}
    for path, leaf in leaves(cfg).items():
        if "{}" in leaf.name:
            first = leaf.ours(read(leaf.name.format(0), leaf.shape))
            value = np.empty((cfg.n_layers, *first.shape), dtype)
            value[0] = first
            for i in range(1, cfg.n_layers):
                value[i] = leaf.ours(read(leaf.name.format(i), leaf.shape))
        else:
            value = leaf.ours(read(leaf.name, leaf.shape)).astype(dtype, copy=False)
        if shardings is not None:
            place: Any = shardings
            if not isinstance(shardings, jax.sharding.Sharding):
                for key in path.split("/"):
                    place = place[key]
            # Waiting frees the host's copy before the next leaf is read.
            value = jax.block_until_ready(jax.device_put(value, place))
        flat[path] = value
    return nest(flat)
