"""Problems from files and Hugging Face data sets; every row is checked before any other work."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath

from entropy_rl.data.datasets import DATASETS, Fields
from entropy_rl.data.rows import Row, file_rows, is_file, text_of
from entropy_rl.data.source import Problem, hash_text
from entropy_rl.runtime.files import expand, refuse_url

_ABSENT = object()
_EMPTY_CELLS = re.compile(
    r"(?i:nan|null|<na>|nat|#?n/a|#div/0!|#value!|#ref!)|None"
)  # as pandas, Excel, Python write one
_SURROGATE = re.compile("[\ud800-\udfff]")
# \f, \b, \t and \r with the rest of a command of LaTeX: \frac, \binom, \text{, \right.
_HALF_ESCAPED = re.compile(
    r"\x08[a-z]+|\x0c(?:rac|orall|loor|box)|\t(?:ext(?:bf|it|rm)?\{|imes\b|heta\b|frac\{|riangle\b)|\r(?:ight\b|ho\b|angle\b)"
)
_GSM8K = re.compile(r"(?m)\S\s*^####\s")
_MESSAGES = re.compile(r"\[\s*\{\s*['\"](?:role|content|from)['\"]\s*:")
_SHOWN = 3  # bad rows in an error message
_READ = ("question", "answer", "solution", "difficulty")  # attributes of `Fields` that name a field of a row
_ENTRY_KINDS = re.compile(r"reasoning_gym:\w+|[\w.]+:\w+")


def is_stored(name: str) -> bool:
    """Whether `data.task` names a file or a data set rather than a reasoning-gym task."""
    return name in DATASETS or "/" in name or "." in name


def read(name: str, settings: Mapping[str, str], root: str, bad_rows: str) -> list[tuple[Problem, str]]:
    """The problems of a file or data set.

    Args:
        name: a file (see `rows.file_rows`), a name of `DATASETS`, or a hub name owner/name (`data.task`).
        settings: attributes of `Fields` that differ from the data set's own (`data.settings`).
        root: a folder with local copies of hub data sets; "": the hub (`data.root`).
        bad_rows: "error" or "skip" (`data.bad_rows`), the treatment of a row that is not JSON, is not UTF-8, lacks a
            field or a question, has no text or number in one, or gives a different answer to a question than an earlier
            row. Skipped rows are counted in the log. A row that repeats an earlier one is dropped either way.

    Returns:
        (problem, the place that it came from, such as "file, line 3"), in the order of the rows.

    Raises:
        ValueError: If there is no such file, data set, split or setting, if the library that reads the format is not
            installed, if a row is bad, or if no row is left. The message names the file and the line.
    """
    refuse_url("data.task", name)
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
        ValueError: If a setting or the kind of verifier is unknown, or a setting is not text.
    """
    base = DATASETS.get(name) or (Fields() if is_file(name) else Fields(hub=expand(name), split="train"))
    legal = [f.name for f in dataclasses.fields(Fields) if base.hub or f.name not in ("hub", "split", "subset")]
    for key, value in settings.items():
        if key not in legal:
            near = ", ".join(difflib.get_close_matches(key, legal, 1) or legal)
            raise ValueError(f"data.settings.{key}: {name} has no such setting; it has {near}")
        if not isinstance(value, str):
            raise ValueError(f"data.settings.{key}={value!r} must be text")
    fields = dataclasses.replace(base, **settings)
    if fields.kind not in ("math", "exact", "format") and not _ENTRY_KINDS.fullmatch(fields.kind):
        raise ValueError(
            f"data.settings.kind={fields.kind!r} of {name}: unknown; expected 'math', 'exact', 'format', "
            "'reasoning_gym:<task>' or 'module:function'"
        )
    return fields


def _rows(name: str, fields: Fields, root: str) -> Iterator[Row]:
    """The rows of a file or data set."""
    if fields.hub:
        yield from _hub_rows(fields, root)
    else:
        yield from file_rows(name)


def _hub_rows(fields: Fields, root: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"data.task: {fields.hub} needs the datasets library: pip install datasets") from error
    source = fields.hub
    if root := expand(root):
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
    found: dict[str, str] = {}
    for part in _READ:
        path = getattr(fields, part)
        value = _field(row, path) if path else ""
        if part in ("solution", "difficulty") and (value is None or value is _ABSENT):
            value = ""  # some rows may lack these; `read` requires that at least one has them
        if value is _ABSENT:
            return None, f"no field {path!r} ({part}); it has {', '.join(sorted(map(str, row))) or 'none'}"
        try:
            found[part] = text_of(value) if part == "answer" else _single(value, path)
        except ValueError as error:
            return None, f"field {path!r} ({part}) {error}"
    question = found["question"].removeprefix(fields.before).removesuffix(fields.after).strip()
    answer, solution = found["answer"].strip(), found["solution"].strip()
    if fields.answer_after and fields.answer_after not in answer:
        return None, f"field {fields.answer!r} (answer) has no {fields.answer_after!r} (data.settings.answer_after)"
    if fields.kind == "math" and not fields.answer_after and _GSM8K.search(answer):
        return None, f"field {fields.answer!r} (answer) is a worked solution; set data.settings.answer_after to '####'"
    if fields.answer_after:
        answer = answer.rpartition(fields.answer_after)[2].strip()
    if not question:
        return None, f"field {fields.question!r} contains no question"
    if not answer:
        return None, f"field {fields.answer!r} contains no answer"
    if fields.kind == "math" and _EMPTY_CELLS.fullmatch(answer):
        return None, f"field {fields.answer!r} (answer) is the text {answer!r}, as an empty cell is often written"
    for part, text in (("question", question), ("answer", answer), ("solution", solution)):
        if _SURROGATE.search(text):
            return None, f"field {getattr(fields, part)!r} holds a lone surrogate, which no tokenizer takes"
        if half := _HALF_ESCAPED.search(found[part]):
            return None, (
                f"field {getattr(fields, part)!r} holds {half.group()!r}: a backslash of LaTeX was read as part of an "
                r"escape; in JSON it is written twice, such as \\frac"
            )
    entry: Any = row if _ENTRY_KINDS.fullmatch(fields.kind) else answer
    return Problem(hash_text(question, 4), question, entry, fields.kind, found["difficulty"], solution, answer), ""


def _field(row: Any, path: str) -> Any:
    """The value at a path such as "prompt.0.content", or `_ABSENT` if there is none."""
    for key in path.split("."):
        if isinstance(row, dict):
            row = row.get(key, _ABSENT)
        elif isinstance(row, list) and key.isdecimal() and int(key) < len(row):
            row = row[int(key)]
        else:
            return _ABSENT
    return row


def _single(value: Any, path: str) -> str:
    """The text of a value that is not several; raises ValueError."""
    if isinstance(value, list):
        users = [i for i, turn in enumerate(value) if isinstance(turn, dict) and turn.get("role") == "user"]
        if users:
            raise ValueError(
                f"is a list of {len(value)} messages, not text: set it to '{path}.{users[-1]}.content' in "
                "data.settings, and data.chat=True with data.system_prompt for a system's message"
            )
        raise ValueError(f"is a list, not text; name one entry, such as '{path}.0'")
    text = text_of(value)
    if _MESSAGES.match(text):
        raise ValueError("is a list of messages written as one text; store it as a list, or its content as a field")
    return text
