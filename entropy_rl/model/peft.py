"""LoRA adapters in PEFT's folders, adapter_config.json and adapter_model.safetensors, in and out, without torch.

Shapes: L layers, r rank. Ours: A [L, inputs, r], B [L, r, outputs]. PEFT's, for each layer: lora_A [r, inputs],
lora_B [outputs, r]. Inputs and outputs may be several axes of ours.
"""

import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple, Self

import numpy as np

from entropy_rl.model import lora, tensor_file
from entropy_rl.model.config import ADAPTER, Lora, ModelConfig
from entropy_rl.model.foreign import positive, read_json, whole
from entropy_rl.model.leaves import leaves
from entropy_rl.model.matrices import WEIGHTS
from entropy_rl.model.tensor_file import TensorFile
from entropy_rl.model.transformer import Params, abstract_params

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
MAX_RANK = 1 << 16

# Settings of PEFT that change what an adapter computes, and the values with which it is plain LoRA.
PLAIN = {
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "modules_to_save": ([],),
    "layers_to_transform": ([],),
    "layer_replication": ([],),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "target_parameters": ([],),
    "trainable_token_indices": ([],),
    "init_lora_weights": (True, False, "gaussian"),
}


class Adapter(NamedTuple):
    """A folder with an adapter.

    Attributes:
        folder: the folder.
        base: the model that it belongs to, as `model.source` names one.
        lora: its rank, alpha and targets.
    """

    folder: pathlib.Path
    base: str
    lora: Lora

    @classmethod
    def open(cls, folder: pathlib.Path) -> Self:
        """Reads the folder's configuration and the names of its tensors.

        Raises:
            ValueError: It is no LoRA of the layers' matrices, or names no base; the message names the key or tensor.
        """
        path = folder / CONFIG
        c = read_json(path)
        if c.get("peft_type") != "LORA":
            raise ValueError(f"{path}: peft_type is {c.get('peft_type')!r}; only LORA can be read")
        for key, legal in PLAIN.items():
            if (value := c.get(key)) and value not in legal:
                raise ValueError(
                    f"{path}: {key}={value!r} is not supported; merge the adapter with peft (merge_and_unload), "
                    "and give that folder"
                )
        base = c.get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise ValueError(f"{path}: base_model_name_or_path={base!r} must name the model that it belongs to")
        named = {_target(name) for name in _file(folder).shapes}
        if None in named or not named:
            wrong = next((name for name in _file(folder).shapes if _target(name) is None), "nothing")
            raise ValueError(
                f"{folder / TENSORS} holds {wrong}; expected lora_A and lora_B of "
                f"{', '.join(f'{name}_proj' for name in WEIGHTS)}"
            )
        targets = tuple(name for name in WEIGHTS if name in named)
        rank, alpha = whole(path, "r", c.get("r"), 1, MAX_RANK), positive(path, "lora_alpha", c.get("lora_alpha"))
        return cls(folder, base, Lora(rank, alpha, targets))

    def check(self, cfg: ModelConfig) -> None:
        """Refuses to train an adapter as another one than it is.

        Raises:
            ValueError: `model.lora` has another rank, alpha or other targets.
        """
        own, wanted = self.lora, cfg.lora
        assert wanted is not None
        for key, there, here in (
            ("rank", own.rank, wanted.rank),
            ("alpha", own.alpha, wanted.alpha),
            ("targets", *(tuple(f"{x}_proj" for x in WEIGHTS if x in one.targets) for one in (own, wanted))),
        ):
            if there != here:
                raise ValueError(
                    f"model.lora.{key}={here!r}, but the adapter in {self.folder} has {there!r}; set it to that, or "
                    "model.lora.rank to 0, which merges the adapter and trains all weights"
                )

    def read(self, cfg: ModelConfig) -> Params:
        """The adapter's leaves, float32, as the trained part of the parameters (`lora.split`).

        Args:
            cfg: the base's shape with this adapter (`lora.adapted`).

        Raises:
            ValueError: A tensor is missing, has another shape, or is not of this model; names it.
        """
        file, trained = _file(self.folder), lora.split(abstract_params(cfg))[0]["layers"]
        names = {leaf: _names(cfg, leaf) for leaf in trained}
        if extra := sorted(file.shapes.keys() - set(itertools.chain(*names.values()))):
            raise ValueError(f"{file.path}: unexpected tensor {extra[0]}; {self.base} has {cfg.n_layers} layers")

        def leaf(name: str) -> np.ndarray:
            shape = trained[name].shape
            return np.stack([_read(file, tensor, name, shape[1:]) for tensor in names[name]])

        return {"layers": {name: leaf(name) for name in trained}}


def save_adapter(folder: str | os.PathLike, cfg: ModelConfig, params: Params, base: str) -> None:
    """Writes the adapters as a folder that peft and `model.source` open.

    Args:
        folder: created if absent.
        cfg: the shape, with adapters.
        params: the parameters, or the trained part of them, in this process's memory.
        base: the model that they belong to, as `model.source` named it.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    assert cfg.lora is not None
    trained, source = lora.split(params)[0]["layers"], {}
    for name, x in trained.items():
        for tensor, one in zip(_names(cfg, name), x, strict=True):
            source[tensor] = _theirs(name, np.asarray(one))
    entries = [(tensor, x.shape, x.dtype) for tensor, x in source.items()]
    tensor_file.write(folder / TENSORS, entries, source.__getitem__)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": cfg.lora.rank,
        "lora_alpha": cfg.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": [f"{name}_proj" for name in cfg.lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _file(folder: pathlib.Path) -> TensorFile:
    if not (folder / TENSORS).exists():
        raise ValueError(f"{folder}: no {TENSORS} beside {CONFIG}; save the adapter with safe_serialization=True")
    return TensorFile(folder / TENSORS)


def _target(tensor: str) -> str | None:
    """The matrix's leaf that a tensor is an adapter of, or None."""
    parts = tensor.removeprefix(_PREFIX).split(".")
    known = len(parts) > 3 and parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B")
    name = parts[-3].removesuffix("_proj") if known else ""
    return name if name in WEIGHTS else None


def _names(cfg: ModelConfig, leaf: str) -> list[str]:
    """PEFT's names of a leaf, one for each layer."""
    weight, part = leaf.split(ADAPTER)
    module = leaves(cfg)[f"layers/{weight}"].name.removesuffix(".weight")
    return [f"{_PREFIX}{module.format(i)}.lora_{part.upper()}.weight" for i in range(cfg.n_layers)]


def _theirs(leaf: str, ours: np.ndarray) -> np.ndarray:
    """PEFT's tensor of one layer of a leaf."""
    rank_last = leaf.endswith(f"{ADAPTER}a")
    return (ours.reshape(-1, ours.shape[-1]) if rank_last else ours.reshape(len(ours), -1)).T


def _read(file: TensorFile, tensor: str, leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    """One layer of a leaf, in our shape."""
    expected = _theirs(leaf, np.empty(shape, np.bool_)).shape
    if (got := file.shapes.get(tensor)) != expected:
        raise ValueError(f"{file.path}: tensor {tensor} has shape {got}, expected {expected}")
    return file.read(tensor).T.reshape(shape)
