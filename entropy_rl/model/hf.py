"""Hugging Face model folders: safetensors and tokenizer, in and out, without torch."""

import functools
import json
import math
import operator
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import DTypeLike

from entropy_rl.model import lora, tensor_file
from entropy_rl.model.config import ModelConfig
from entropy_rl.model.foreign import read_json
from entropy_rl.model.hf_config import read_config, write_config
from entropy_rl.model.leaves import Leaf, Shardings, assemble, leaves
from entropy_rl.model.tensor_file import Entry
from entropy_rl.model.transformer import Params
from entropy_rl.runtime.files import refuse_pointer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_params", "load_tokenizer", "read_config", "save_folder"]

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # the most that one file holds
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

# how the names of the files that a tokenizer is read from begin
TOKENIZER_PARTS = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")

Part = tuple[Any, Leaf, int | None]  # (a leaf's array, how it is stored, the layer, or None if it is not stacked)


def open_tensors(folder: pathlib.Path) -> dict[str, tensor_file.TensorFile]:
    """The file that holds each tensor, by the tensor's name: one safetensors file, or several and their index.

    Raises:
        ValueError: If a file is absent or broken.
    """
    if not (folder / INDEX).exists():
        if not (folder / "model.safetensors").exists():
            raise ValueError(
                f"{folder}: no model.safetensors and no {INDEX}; save the model with "
                "save_pretrained(..., safe_serialization=True)"
            )
        file = tensor_file.TensorFile(folder / "model.safetensors")
        return {name: file for name in file.shapes}
    path = folder / INDEX
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict):
        raise ValueError(f"{path}: missing key 'weight_map'")
    for name, shard in index.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & {"/", "\\", "\0"}:
            raise ValueError(f"{path}: weight_map.{name}={shard!r:.80}; expected the name of a file in this folder")
    found: dict[str, tensor_file.TensorFile] = {}
    for shard in sorted(set(index.values())):
        if not (folder / shard).exists():
            name = next(name for name, where in index.items() if where == shard)
            raise ValueError(f"{folder / shard}: no such file; {INDEX} places {name} there")
        file = tensor_file.TensorFile(folder / shard)
        if twice := sorted(found.keys() & file.shapes.keys()):
            raise ValueError(f"{file.path}: tensor {twice[0]} is in {found[twice[0]].path.name} too; remove one")
        found |= {name: file for name in file.shapes}
    for name, shard in index.items():
        if name not in found or found[name].path.name != shard:
            raise ValueError(f"{folder / shard}: has no tensor {name}, which {INDEX} places there")
    return found


def check_tensors(folder: str | os.PathLike, cfg: ModelConfig) -> dict[str, tensor_file.TensorFile]:
    """The file of each tensor, as `open_tensors`; every one that the model needs is there, in its shape.

    Only headers are read.

    Raises:
        ValueError: If a tensor is missing or has another shape, or as `open_tensors`.
    """
    folder = pathlib.Path(folder)
    files = open_tensors(folder)
    for leaf in leaves(cfg).values():
        for i in range(cfg.n_layers if "{}" in leaf.name else 1):
            name = leaf.name.format(i)
            if name not in files:
                raise ValueError(f"{folder}: missing tensor {name}, expected {leaf.shape}")
            if (got := files[name].shapes[name]) != leaf.shape:
                path = files[name].path
                raise ValueError(f"{path}: tensor {name} has shape {got}, expected {leaf.shape} from config.json")
    return files


def load_params(
    folder: str | os.PathLike, cfg: ModelConfig, shardings: Shardings | None = None, dtype: DTypeLike = np.float32
) -> Params:
    """The parameters of a Hugging Face folder.

    The memory used is that of the parameters and about one tensor: nothing is mapped, and each tensor is read once.

    Args:
        folder: holds model.safetensors, or its shards and their index.
        cfg: the folder's shape, from `read_config`.
        shardings: see `leaves.assemble`.
        dtype: that of the parameters.

    Raises:
        ValueError: If a tensor is missing, has another shape or dtype, a value that is not finite, or no place in the
            model, or if a file is missing or broken; the message names the tensor and the file.
    """
    folder = pathlib.Path(folder)
    files = check_tensors(folder, cfg)

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return files[name].read(name)

    expected = {leaf.name.format(i): leaf.shape for leaf in leaves(cfg).values() for i in range(cfg.n_layers)}
    for name in sorted(set(files) - set(expected)):
        # Old Llama folders store RoPE's frequencies, which follow from the config; others store the tied head twice.
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
    return assemble(cfg, read, shardings, dtype)


def load_tokenizer(folder: str | os.PathLike) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer; if it has no padding token, its end token is that (padding is masked anyway).

    Raises:
        ValueError: If the folder has no tokenizer, or one that cannot be read.
    """
    import transformers  # slow to import, and code that only reads weights does not need it

    folder = pathlib.Path(folder)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder}: no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
    for path in folder.iterdir():
        if path.is_file() and path.name.startswith(TOKENIZER_PARTS):
            refuse_pointer(path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("1 + 1")  # some faults show with the first text only
    except BaseException as e:  # the library raises errors of many types; a panic of its Rust is no Exception
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise ValueError(f"{folder}: cannot read the tokenizer: {type(e).__name__}: {e}") from e
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_folder(
    folder: str | os.PathLike,
    cfg: ModelConfig,
    params: Params,
    tokenizer: "PreTrainedTokenizerBase",
    fetch: Callable[[Any], np.ndarray] = lora.on_host,
) -> None:
    """Writes a folder that transformers loads: config, tensors in the parameters' own dtype, tokenizer.

    One leaf at a time is brought to the host. Above 5 GB the tensors go into several files with an index. Adapters are
    merged into their weights, which are then float32.

    Args:
        folder: created if absent.
        cfg: the shape.
        params: the tree of parameters.
        tokenizer: a transformers tokenizer.
        fetch: brings a leaf to the host, adapted ones by `lora.now`; it is called once for each, in the order of
            `in_order`.

    Raises:
        ValueError: If the family cannot carry the config's features, or a leaf has another shape or no float dtype.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards, source = plan_shards(folder, cfg, params)
    dtype = "float32" if cfg.lora else str(params["embed"].dtype)
    write_config(folder, cfg, dtype, tokenizer.pad_token_id)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    # transformers 5 names a class that transformers 4, and the servers built on it, do not know.
    settings.write_text(settings.read_text().replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'))
    write_shards(folder, shards, source, fetch)


def in_order(cfg: ModelConfig, params: Params) -> list[Any]:
    """The leaves, in the order in which `save_folder` brings them to the host; see `lora.pending` for adapted ones."""
    merging = lora.pending(cfg, params)
    return [functools.reduce(operator.getitem, path.split("/"), merging) for path in leaves(cfg)]


def plan_shards(folder: pathlib.Path, cfg: ModelConfig, params: Params) -> tuple[list[list[Entry]], dict[str, Part]]:
    """(The tensors of each file, and the parameters that each tensor comes from); raises as `save_folder`."""
    source: dict[str, Part] = {}
    shards: list[list[Entry]] = [[]]
    size = 0
    for value, (path, leaf) in zip(in_order(cfg, params), leaves(cfg).items(), strict=True):
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
    return shards, source


def write_shards(
    folder: pathlib.Path,
    shards: list[list[Entry]],
    source: dict[str, Part],
    fetch: Callable[[Any], np.ndarray] = lora.on_host,
) -> None:
    """Writes the safetensors files of a folder, and their index if there are several; `fetch` as in `save_folder`."""
    held: tuple[Any, Any] = (None, None)  # the last leaf, and the same on the host

    def read(name: str) -> np.ndarray:
        nonlocal held
        value, leaf, layer = source[name]
        if held[0] is not value:
            held = (value, fetch(value))
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
