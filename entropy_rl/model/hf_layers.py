"""What differs from layer to layer in a config.json: windows, and layers without RoPE."""

import pathlib
from typing import Any

from entropy_rl.model.config import ModelConfig
from entropy_rl.model.foreign import LARGEST, flag, whole
from entropy_rl.model.hf_rope import FULL, SLIDING


def read_layers(raw: dict[str, Any], layers: int, path: pathlib.Path) -> dict[str, Any]:
    """`sliding_window`, `full_layers` and `nope_layers` of `ModelConfig`.

    Raises:
        ValueError: If a value is of another type or out of range, or if a list has not one entry per layer.
    """
    family = raw["model_type"]
    nope = _nope_layers(raw, layers, path) if family == "smollm3" else ()
    window = raw.get("sliding_window", 4096)
    if window is not None:
        window = whole(path, "sliding_window", window, 1, 1 << 31)
    switched = family in ("qwen2", "qwen3", "smollm3")
    off = switched and not flag(path, "use_sliding_window", raw.get("use_sliding_window", False))
    if family in ("llama", "olmo2") or window is None or off:
        return {"sliding_window": None, "nope_layers": nope}
    full = () if family == "mistral" else _full_layers(raw, layers, nope, path)
    if len(full) == layers:
        return {"sliding_window": None, "nope_layers": nope}
    return {"sliding_window": window, "full_layers": full, "nope_layers": nope}


def _full_layers(raw: dict[str, Any], layers: int, nope: tuple[int, ...], path: pathlib.Path) -> tuple[int, ...]:
    """The layers that see all positions, from `layer_types`, or by the family's rule."""
    family, every = raw["model_type"], 4
    if "layer_types" in raw:
        kinds = raw["layer_types"]
        if not isinstance(kinds, list) or not set(map(str, kinds)) <= {FULL, SLIDING} or len(kinds) != layers:
            raise ValueError(f"{path}: layer_types={kinds!r:.80}; expected a list of {layers} of {FULL}, {SLIDING}")
        return tuple(i for i, kind in enumerate(kinds) if kind == FULL)
    if family == "smollm3":
        return tuple(i for i in range(layers) if i not in nope)
    if family in ("qwen2", "qwen3"):
        first = whole(path, "max_window_layers", raw.get("max_window_layers", 28), 0, LARGEST["n_layers"])
        return tuple(range(min(first, layers)))
    if family == "gemma3_text":
        # The key has an underscore in files that a later version of transformers wrote.
        key = "_sliding_window_pattern" if "_sliding_window_pattern" in raw else "sliding_window_pattern"
        every = whole(path, key, raw.get(key, 6), 1, LARGEST["n_layers"])
    return tuple(range(every - 1, layers, every))


def _nope_layers(raw: dict[str, Any], layers: int, path: pathlib.Path) -> tuple[int, ...]:
    """SmolLM3's layers without RoPE: those with a 0 in `no_rope_layers`, or every fourth."""
    if "no_rope_layers" not in raw:
        key = "no_rope_layer_interval"
        every = whole(path, key, raw.get(key, 4), 1, LARGEST["n_layers"])
        return tuple(range(every - 1, layers, every))
    marks = raw["no_rope_layers"]
    if not isinstance(marks, list) or len(marks) != layers or any(mark not in (0, 1) for mark in marks):
        raise ValueError(f"{path}: no_rope_layers={marks!r:.80}; expected a list of {layers}, 1 (RoPE) or 0 (none)")
    return tuple(i for i, mark in enumerate(marks) if not mark)


def write_layers(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of config.json, for transformers 4 and 5.

    Raises:
        ValueError: If the family cannot carry the config's features.
    """
    window, full = cfg.sliding_window, set(cfg.full_layers)
    if cfg.family in ("llama", "olmo2") and window is not None:
        raise ValueError(
            f"model.sliding_window={window} with model.family={cfg.family!r}; expected 'mistral', whose layers have one"
        )
    if cfg.family == "mistral" and full:
        raise ValueError(f"model.full_layers={cfg.full_layers} with model.family='mistral'; expected none")
    if cfg.family != "smollm3" and cfg.nope_layers:
        raise ValueError(f"model.nope_layers={cfg.nope_layers} with model.family={cfg.family!r}; expected 'smollm3'")
    if cfg.family in ("llama", "olmo2"):
        return {}
    raw: dict[str, Any] = {"sliding_window": window}
    if cfg.family == "mistral":
        return raw
    raw["layer_types"] = [FULL if window is None or i in full else SLIDING for i in range(cfg.n_layers)]
    if cfg.family in ("qwen2", "qwen3"):
        first = cfg.n_layers if window is None else len(full)
        raw |= {"use_sliding_window": window is not None, "max_window_layers": first}
    elif cfg.family == "smollm3":
        marks = [int(i not in cfg.nope_layers) for i in range(cfg.n_layers)]
        raw |= {"use_sliding_window": window is not None, "no_rope_layers": marks}
    elif window is None:
        raw["sliding_window"] = 4096  # no layer has it, but transformers needs a number
    return raw
