"""Files of JSON objects, one per line, on a disk or in a bucket.

A bucket has no append and no rename. There `x.jsonl` consists of objects `x.jsonl.000001`, `x.jsonl.000002`, …, each of
which is written once; reading joins them.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath


def read(path: epath.Path | str) -> list[dict[str, Any]]:
    """The rows of a file. A last line without its newline was torn by a kill; it is dropped, and that is logged.

    Raises:
        ValueError: If a whole line is not JSON; the message gives the file and the line.
        FileNotFoundError: If there is neither such a file nor a part of it.
    """
    path = epath.Path(path)
    if not in_bucket(path):
        return list(_rows(path))
    if not (found := parts(path)):
        raise FileNotFoundError(f"{path}: no object has this name followed by a number")
    return [row for part in found for row in _rows(part)]


def exists(path: epath.Path) -> bool:
    """Whether there is such a file, or a part of it."""
    return bool(parts(path)) if in_bucket(path) else path.exists()


def append(path: epath.Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows: on a disk to the end of the file, synced; in a bucket as the next part.

    Raises:
        ValueError: If a row holds NaN or infinity.
    """
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    if in_bucket(path):
        number = int(found[-1].name.rpartition(".")[2]) if (found := parts(path)) else 0
        path.with_name(f"{path.name}.{number + 1:06d}").write_text(text)
        return
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # The rows must be as durable as the checkpoints that follow them.


def drop_after(path: epath.Path, last: int) -> int:
    """Drops the rows of the steps after `last`, and a torn last line. They are logged.

    Returns:
        The last step left, -1 if none is.
    """
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
            part.write_text(text)  # one object, replaced as a whole
        else:
            aside = path.with_name(path.name + ".new")
            aside.write_text(text)
            aside.replace(path)
    return step


def in_bucket(path: epath.Path) -> bool:
    """Whether the path is one like gs://… or s3://…, not on a disk."""
    return "://" in str(path)


def parts(path: epath.Path) -> list[epath.Path]:
    """The objects that a file in a bucket consists of, in order."""
    if not path.parent.exists():
        return []
    numbered = (p for p in path.parent.iterdir() if p.name.startswith(path.name + "."))
    return sorted((p for p in numbered if p.name.rpartition(".")[2].isdigit()), key=lambda p: p.name)


def _rows(path: epath.Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                logging.warning("%s, line %d: torn (%d bytes without a newline), dropped", path, number, len(line))
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            yield row
