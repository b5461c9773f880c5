"""Problems from JSONL, Parquet and Hugging Face data sets; every row is checked before any other work."""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath

from entropy_rl.data.datasets import DATASETS, Fields
from entropy_rl.data.source import Problem, hash_text

SUFFIXES = (".jsonl", ".parquet")
_SHOWN = 3  # bad rows in an error message
_READ = ("question", "answer", "solution", "difficulty")  # attributes of `Fields` that name a field of a row
_ENTRY_KINDS = re.compile(r"reasoning_gym:\w+|[\w.]+:\w+")


def is_stored(name: str) -> bool:
    """Whether `data.task` names a file or a data set rather than a reasoning-gym task."""
    return name in DATASETS or "/" in name or name.endswith(SUFFIXES)


def read(name: str, settings: Mapping[str, str], root: str, bad_rows: str) -> list[tuple[Problem, str]]:
    """The problems of a file or data set.

    Args:
        name: a .jsonl or .parquet file, a name of `DATASETS`, or a hub name owner/name (`data.task`).
        settings: attributes of `Fields` that differ from the data set's own (`data.settings`).
        root: a folder with local copies of hub data sets; "": the hub (`data.root`).
        bad_rows: "error" or "skip" (`data.bad_rows`), the treatment of a row that is not JSON, is not UTF-8, lacks a
            field or a question, or gives a different answer to a question than an earlier row. Skipped rows are
            counted in the log. A row that repeats an earlier one is dropped either way.

    Returns:
        (problem, the place that it came from, such as "file, line 3"), in the order of the rows.

    Raises:
        ValueError: If there is no such file, data set, split or setting, if a row is bad, or if no row is left. The
            message names the file and the line.
        ImportError: If the library that reads this format is not installed.
    """
    fields = fields_of(name, settings)
    problems: dict[str, tuple[Problem, str]] = {}
    bad, repeated = BadRows(name, bad_rows), 0
    for where, row, fault in _rows(name, fields, root):
        problem = None
        if not fault:
            problem, fault = _problem(row, fields)
        if problem is None:
            bad.add(where, fault)
        elif problem.question not in problems:
            problems[problem.question] = problem, where
        elif problems[problem.question][0].entry == problem.entry:
            repeated += 1
        else:
            bad.add(where, f"another answer to the question of {problems[problem.question][1]}")
    bad.settle()
    if repeated:
        logging.info("%s: %d rows repeat an earlier one and are dropped", name, repeated)
    if not problems:
        raise ValueError(f"data.task={name!r} contains no problem ({bad.count} rows, all bad)")
    found = list(problems.values())
    for part in ("solution", "difficulty"):
        path = getattr(fields, part)
        if path and not any(getattr(problem, part) for problem, _ in found):
            raise ValueError(f"data.settings.{part}={path!r}: no row of {name} has such a field")
    return found


class BadRows:
    """Collects rows that cannot be used: reported in one error, or counted and left out.

    Args:
        name: the file or data set.
        policy: "error" or "skip" (`data.bad_rows`).

    Attributes:
        count: bad rows so far.

    Raises:
        ValueError: If the policy is neither.
    """

    def __init__(self, name: str, policy: str):
        if policy not in ("error", "skip"):
            raise ValueError(f"data.bad_rows={policy!r} must be 'error' or 'skip'")
        self._name, self._policy, self.count = name, policy, 0
        self._first: list[str] = []

    def add(self, where: str, why: str) -> None:
        """Counts the row at the place `where`, which is bad for the reason `why`."""
        self.count += 1
        if len(self._first) < _SHOWN:
            self._first.append(f"{where}: {why}")

    def settle(self) -> None:
        """Ends the collection: logs the number of rows skipped.

        Raises:
            ValueError: If there are bad rows and the policy is "error".
        """
        if not self.count:
            return
        text = "\n  ".join([f"data.task={self._name!r}: {self.count} bad rows", *self._first])
        if self._policy == "error":
            raise ValueError(f"{text}\nCorrect them, or set data.bad_rows to 'skip'")
        logging.warning("%s\n  skipped", text)


def fields_of(name: str, settings: Mapping[str, str]) -> Fields:
    """The fields of a file or data set, with the settings applied.

    Raises:
        ValueError: If a setting is unknown, or is not text.
    """
    if name.endswith(SUFFIXES):
        base = Fields()
    else:
        base = DATASETS.get(name) or Fields(hub=name, split="train")
    legal = [f.name for f in dataclasses.fields(Fields) if base.hub or f.name not in ("hub", "split", "subset")]
    for key, value in settings.items():
        if key not in legal:
            near = ", ".join(difflib.get_close_matches(key, legal, 1) or legal)
            raise ValueError(f"data.settings.{key}: {name} has no such setting; it has {near}")
        if not isinstance(value, str):
            raise ValueError(f"data.settings.{key}={value!r} must be text")
    return dataclasses.replace(base, **settings)


def _rows(name: str, fields: Fields, root: str) -> Iterator[tuple[str, Any, str]]:
    """Yields (place, row, the reason why the row cannot be used or "")."""
    if fields.hub:
        yield from _hub_rows(fields, root)
        return
    path = epath.Path(name)
    if not path.exists():
        raise ValueError(f"data.task={name!r}: no such file")
    yield from _jsonl_rows(path) if name.endswith(".jsonl") else _parquet_rows(path)


def _jsonl_rows(path: epath.Path) -> Iterator[tuple[str, Any, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield where, None, f"not UTF-8 at byte {error.start}"
            except (ValueError, RecursionError) as error:
                yield where, None, f"not JSON ({error})"
            else:
                yield where, row, "" if isinstance(row, dict) else f"a {type(row).__name__}, not an object"


def _parquet_rows(path: epath.Path) -> Iterator[tuple[str, Any, str]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install pyarrow") from error
    try:
        with path.open("rb") as file:
            opened, number = pyarrow.parquet.ParquetFile(file), 0
            for batch in opened.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row, ""
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"data.task: {path} is not a sound Parquet file: {error}") from error


def _hub_rows(fields: Fields, root: str) -> Iterator[tuple[str, Any, str]]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{fields.hub} needs the datasets library: pip install datasets") from error
    source = fields.hub
    if root:
        folder = epath.Path(root) / fields.hub
        if not folder.is_dir():
            raise ValueError(f"data.root={root!r} holds no copy of {fields.hub}: there is no folder {folder}")
        source = str(folder)
    name = f"{fields.hub}{f' ({fields.subset})' if fields.subset else ''}"
    progress = datasets.utils.logging
    before = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        data = datasets.load_dataset(source, fields.subset or None, split=fields.split)
    except Exception as error:  # of many types; the message names the cause: a split, a subset, the network
        hint = "" if root else "; without a network, set data.root to a folder with a copy in owner/name"
        raise ValueError(
            f"data.task: {name}, split {fields.split!r} could not be loaded: {type(error).__name__}: {error}{hint}"
        ) from error
    finally:
        if before:
            progress.enable_progress_bar()
    needed = {getattr(fields, part).split(".")[0] for part in _READ} - {""}
    if needed <= set(data.column_names) and not _ENTRY_KINDS.fullmatch(fields.kind):
        data = data.select_columns(sorted(needed))  # so that no picture is decoded needlessly
    for number, row in enumerate(data, start=1):
        yield f"{name} {fields.split}, row {number}", row, ""


def _problem(row: dict[str, Any], fields: Fields) -> tuple[Problem | None, str]:
    """(problem, "") or (None, the reason why the row cannot be used)."""
    found: dict[str, Any] = {}
    for part in _READ:
        path = getattr(fields, part)
        value = _field(row, path) if path else ""
        if value is None and part in ("solution", "difficulty"):
            value = ""  # some rows may lack these; `read` requires that at least one has them
        if value is None:
            return None, f"no field {path!r} ({part}); it has {', '.join(sorted(map(str, row))) or 'none'}"
        found[part] = value
    question = _text(found["question"]).removeprefix(fields.before).removesuffix(fields.after).strip()
    answer, solution = _text(found["answer"]).strip(), _text(found["solution"]).strip()
    if fields.answer_after:
        answer = answer.rpartition(fields.answer_after)[2].strip()
    if not question:
        return None, f"field {fields.question!r} contains no question"
    if not answer:
        return None, f"field {fields.answer!r} contains no answer"
    if any("\ud800" <= c <= "\udfff" for c in question):
        return None, f"field {fields.question!r} holds a lone surrogate, which no tokenizer takes"
    entry: Any = row if _ENTRY_KINDS.fullmatch(fields.kind) else answer
    return Problem(
        hash_text(question, 4), question, entry, fields.kind, _text(found["difficulty"]), solution, answer
    ), ""


def _field(row: Any, path: str) -> Any:
    """The value at a path such as "prompt.0.content", or None if there is none."""
    for key in path.split("."):
        if isinstance(row, dict):
            row = row.get(key)
        elif isinstance(row, list) and key.isdigit() and int(key) < len(row):
            row = row[int(key)]
        else:
            return None
    return row


def _text(value: Any) -> str:
    if isinstance(value, list):  # several answers, all of which are required
        return ", ".join(_text(v) for v in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
