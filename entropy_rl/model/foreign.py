"""Checks of the values in model files that others wrote: every error names the file and the key or tensor."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_rl.runtime.files import refuse_pointer

# Beyond every model that there is, and small enough that any of them is checked in no time.
LARGEST = {
    "vocab_size": 1 << 24,
    "d_model": 1 << 20,
    "n_layers": 10_000,
    "n_heads": 1 << 16,
    "n_kv_heads": 1 << 16,
    "head_dim": 1 << 16,
    "d_ff": 1 << 24,
    "max_positions": 1 << 31,
}


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: If the file is absent, broken, a Git LFS pointer, or holds something else; the message names it.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; a Hugging Face model folder needs it")
    refuse_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def sizes(path: pathlib.Path, given: Mapping[str, tuple[str, Any]]) -> dict[str, int]:
    """The sizes of a model, checked one by one and against one another.

    Args:
        path: the file that they come from.
        given: field of `ModelConfig` -> (its key in the file, its value).

    Returns:
        Field -> whole number.

    Raises:
        ValueError: If a size is not a whole number from 1 to `LARGEST`, the key/value heads do not divide the query
            heads, or the heads have an odd size, which RoPE cannot turn.
    """
    found = {field: whole(path, key, value, 1, LARGEST[field]) for field, (key, value) in given.items()}
    if found["n_heads"] % found["n_kv_heads"]:
        key, heads = given["n_kv_heads"][0], given["n_heads"][0]
        raise ValueError(f"{path}: {key}={found['n_kv_heads']} must divide {heads}={found['n_heads']}")
    if found["head_dim"] % 2:
        raise ValueError(f"{path}: {given['head_dim'][0]}={found['head_dim']} must be even")
    return found


def whole(path: pathlib.Path, key: str, value: Any, low: int, high: int) -> int:
    """The value, if it is a whole number in [low, high].

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{path}: {key}={_short(value)}; expected a whole number from {low} to {high}")
    return value


def positive(path: pathlib.Path, key: str, value: Any) -> float:
    """The value as a float, if it is a finite number above 0.

    Raises:
        ValueError: If it is not.
    """
    right = isinstance(value, int | float) and not isinstance(value, bool)
    if not right or not 0 < value < 2**127:  # the range of float32; NaN fails both comparisons
        raise ValueError(f"{path}: {key}={_short(value)}; expected a finite number above 0")
    return float(value)


def flag(path: pathlib.Path, key: str, value: Any) -> bool:
    """The value, if it is true or false.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{path}: {key}={_short(value)}; expected true or false")
    return value


def token_id(path: pathlib.Path, key: str, value: Any, vocab_size: int) -> int:
    """The value, if it is the id of a token that the model has.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise ValueError(
            f"{path}: {key} names the token {_short(value)}; the model's vocabulary has the ids 0 to {vocab_size - 1}"
        )
    return value


def check_finite(path: pathlib.Path, name: str, values: np.ndarray) -> None:
    """Refuses a tensor that holds NaN or an infinity.

    Args:
        path: its file.
        name: its name.
        values: its values, of any shape.

    Raises:
        ValueError: If one is not finite.
    """
    # NaN makes both of these NaN, and an infinity is one of them: two passes that allocate nothing.
    if values.size and not (math.isfinite(values.min()) and math.isfinite(values.max())):
        bad = values.size - int(np.isfinite(values).sum())
        raise ValueError(f"{path}: tensor {name} is broken: {bad} of its {values.size} weights are NaN or infinite")


def check_ranges(path: pathlib.Path, ranges: Sequence[tuple[int, int, str]], start: int, size: int) -> None:
    """Refuses byte ranges that overlap or reach past the end of the file.

    Args:
        path: the file.
        ranges: (first byte, first byte after it, the tensor's name), counted from `start`.
        start: where the data begins.
        size: of the file, in bytes.

    Raises:
        ValueError: If a range is wrong; the message names the tensor.
    """
    last, before = 0, ""
    for begin, end, name in sorted(ranges):
        if begin < last:
            raise ValueError(f"{path}: tensor {name} overlaps tensor {before}: it begins at byte {begin} of the data")
        if start + end > size:
            raise ValueError(f"{path}: cut short: {size} bytes, expected {start + end} (tensor {name})")
        last, before = end, name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
