"""The record of a run: config.json, metrics.jsonl and samples.jsonl in its working directory.

One JSON object a line, one line a step. Values are written once, as Python numbers with every digit that a
float32 or float64 needs, so that the rows of two runs can be compared bit for bit. What was not measured, or
came out as NaN or infinity, is null: a reader never meets a token that JSON does not have.
"""

import fnmatch
import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from entropy_rl.record import jsonl
from entropy_rl.runtime import distributed

EVAL_PATTERN = "eval/<name>/accuracy"

# The fixed keys, in the order of the file. `EVAL_PATTERN` stands for as many keys as there are evaluations.
METRIC_KEYS = (
    "step",
    "time",  # seconds since 1970, at the write
    "reward/mean",  # before dynamic-sampling filters
    "reward/std",
    EVAL_PATTERN,
    "entropy/mean",  # nats, over tokens
    "entropy/response_mean",  # nats, over responses of their token means
    "entropy/sampled",  # nats, -mean logp
    "entropy/p80",
    "entropy/frac_below_0.01",
    "cov/mean",
    "cov/top_0.02pct",
    "cov/top_0.2pct",
    "cov/top_2pct",
    "cov/top_20pct",
    "entropy/delta",
    "entropy/delta_predicted",  # exact to first order
    "entropy/delta_thm1",
    "entropy/delta_thm2",
    "tokens/kept_frac",
    "ratio/clip_frac",
    "kl/old",
    "length/mean",
    "length/clipped_frac",
    "grad/norm",
    "grad/skipped",
    "throughput/rollout_tokens_per_s",
    "throughput/train_tokens_per_s",
    "group/degenerate_frac",
    "law/a",
    "law/b",
    "law/ceiling",
)

# What may change between the parts of one run without making it another run.
FREE_KEYS = ("train.steps", "checkpoint.*", "eval.every", "measure.every", "log.*", "rollout.server*")


class RunLog:
    """Writes the record of one run; made anew whenever the run is started or resumed. The first process alone writes.

    resume_step: the step of the checkpoint that the run goes on from. Rows past it, and a last line torn by
      a kill, are dropped from both files: the run will write them again. None: it starts from nothing, and
      every row there is dropped.
    """

    def __init__(self, workdir: epath.Path | str, resume_step: int | None):
        self._workdir = epath.Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._metrics = self._workdir / "metrics.jsonl"
        self._samples = self._workdir / "samples.jsonl"
        self._writes, self._last_step = distributed.first(), -1
        if not self._writes:
            return
        keep_through = -1 if resume_step is None else resume_step
        self._last_step = jsonl.drop_after(self._metrics, keep_through)
        jsonl.drop_after(self._samples, keep_through)

    def write(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Appends the row of one step to metrics.jsonl and returns it as written.

        row: {key: number, bool, None, or an array of no dimensions}, with "step", an int above the last one
          written. Absent keys of the contract become null, "time" the present; keys beyond it follow.
        Raises ValueError naming the key or step that is wrong.
        """
        values = {key: _number(key, value) for key, value in _on_host(row).items()}
        step = values.get("step")
        if type(step) is not int or step <= self._last_step:
            raise ValueError(f"{self._metrics}: step is {step!r}, expected an int above {self._last_step}")
        values.setdefault("time", time.time())
        ordered: dict[str, Any] = {}
        for key in METRIC_KEYS:
            if key == EVAL_PATTERN:
                ordered |= {k: v for k, v in values.items() if k.startswith("eval/")}
            else:
                ordered[key] = values.get(key)
        ordered |= values
        if self._writes:
            jsonl.append(self._metrics, [ordered])
        self._last_step = step
        return ordered

    def sample(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends to samples.jsonl one object for each response: JSON values and arrays, with its "step"."""
        plain = [_plain(_on_host(row)) for row in rows]
        if any(type(row.get("step")) is not int for row in plain):
            raise ValueError(f"{self._samples}: every sample needs its step, an int")
        if self._writes:
            jsonl.append(self._samples, plain)

    def config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json, unless it says the same: the configuration as nested dicts (`ConfigDict.to_dict()`)."""
        path, text = self._workdir / "config.json", json.dumps(config, indent=2) + "\n"
        if self._writes and (not path.exists() or path.read_text() != text):
            path.write_text(text)

    def history(self) -> list[dict[str, Any]]:
        """The rows of the steps so far; none where this process does not write them."""
        return [row for row in jsonl.read(self._metrics) if row["step"]] if self._writes else []


def check_config(
    workdir: epath.Path | str,
    config: Mapping[str, Any],
    *,
    free: Sequence[str] = FREE_KEYS,
    force: bool = False,
) -> list[str]:
    """Compares `config` with the config.json that is in `workdir`; without one, there is nothing to compare.

    free: patterns (fnmatch) of dotted keys that may differ. Returns the differences in the other keys, one
    line each, which can only be non-empty with force=True; without it they raise ValueError, all listed.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        return []
    try:
        before = _flat(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); put it back, or start in another workdir") from error
    now = _flat(json.loads(json.dumps(config)))
    absent = "(absent)"
    differences = [
        f"{key}: {before.get(key, absent)!r} in the run, {now.get(key, absent)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, absent) != now.get(key, absent) and not _is_free(key, free)
    ]
    if differences and not force:
        listed = "\n  ".join(differences)
        raise ValueError(
            f"{path}: the run was started with another configuration:\n  {listed}\n"
            "Go on with the old values, start in another workdir, or force the change"
        )
    return differences


def config_hash(config: Mapping[str, Any], free: Sequence[str] = FREE_KEYS) -> str:
    """SHA-256, in hex, of the keys that are not free: equal when `check_config` finds no difference."""
    flat = {k: v for k, v in _flat(json.loads(json.dumps(config))).items() if not _is_free(k, free)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def progress(row: Mapping[str, Any], done: int, total: int, seconds_per_step: float) -> str:
    """One line for a terminal, from a row as `RunLog.write` returns it; what is null shows as "-"."""

    def show(key: str, form: str) -> str:
        value = row.get(key)
        return "-" if value is None else format(value, form)

    left = max(0, round((total - done) * seconds_per_step))
    hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
    clock = f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
    return (
        f"step {done}/{total}  reward {show('reward/mean', '.3f')}  entropy {show('entropy/mean', '.3f')}  "
        f"{show('throughput/rollout_tokens_per_s', '.0f')} tokens/s  {clock} left"
    )


def _on_host(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row in its own order, with every array fetched in one call (device_get would sort the keys)."""
    return dict(zip(row, jax.device_get(list(row.values())), strict=True))


def _number(key: str, value: Any) -> float | int | bool | None:
    plain = _plain(value)
    if plain is not None and not isinstance(plain, (bool, int, float)):
        raise ValueError(f"metric {key!r}: got {type(plain).__name__}, expected one number or None")
    return plain


def _plain(value: Any) -> Any:
    """JSON's own types only, from arrays on the host, NumPy scalars and containers of them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_free(key: str, free: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in free)
