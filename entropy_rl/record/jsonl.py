"""Files of JSON objects, one a line, on a disk or in a bucket.

A bucket has no append and no rename: there `x.jsonl` is objects `x.jsonl.000001`, `x.jsonl.000002`, … that are put
once each, and reading joins them.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath


def read(path: epath.Path | str) -> list[dict[str, Any]]:
    """The rows of a file. A last line without its newline was torn by a kill: dropped, and logged.

    Raises:
        ValueError: a whole line is not JSON; names file and line.
        FileNotFoundError: no such file, nor parts of one.
    """
    path = epath.Path(path)
    if not in_bucket(path):
        return list(_rows(path))
    if not (found := parts(path)):
        raise FileNotFoundError(f"{path}: no object of that name with a number behind it")
    return [row for part in found for row in _rows(part)]


def exists(path: epath.Path) -> bool:
    """Whether there is a file of that name, or a part of one."""
    return bool(parts(path)) if in_bucket(path) else path.exists()


def append(path: epath.Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows: on a disk synced, in a bucket as the next part."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    if in_bucket(path):
        number = int(found[-1].name.rpartition(".")[2]) if (found := parts(path)) else 0
        path.with_name(f"{path.name}.{number + 1:06d}").write_text(text)
        return
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # A checkpoint must not outlive the rows of the steps before it.


def drop_after(path: epath.Path, last: int) -> int:
    """Drops the rows of steps past `last` and a torn last line. Returns the last step left, -1 if none."""
    if not exists(path):
        return -1
    step = -1
    for part in parts(path) if in_bucket(path) else [path]:
        rows = list(_rows(part))
        kept = [row for row in rows if row["step"] <= last]
        step = kept[-1]["step"] if kept else step
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if text.encode() == part.read_bytes():
            continue
        logging.warning("%s: %d rows past step %d dropped", part, len(rows) - len(kept), last)
        if in_bucket(path):
            part.write_text(text)  # one object, put whole
        else:
            aside = path.with_name(path.name + ".new")
            aside.write_text(text)
            aside.replace(path)
    return step


def in_bucket(path: epath.Path) -> bool:
    """gs://…, s3://… and their like."""
    return "://" in str(path)


def parts(path: epath.Path) -> list[epath.Path]:
    """The objects that a file in a bucket is made of, in order."""
    if not path.parent.exists():
        return []
    numbered = (p for p in path.parent.iterdir() if p.name.startswith(path.name + "."))
    return sorted((p for p in numbered if p.name.rpartition(".")[2].isdigit()), key=lambda p: p.name)


def _rows(path: epath.Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                logging.warning("%s, line %d: torn (%d bytes without an end), dropped", path, number, len(line))
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            yield row
