"""Recorded rollouts for the report: read from Parquet, and written as scripts that the viewer loads one by one."""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from entropy_rl.record.rollouts import COLUMNS, FOLDER, TOKEN_COLUMNS, RolloutLog

if TYPE_CHECKING:
    import pyarrow

VALUES = tuple(name for name, kind in TOKEN_COLUMNS.items() if kind == "float32")


class Step(NamedTuple):
    """The recorded responses of one step: R of them, with N tokens in all.

    Attributes:
        step: its number.
        rows: R: prompt, sample, reward, advantage, length, finished, answer and question of each.
        token: N texts.
        id: i32[N].
        values: name -> f32[N], those of `VALUES` that were recorded.
        fate: N texts; None if they were not recorded.
    """

    step: int
    rows: list[dict[str, Any]]
    token: np.ndarray
    id: np.ndarray
    values: dict[str, np.ndarray]
    fate: np.ndarray | None

    @property
    def lengths(self) -> np.ndarray:
        """i64[R]."""
        return np.array([row["length"] for row in self.rows], np.int64)

    def per_token(self, name: str) -> np.ndarray:
        """A response's value, repeated for each of its tokens."""
        return np.repeat(np.array([row[name] for row in self.rows]), self.lengths)

    @property
    def position(self) -> np.ndarray:
        """i64[N]: the number of each token in its response, from 0."""
        ends = np.cumsum(self.lengths)
        return np.arange(len(self.token)) - np.repeat(ends - self.lengths, self.lengths)


def steps(workdir: epath.PathLike) -> list[int]:
    """The recorded steps of a run, ascending."""
    return RolloutLog(workdir, 0.0).steps()


def read(workdir: epath.PathLike, step: int) -> Step:
    """One recorded step.

    Raises:
        ValueError: If a file of it is damaged; names it.
    """
    import pyarrow as pa

    if not (paths := _paths(workdir, step)):
        raise ValueError(f"{workdir}: the files of step {step} were removed meanwhile; make the report again")
    table = pa.concat_tables([_open(path) for path in paths], promote_options="permissive")
    names = ("prompt", "sample", "update", "question", "answer", "reward", "advantage", "length", "finished")
    rows = table.select(names).to_pylist()
    flat = {name: table[name].combine_chunks() for name in TOKEN_COLUMNS}

    def numbers(name: str) -> np.ndarray:
        return np.asarray(flat[name].flatten().to_numpy(zero_copy_only=False))

    there = [name for name in TOKEN_COLUMNS if flat[name].null_count < len(flat[name]) or not rows]
    return Step(
        step,
        rows,
        numbers("token") if "token" in there else np.array([], object),
        numbers("id"),
        {name: numbers(name) for name in VALUES if name in there},
        numbers("fate") if "fate" in there else None,
    )


def once(step: Step) -> Step:
    """The step with each response once: a method with turns records it in every turn, and the first has its entropy."""
    ends = np.cumsum(step.lengths)
    seen: set[tuple[int, int, bytes]] = set()
    kept = []
    for row, begin, end in zip(step.rows, ends - step.lengths, ends):
        name = (row["prompt"], row["sample"], step.id[begin:end].tobytes())
        kept.append(name not in seen)
        seen.add(name)
    if all(kept):
        return step
    inside = np.repeat(kept, step.lengths)
    return step._replace(
        rows=[row for row, keep in zip(step.rows, kept) if keep],
        token=step.token[inside] if len(step.token) else step.token,
        id=step.id[inside],
        values={name: values[inside] for name, values in step.values.items()},
        fate=None if step.fate is None else step.fate[inside],
    )


def fates(workdir: epath.PathLike, step: int) -> dict[str, int]:
    """How many tokens of a recorded step had each fate; {} if it was not recorded."""
    counts: dict[str, int] = {}
    for path in _paths(workdir, step):
        column = _open(path, ["fate"])["fate"].combine_chunks().flatten()
        for pair in column.value_counts().to_pylist():
            if pair["values"] is not None:
                counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    return dict(sorted(counts.items(), key=lambda item: (item[0] != "kept", item[0])))


def _paths(workdir: epath.PathLike, step: int) -> list[epath.Path]:
    return sorted(epath.Path(workdir).joinpath(FOLDER).glob(f"step-{step:08d}*.parquet"))


def _open(path: epath.Path, columns: list[str] | None = None) -> "pyarrow.Table":
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            table = pyarrow.parquet.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({error}); remove it") from error
    if lacking := {*(columns or (*COLUMNS, *TOKEN_COLUMNS))} - {*table.column_names}:
        raise ValueError(f"{path}: no {', '.join(sorted(lacking))}; not a file of this run? Remove it")
    return table


def script(run: str, step: Step) -> str:
    """A step as a script for the viewer. Numbers keep every bit: they are float32 in base64."""
    tokens, ids = coded(step.token)
    questions = list(dict.fromkeys(row["question"] for row in step.rows))
    number = {question: i for i, question in enumerate(questions)}
    rows = [
        {k: finite(row.get(k)) for k in ("prompt", "sample", "update", "reward", "advantage", "length", "finished")}
        | {"question": number[row["question"]]}
        for row in step.rows
    ]
    data: dict[str, Any] = {"tokens": tokens, "questions": questions, "rows": rows}
    data["ids"] = _base64(ids.astype("<u4"))
    data["values"] = {name: _base64(values.astype("<f4")) for name, values in step.values.items()}
    if step.fate is not None:
        fates, which = coded(step.fate)
        order = sorted(fates, key=lambda name: (name != "kept", name))  # "kept" has no colour: first
        place = np.array([order.index(name) for name in fates], "u1")
        data |= {"fates": order, "fate": _base64(place[which] if len(which) else which.astype("u1"))}
    return f"report.add({as_script(run)}, {step.step}, {as_script(data)});\n"


def index_script(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the viewer can load: run -> what `listed` gives of each of its steps."""
    listed = [{"name": name, "steps": list(steps)} for name, steps in runs.items()]
    return f"report.start({as_script({'runs': listed})});\n"


def finite(value: Any) -> Any:
    """The value; None for a float that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def listed(step: Step, file: str) -> dict[str, Any]:
    """A step in the viewer's index: its number, its file and the problems that it has."""
    return {"step": step.step, "file": file, "prompts": sorted({row["prompt"] for row in step.rows})}


def as_script(value: Any) -> str:
    """A value as a literal of JavaScript that is harmless inside a page too, whatever texts are in it."""
    text = json.dumps(value, allow_nan=False)  # ASCII: no U+2028 is left
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def coded(texts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The different texts, and for each text its number among them."""
    import pyarrow as pa

    made = pa.array(texts, pa.string()).dictionary_encode()
    return made.dictionary.to_pylist(), made.indices.to_numpy(zero_copy_only=False)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def by_run(workdirs: Mapping[str, str]) -> Iterator[tuple[str, list[int]]]:
    """(name, recorded steps) of the runs that have any."""
    for name, workdir in workdirs.items():
        if found := steps(workdir):
            yield name, found
