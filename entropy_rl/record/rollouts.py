"""Whole rollouts as Parquet, a file per recorded step: `rollouts/step-00000040.parquet`.

A row is a response. Its lists have one entry per token. In pandas all steps are

    pd.read_parquet("runs/a/rollouts")

docs/rollouts.md has the schema. A run of several processes writes a file for each, `step-00000040.p1.parquet`, with the
responses that this process holds; the line above reads them all. B responses, T response positions.
"""

import io
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from etils import epath

from entropy_rl.record import files
from entropy_rl.runtime import distributed

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase

FOLDER = "rollouts"
FREE_BYTES = 2 * 10**9  # that must be left on the disk
_NAME = re.compile(r"step-(\d+)(?:\.p\d+)?\.parquet")

# Per response.
COLUMNS: dict[str, str] = {
    "step": "int32",
    "update": "int32",  # of the step's, from 0, in which the response was trained on; null without training
    "prompt": "uint32",  # the problem's uid: equal for all responses of a group
    "sample": "int16",  # its number in the group
    "question": "string",
    "text": "string",
    "answer": "string",  # read out of the text; null if there is none
    "reward": "float32",  # null if not scored
    "advantage": "float32",
    "length": "int32",  # tokens
    "finished": "bool",  # not cut
}
# Per token of the response: lists of `length` entries.
TOKEN_COLUMNS: dict[str, str] = {
    "id": "int32",
    "token": "string",
    "logp": "float32",  # nats, under the policy that the update starts from
    "entropy": "float32",  # nats
    "covariance": "float32",
    "ratio": "float32",  # to the policy that sampled
    "gradient": "float32",  # d loss / d logp, of the objective
    "gradient_after": "float32",  # and after the transforms
    "entropy_gradient": "float32",  # d loss / d entropy after the transforms
    "fate": "string",  # "kept", or what stopped or changed its gradient
}


class RolloutLog:
    """The recorded rollouts of one run.

    Args:
        workdir: the run directory, on a disk or in a bucket.
        budget_gb: of all files together, 10^9 bytes. Beyond it steps are dropped, so that what is left is spread over
            the run; the first and the newest stay.
    """

    def __init__(self, workdir: epath.PathLike, budget_gb: float):
        self._folder, self._budget = epath.Path(workdir) / FOLDER, budget_gb * 1e9
        self._full = False

    def resume(self, step: int) -> None:
        """Drops the files of later steps, which the run will write again."""
        for later in [s for s in self.steps() if s > step]:
            self._drop(later)

    def steps(self) -> list[int]:
        """The recorded steps, ascending."""
        return sorted({step for step, _ in self._files()})

    def write(
        self, step: int, columns: Mapping[str, Sequence[Any]], lists: Mapping[str, np.ndarray], mask: Any
    ) -> None:
        """Records a step. If it cannot, or the disk is nearly full, that is logged, and the run continues.

        Args:
            step: its number.
            columns: name -> B values; those of `COLUMNS`, and parts of the reward as `reward/<name>`.
            lists: name -> [B, T], those of `TOKEN_COLUMNS`; what lacks is null.
            mask: bool[B, T], the tokens of the responses.
        """
        try:
            contents = encode({"step": [step] * len(mask), **columns}, lists, np.asarray(mask) > 0)
            if (reason := no_room(self._folder, len(contents))) is not None:
                if not self._full:
                    logging.warning("log.rollouts: step %d is not recorded: %s", step, reason)
                self._full = True
                return
            self._full = False
            suffix = f".p{jax.process_index()}" if jax.process_count() > 1 else ""
            self._folder.mkdir(parents=True, exist_ok=True)
            files.replace(self._folder / f"step-{step:08d}{suffix}.parquet", contents)
            self._thin()
        except (OSError, ValueError) as error:  # of Arrow too: a text or a number that a column cannot hold
            logging.warning("log.rollouts: step %d could not be recorded: %s", step, error)

    def _files(self) -> list[tuple[int, epath.Path]]:
        if not self._folder.exists():
            return []
        named = ((_NAME.fullmatch(path.name), path) for path in self._folder.iterdir())
        return [(int(found[1]), path) for found, path in named if found]

    def _thin(self) -> None:
        """Drops steps until the files fit into the budget: each time the one whose neighbours are nearest."""
        if not distributed.first():
            return
        found = self._files()
        sizes = {step: sum(path.stat().length for s, path in found if s == step) for step, _ in found}
        steps = sorted(sizes)
        while sum(sizes[s] for s in steps) > self._budget and len(steps) > 2:
            dropped = min(range(1, len(steps) - 1), key=lambda i: (steps[i + 1] - steps[i - 1], steps[i]))
            self._drop(steps.pop(dropped))

    def _drop(self, step: int) -> None:
        for number, path in self._files():
            if number == step:
                path.unlink(missing_ok=True)


def no_room(folder: epath.Path, size: int) -> str | None:
    """Why `size` more bytes should not be written into a folder, which may not exist yet; None: there is room."""
    if files.in_bucket(folder):
        return None
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    if free - size >= FREE_BYTES:
        return None
    return f"{free / 1e9:.1f} GB are free on the disk, and {FREE_BYTES / 1e9:.0f} are left to the checkpoints"


def pieces(ids: np.ndarray, tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """The text of each token by itself: an array of str of the same shape."""
    drawn, places = np.unique(ids, return_inverse=True)
    texts = [tokenizer.decode([i]) for i in drawn.tolist()]
    return np.array([*texts, ""], object)[:-1][places.reshape(ids.shape)]


def encode(columns: Mapping[str, Sequence[Any]], lists: Mapping[str, np.ndarray], mask: np.ndarray) -> bytes:
    """The bytes of a Parquet file with one row per response.

    Args:
        columns: as for `RolloutLog.write`, with "step"; besides, texts by names of the caller's own.
        lists: as for `RolloutLog.write`.
        mask: bool[B, T].
    """
    import pyarrow as pa
    import pyarrow.parquet

    n = len(mask)
    ends = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    table: dict[str, pa.Array] = {}
    for name, kind in COLUMNS.items():
        table[name] = pa.array(columns.get(name, [None] * n), _type(kind), from_pandas=True)  # NaN is null
    for name in columns:
        if name not in table:
            kind = pa.string() if len(columns[name]) and isinstance(columns[name][0], str) else pa.float32()
            table[name] = pa.array(columns[name], kind, from_pandas=True)
    for name, kind in TOKEN_COLUMNS.items():
        inner = _type(kind)
        if name in lists:
            flat = pa.array(np.asarray(lists[name])[mask], inner)
            table[name] = pa.ListArray.from_arrays(pa.array(ends), flat)
        else:
            table[name] = pa.nulls(n, pa.list_(inner))
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(table), file, compression="zstd")
    return file.getvalue()


def _type(kind: str) -> "pyarrow.DataType":
    import pyarrow as pa

    return pa.bool_() if kind == "bool" else getattr(pa, kind)()
