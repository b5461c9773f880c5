"""Hugging Face model folders: safetensors and tokenizer, in and out, without torch.

Shapes: V vocabulary, D width, F mlp width, H query heads, K key/value heads, h head_dim, L layers.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from entropy_rl.model import tensor_file
from entropy_rl.model.config import ModelConfig
from entropy_rl.model.hf_config import read_config, read_json, write_config
from entropy_rl.model.transformer import Params

__all__ = ["assemble", "leaves", "load_params", "load_tokenizer", "read_config", "save_folder"]

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


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
        return theirs.reshape(self.split).transpose(self.axes)

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.transpose(np.argsort(self.axes)).reshape(self.shape)


def leaves(cfg: ModelConfig) -> dict[str, Leaf]:
    """Every leaf of the model's parameters, by its path in our tree."""
    V, D, F, H, K, h = cfg.vocab_size, cfg.d_model, cfg.d_ff, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim

    def plain(name: str, *shape: int) -> Leaf:
        return Leaf(name, shape, shape, tuple(range(len(shape))))

    def transposed(name: str, *shape: int) -> Any:
        return Leaf(name, shape, shape, (1, 0))

    table = {"embed": plain("model.embed_tokens.weight", V, D), "final_norm": plain("model.norm.weight", D)}
    if not cfg.tied:
        table["head"] = plain("lm_head.weight", V, D)
    layer = {
        "attn_norm": plain("input_layernorm.weight", D),
        "mlp_norm": plain("post_attention_layernorm.weight", D),
        "o": Leaf("self_attn.o_proj.weight", (D, H * h), (D, H, h), (1, 2, 0)),
        "gate": transposed("mlp.gate_proj.weight", F, D),
        "up": transposed("mlp.up_proj.weight", F, D),
        "down": transposed("mlp.down_proj.weight", D, F),
    }
    for x, N in (("q", H), ("k", K), ("v", K)):
        layer[x] = Leaf(f"self_attn.{x}_proj.weight", (N * h, D), (N, h, D), (2, 0, 1))
        if cfg.qkv_bias:
            layer[f"{x}_bias"] = Leaf(f"self_attn.{x}_proj.bias", (N * h,), (N, h), (0, 1))
    if cfg.qk_norm:
        layer["q_norm"], layer["k_norm"] = plain("self_attn.q_norm.weight", h), plain("self_attn.k_norm.weight", h)
    return table | {f"layers/{x}": leaf._replace(name="model.layers.{}." + leaf.name) for x, leaf in layer.items()}


def nest(flat: dict) -> dict:
    """{"a": 1, "layers/q": 2} → {"a": 1, "layers": {"q": 2}}."""
    tree: dict = {"layers": {}}
    for path, value in flat.items():
        if path.startswith("layers/"):
            tree["layers"][path.removeprefix("layers/")] = value
        else:
            tree[path] = value
    return tree


def assemble(cfg: ModelConfig, read: Callable[[str, tuple[int, ...]], np.ndarray], shardings: Any = None) -> Params:
    """The tree of parameters, one tensor at a time.

    Args:
        cfg: the shape.
        read: gives the float32 tensor of a Hugging Face name, in the shape given with it, or raises.
        shardings: None leaves float32 numpy arrays on the host. A Sharding, or a tree of them like the parameters,
            puts each leaf on its devices as soon as it is read, so that the host never holds the model.
    """
    flat = {}
    for path, leaf in leaves(cfg).items():
        if "{}" in leaf.name:
            first = leaf.ours(read(leaf.name.format(0), leaf.shape))
            value = np.empty((cfg.n_layers, *first.shape), np.float32)
            value[0] = first
            for i in range(1, cfg.n_layers):
                value[i] = leaf.ours(read(leaf.name.format(i), leaf.shape))
        else:
            value = leaf.ours(read(leaf.name, leaf.shape))
        if shardings is not None:
            place = shardings
            if not isinstance(shardings, jax.sharding.Sharding):
                for key in path.split("/"):
                    place = place[key]
            # Waiting frees the host's copy before the next leaf is read.
            value = jax.block_until_ready(jax.device_put(value, place))
        flat[path] = value
    return nest(flat)


def open_tensors(folder: pathlib.Path) -> dict[str, tensor_file.TensorFile]:
    """The file that holds each tensor, from one safetensors file or several and their index."""
    if not (folder / INDEX).exists():
        if not (folder / "model.safetensors").exists():
            raise ValueError(
                f"{folder}: no model.safetensors and no {INDEX}; save the model with "
                "save_pretrained(..., safe_serialization=True)"
            )
        file = tensor_file.TensorFile(folder / "model.safetensors")
        return {name: file for name in file.shapes}
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict):
        raise ValueError(f"{folder / INDEX}: missing key 'weight_map'")
    found: dict[str, tensor_file.TensorFile] = {}
    for shard in sorted(set(index.values())):
        if not (folder / shard).exists():
            name = next(name for name, where in index.items() if where == shard)
            raise ValueError(f"{folder / shard}: no such file; {INDEX} places {name} there")
        file = tensor_file.TensorFile(folder / shard)
        found |= {name: file for name in file.shapes}
    return found


def load_params(folder: str | os.PathLike, cfg: ModelConfig, shardings: Any = None) -> Params:
    """The parameters of a Hugging Face folder, float32.

    Memory stays near the parameters and one tensor: nothing is mapped, and each tensor is read once.

    Args:
        folder: holds model.safetensors, or its shards and their index.
        cfg: the folder's shape, from `read_config`.
        shardings: see `assemble`.

    Raises:
        ValueError: a tensor that is missing, has another shape or dtype, or that the model has no place for; a file
            that is missing or cut short. The message names tensor and file.
    """
    folder = pathlib.Path(folder)
    files = open_tensors(folder)
    unread = set(files)

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in files:
            raise ValueError(f"{folder}: missing tensor {name}, expected {shape}")
        if (got := files[name].shapes[name]) != shape:
            raise ValueError(f"{files[name].path}: tensor {name} has shape {got}, expected {shape} from config.json")
        unread.discard(name)
        return files[name].read(name)

    expected = {leaf.name.format(i): leaf.shape for leaf in leaves(cfg).values() for i in range(cfg.n_layers)}
    for name in sorted(unread - set(expected)):
        # Old Llama folders store RoPE's frequencies, which follow from the config; others the tied head a second time.
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name == "lm_head.weight" and np.array_equal(
            files[name].read(name), read("model.embed_tokens.weight", expected["model.embed_tokens.weight"])
        ):
            continue
        why = (
            ", which differs from the embedding though tie_word_embeddings is true" if name == "lm_head.weight" else ""
        )
        raise ValueError(f"{files[name].path}: unexpected tensor {name} of shape {files[name].shapes[name]}{why}")
    return assemble(cfg, read, shardings)


def load_tokenizer(folder: str | os.PathLike) -> Any:
    """The folder's tokenizer, with a padding token (its end token if it has none: padding is masked anyway).

    Raises:
        ValueError: the folder has no tokenizer.
    """
    import transformers  # slow to import, and tools that only touch weights do not need it

    folder = pathlib.Path(folder)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder}: no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, KeyError, TypeError) as e:
        raise ValueError(f"{folder}: cannot read the tokenizer: {e}") from e
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_folder(folder: str | os.PathLike, cfg: ModelConfig, params: Params, tokenizer: Any) -> None:
    """Writes a folder that transformers loads: config, tensors in the parameters' own dtype, tokenizer.

    One leaf at a time is brought to the host. Above 5 GB the tensors go into several files with an index.

    Args:
        folder: made if absent.
        cfg: the shape.
        params: the tree of parameters.
        tokenizer: a transformers tokenizer.

    Raises:
        ValueError: a family that cannot carry the config's features, a leaf of another shape or of no float dtype.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source: dict[str, tuple] = {}
    shards: list[list] = [[]]
    size = 0
    for path, leaf in leaves(cfg).items():
        value: Any = params
        for key in path.split("/"):
            value = value[key]
        stacked = "{}" in leaf.name
        expected = (cfg.n_layers,) * stacked + tuple(leaf.split[i] for i in leaf.axes)
        if value.shape != expected:
            raise ValueError(f"{folder}: parameter {path} has shape {value.shape}, expected {expected}")
        for i in range(cfg.n_layers if stacked else 1):
            bytes_here = math.prod(leaf.shape) * value.dtype.itemsize
            if shards[-1] and size + bytes_here > SHARD_BYTES:
                shards.append([])
                size = 0
            size += bytes_here
            source[leaf.name.format(i)] = (value, leaf, i if stacked else None)
            shards[-1].append((leaf.name.format(i), leaf.shape, np.dtype(value.dtype)))
    write_config(folder, cfg, str(params["embed"].dtype), tokenizer.pad_token_id)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    # transformers 5 names a class that transformers 4, and the servers built on it, do not know.
    settings.write_text(settings.read_text().replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'))
    write_shards(folder, shards, source)


def write_shards(folder: pathlib.Path, shards: list[list], source: dict) -> None:
    """The safetensors files of a folder, and their index if there are several."""
    held: tuple = (None, None)

    def read(name: str) -> np.ndarray:
        nonlocal held
        value, leaf, layer = source[name]
        if held[0] is not value:
            held = (value, np.asarray(value))
        return leaf.theirs(held[1] if layer is None else held[1][layer])

    for old in [*folder.glob("model*.safetensors"), folder / INDEX]:
        old.unlink(missing_ok=True)
    if len(shards) == 1:
        tensor_file.write(folder / "model.safetensors", shards[0], read)
        return
    index: dict[str, str] = {}
    for n, shard in enumerate(shards, 1):
        file = f"model-{n:05d}-of-{len(shards):05d}.safetensors"
        tensor_file.write(folder / file, shard, read)
        index |= {name: file for name, _, _ in shard}
    total = sum(math.prod(shape) * dtype.itemsize for shard in shards for _, shape, dtype in shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2) + "\n")
