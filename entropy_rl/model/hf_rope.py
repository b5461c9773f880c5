"""RoPE in a config.json: `rope_theta` and `rope_scaling` (transformers 4), or `rope_parameters` (transformers 5).

A family whose windowed layers have another RoPE writes `rope_local_base_freq`, or `rope_parameters` with an object for
each type of layer.
"""

import math
import pathlib
from typing import Any

from entropy_rl.model.config import LinearScaling, Llama3Scaling, ModelConfig, Rope, RopeScaling, YarnScaling
from entropy_rl.model.families import Family
from entropy_rl.model.foreign import positive, whole

FULL, SLIDING = "full_attention", "sliding_attention"


def read_rope(raw: dict[str, Any], family: Family, path: pathlib.Path) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `local_rope` of `ModelConfig`.

    Raises:
        ValueError: If the decoder does not have this type of RoPE, or if two of these keys disagree.
    """
    thetas: dict[str, float] = {}
    scalings: dict[str, RopeScaling | None] = {}
    local = None
    if "rope_theta" in raw:
        thetas["rope_theta"] = positive(path, "rope_theta", raw["rope_theta"])
    _refuse_share(raw, "", path)
    for key in ("rope_parameters", "rope_scaling"):
        rope = _object(raw.get(key, {}), key, path)
        if key == "rope_parameters" and rope and family.local_theta is not None:
            local = _object(rope.get(SLIDING) or {}, f"{key}.{SLIDING}", path)
            if flat := [name for name in rope if name not in (FULL, SLIDING)]:
                raise ValueError(
                    f"{path}: {key}.{flat[0]}: expected an object for each type of layer, {FULL}, {SLIDING}"
                )
            key, rope = f"{key}.{FULL}", _object(rope.get(FULL) or {}, f"{key}.{FULL}", path)
        if not rope:
            continue
        if any(isinstance(value, dict) for value in rope.values()):
            raise ValueError(
                f"{path}: {key} differ by layer type ({', '.join(rope)}), which is not supported for this family"
            )
        if "rope_theta" in rope:
            thetas[f"{key}.rope_theta"] = positive(path, f"{key}.rope_theta", rope["rope_theta"])
        if set(rope) != {"rope_theta"}:
            scalings[key] = read_scaling(rope, key, raw, path)
    theta, scaling = _same(thetas, family.theta, path), _same(scalings, None, path)
    found = {"rope_theta": theta, "rope_scaling": scaling, "local_rope": None}
    if family.local_theta is not None:
        local_rope = _local(raw, local or {}, family.local_theta or theta, path)
        found["local_rope"] = None if local_rope == Rope(theta, scaling) else local_rope
    return found


def _local(raw: dict[str, Any], rope: dict[str, Any], theta: float, path: pathlib.Path) -> Rope:
    """RoPE of the layers with a window; `rope` is that of `rope_parameters`."""
    key = f"rope_parameters.{SLIDING}"
    given = {"rope_local_base_freq": raw.get("rope_local_base_freq"), f"{key}.rope_theta": rope.get("rope_theta")}
    thetas = {name: positive(path, name, value) for name, value in given.items() if value is not None}
    scaling = read_scaling(rope, key, raw, path) if set(rope) - {"rope_theta"} else None
    return Rope(_same(thetas, theta, path), scaling)


def _object(rope: Any, key: str, path: pathlib.Path) -> dict[str, Any]:
    """The object without its nulls, which are as if absent."""
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: {key}={rope!r:.80}; expected an object or null")
    _refuse_share(rope, f"{key}.", path)
    return {k: v for k, v in rope.items() if v is not None}


def _refuse_share(rope: dict[str, Any], prefix: str, path: pathlib.Path) -> None:
    if (share := rope.get("partial_rotary_factor")) not in (None, 1.0):
        raise ValueError(f"{path}: {prefix}partial_rotary_factor={share!r} is not supported; expected 1.0")


def _same(found: dict[str, Any], default: Any, path: pathlib.Path) -> Any:
    """The one value that several keys give."""
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{key}: {value}" for key, value in found.items())
        raise ValueError(f"{path}: these disagree, and only one can be meant: {listed}; remove the wrong one")
    return next(iter(found.values()), default)


def read_scaling(rope: dict[str, Any], key: str, raw: dict[str, Any], path: pathlib.Path) -> RopeScaling | None:
    """The scaling in `rope_parameters` or `rope_scaling`; None: there is none.

    Raises:
        ValueError: If it is of a type that the decoder does not have, or lacks a number.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) != kind:
        raise ValueError(f"{path}: {key} has rope_type={kind!r} and type={rope['type']!r}; remove the wrong one")
    if kind == "default":
        if (factor := rope.get("factor", 1.0)) != 1.0:
            raise ValueError(f"{path}: {key}.factor={factor!r:.80} without a rope_type that reads it")
        return None

    def number(name: str, default: float | None = None) -> float:
        return positive(path, f"{key}.{name}", rope.get(name, default))

    def need(*names: str) -> None:
        if missing := [name for name in names if name not in rope]:
            raise ValueError(f"{path}: {key}: rope_type={kind!r} lacks {', '.join(missing)}")

    original = "original_max_position_embeddings"
    if kind == "linear":
        need("factor")
        return LinearScaling(number("factor"))
    if kind == "llama3":
        need("factor", "low_freq_factor", "high_freq_factor", original)
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low == high:
            raise ValueError(f"{path}: {key}: low_freq_factor and high_freq_factor are both {low}; they must differ")
        return Llama3Scaling(number("factor"), low, high, whole(path, f"{key}.{original}", rope[original], 1, 1 << 31))
    if kind == "yarn":
        need("factor")
        if more := [name for name in ("mscale", "mscale_all_dim") if name in rope]:
            raise ValueError(f"{path}: {key}.{more[0]} is not supported; give attention_factor instead")
        if rope.get("truncate", True) is not True:
            raise ValueError(f"{path}: {key}.truncate={rope['truncate']!r:.80} is not supported; expected true")
        factor = number("factor")
        positions = whole(path, f"{key}.{original}", rope.get(original, raw.get("max_position_embeddings")), 1, 1 << 31)
        grown = number("attention_factor", 0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        return YarnScaling(factor, positions, grown, number("beta_fast", 32.0), number("beta_slow", 1.0))
    raise ValueError(f"{path}: {key}: rope_type={kind!r} is not supported; expected default, linear, llama3 or yarn")


def write_rope(cfg: ModelConfig, family: Family) -> dict[str, Any]:
    """The keys of config.json, in a spelling that transformers 4 and 5 both read.

    Raises:
        ValueError: If the family's files have one RoPE, and the model has two.
    """
    if cfg.local_rope is not None and family.local_theta is None:
        raise ValueError(f"model.local_rope={cfg.local_rope} with model.family={cfg.family!r}; expected None")
    raw: dict[str, Any] = {"rope_theta": cfg.rope_theta}
    if cfg.rope_scaling is not None:
        raw["rope_scaling"] = _scaling(cfg.rope_scaling)
    if family.local_theta is not None:
        full = Rope(cfg.rope_theta, cfg.rope_scaling)
        local = cfg.local_rope or full
        raw["rope_parameters"] = {
            name: {"rope_theta": rope.theta} | _scaling(rope.scaling) for name, rope in ((FULL, full), (SLIDING, local))
        }
        if family.local_theta:
            raw["rope_local_base_freq"] = local.theta
    return raw


def _scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """The object in config.json."""
    match scaling:
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as s:
            return {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_positions,
            }
        case YarnScaling() as s:
            return {
                "rope_type": "yarn",
                "factor": s.factor,
                "original_max_position_embeddings": s.original_max_positions,
                "attention_factor": s.attention_factor,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
            }
    return {"rope_type": "default"}
