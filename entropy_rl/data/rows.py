"""The rows of a file: JSON Lines, JSON, CSV and Parquet, the first three also as .gz; and a value of a row as text."""

import contextlib
import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from typing import IO, Any

from etils import epath

from entropy_rl.runtime.files import expand, refuse_pointer

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
SUFFIXES = (*FORMATS, ".jsonl.gz", ".json.gz", ".csv.gz")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MAX_CELL = 2**31 - 1  # characters of a cell; the csv module's own limit, 131072, is less than a long solution
_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

Row = tuple[str, Any, str]  # (the place, the row, the reason why it cannot be used or "")


class Number(float):
    """A number of a JSON file that remembers how it was written: 0.00001 is not 1e-05, and 3.50 is not 3.5."""

    def __new__(cls, text: str) -> "Number":
        """The number that this text is."""
        self = super().__new__(cls, text)
        self.text = text
        return self

    text: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and sent to other processes as a plain float."""
        return float, (float(self),)


def is_file(name: str) -> bool:
    """Whether a name of `data.task` is that of a file: by its suffix, or it is neither a folder nor owner/name."""
    if name.lower().endswith(SUFFIXES):
        return True
    try:
        path = epath.Path(expand(name))
        return path.is_file() or not (_HUB_NAME.fullmatch(name) or path.is_dir())
    except (KeyError, ImportError, ValueError, OSError):  # a file system that is not known: `file_rows` says so
        return True


def short_name(name: str) -> str:
    """The name of a file or data set without folders and the suffix of its format."""
    last = name.rstrip("/").rpartition("/")[2]
    suffix = max((s for s in SUFFIXES if last.lower().endswith(s)), key=len, default="")
    return last[: len(last) - len(suffix)]


def file_rows(name: str) -> Iterator[Row]:
    """The rows of a file, with their places.

    Args:
        name: a path, or a URL of a file system that etils knows. The suffix determines the format. A .json file holds
            one list of objects, or is read as JSON Lines; a .csv file has its fields' names in the first line.

    Yields:
        Each row, an object, and where it is.

    Raises:
        ValueError: If there is no such file, it is of another kind or broken, or the library that reads it is missing.
    """
    try:
        path = epath.Path(expand(name))
        there = path.is_file()
    except (KeyError, ImportError) as error:
        raise ValueError(f"data.task={name!r}: {error} is not a file system that can be read here") from None
    if not there:
        raise ValueError(f"data.task={name!r}: no such file")
    refuse_pointer(path)
    lower = name.lower()
    if not lower.endswith(SUFFIXES):
        raise ValueError(
            f"data.task={name!r}: a file of this kind cannot be read; convert it to one of {', '.join(SUFFIXES)}, for "
            "example with pandas: read_excel(...).to_json('x.jsonl', orient='records', lines=True)"
        )
    kind = next(s for s in FORMATS if lower.removesuffix(".gz").endswith(s))
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open("rb") as plain, contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(gzip.open(plain)) if lower.endswith(".gz") else plain
            yield from {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows}[kind](path, file)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data.task: {path} cannot be read: {error}") from error


def text_of(value: Any) -> str:
    """A value of a row as text: numbers as they were written, several values with commas between them.

    >>> text_of(json.loads("0.00001", parse_float=Number)), text_of(1e-05), text_of(2.0), text_of(["1", 2])
    ('0.00001', '0.00001', '2', '1, 2')

    Raises:
        ValueError: If it is null, an object, or not a finite number; the message continues "field x …".
    """
    if value is None:
        raise ValueError("is null")
    if isinstance(value, list | tuple):  # several answers, all of which are required
        if any(isinstance(one, list | tuple | dict) for one in value):
            raise ValueError(f"is a list of lists or objects: {value!r:.80}; it must hold text or numbers")
        texts = [text_of(one) for one in value]
        if any(not text.strip() for text in texts):
            raise ValueError(f"is a list with an empty text: {value!r:.80}")
        return ", ".join(texts)
    if isinstance(value, dict):
        raise ValueError(f"is an object with {', '.join(map(str, value))}; name the field inside it: 'name.inner'")
    if isinstance(value, bytes | bytearray):
        raise ValueError(f"is binary data: {value!r:.40}; it must hold text or numbers")
    if isinstance(value, Decimal):
        return _decimal(str(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"is {value}, not a number: an empty cell, or the result of a division by zero")
        return _decimal(value.text if isinstance(value, Number) else repr(value))
    return str(value)


def _decimal(text: str) -> str:
    """A number without an exponent, and without a fraction of zeros; otherwise as it is written."""
    mantissa = text.lower().partition("e")[0]
    if not mantissa.strip("-+0."):
        return "0"
    if not float(text):
        raise ValueError(f"is {text}, which is too small for a number")  # and would be written with as many zeros
    plain = format(Decimal(text), "f")
    whole, _, fraction = plain.partition(".")
    return plain if fraction.strip("0") else whole


def _decoded(raw: bytes) -> str:
    """The text of UTF-8 bytes, without a byte order mark; raises ValueError."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


def _parsed(text: str) -> Any:
    """A JSON value, with numbers that remember how they were written; raises ValueError."""
    try:
        return json.loads(text, parse_float=Number, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file; raises ValueError for a key that is there twice, of which Python drops the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in names if names.count(key) > 1)!r} twice")
    return found


def _jsonl_rows(path: epath.Path, file: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        where = f"{path}, line {number}"
        if number == 1 and line.startswith(_UTF16):
            raise ValueError(f"data.task: {path} is UTF-16; save it as UTF-8")
        if number == 1 and line.startswith(_GZIP):
            raise ValueError(f"data.task: {path} is compressed; add .gz to its name")
        if not line.strip():
            continue
        try:
            row = _parsed(_decoded(line) if number == 1 else line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield where, None, f"not UTF-8 at byte {error.start}"
        except ValueError as error:
            yield where, None, str(error)
        else:
            yield where, row, _no_object(row)


def _no_object(row: Any) -> str:
    return "" if isinstance(row, dict) else f"a {type(row).__name__}, not an object"


def _json_rows(path: epath.Path, file: IO[bytes]) -> Iterator[Row]:
    raw = file.read()
    if not raw.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _jsonl_rows(path, io.BytesIO(raw))
        return
    try:
        rows = _parsed(_decoded(raw))
    except ValueError as error:
        raise ValueError(f"data.task: {path} is {error}; it must hold one list of objects, or JSON Lines") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row, _no_object(row)


def _csv_rows(path: epath.Path, file: IO[bytes]) -> Iterator[Row]:
    try:
        text = _decoded(file.read())
    except ValueError as error:
        raise ValueError(f"data.task: {path} is {error}; save it as UTF-8") from None
    csv.field_size_limit(_MAX_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if len(set(names)) < len(names) or "" in names:
            raise ValueError(f"data.task: {path}, line 1: the names of the fields are {names}; each must be different")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            short = any(value is None for value in row.values())
            wrong = "fewer" if short else "more" if None in row else ""
            yield where, row, f"it has {wrong} values than line 1 has names" if wrong else ""
    except csv.Error as error:
        raise ValueError(f"data.task: {path}, line {reader.reader.line_num} is not CSV: {error}") from None


def _parquet_rows(path: epath.Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            opened, number = pyarrow.parquet.ParquetFile(file), 0
            for batch in opened.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row, ""
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"data.task: {path} is not a sound Parquet file: {error}") from error
