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

from entropy_rl.record import files
from entropy_rl.record.files import in_bucket


def read(path: epath.Path | str) -> list[dict[str, Any]]:
    """The rows of a file. A last line without its newline was torn by a kill; it is dropped, and that is logged.

    Raises:
        ValueError: If a whole line is not a JSON object; the message gives the file and the line.
        FileNotFoundError: If there is neither such a file nor a part of it.
    """
    return [row for _, row in numbered(path)]


def numbered(path: epath.Path | str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file as `read` returns them, each with its place: "runs/a/metrics.jsonl, line 3".

    Raises:
        ValueError: As `read`.
        FileNotFoundError: As `read`.
    """
    path = epath.Path(path)
    if not in_bucket(path):
        return list(_rows(path))
    if not (found := parts(path)):
        raise FileNotFoundError(f"{path}: no object has this name followed by a number")
    return [placed for part in found for placed in _rows(part)]


def step_of(place: str, row: dict[str, Any]) -> int:
    """The row's step.

    Raises:
        ValueError: It has none; names its place.
    """
    step = row.get("step")
    if type(step) is not int or step < 0:
        raise ValueError(
            f"{place}: step is {step!r}, expected an int from 0 on; put the line back as it was, or remove it"
        )
    return step


def exists(path: epath.Path) -> bool:
    """Whether there is such a file, or a part of it."""
    return bool(parts(path)) if in_bucket(path) else path.exists()


def append(path: epath.Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows: on a disk to the end of the file, synced; in a bucket as the next part.

    Raises:
        ValueError: If a row holds NaN or infinity.
        OSError: If the rows cannot be written, for instance because the disk is full; the file is as it was.
    """
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    if in_bucket(path):
        number = int(found[-1].name.rpartition(".")[2]) if (found := parts(path)) else 0
        path.with_name(f"{path.name}.{number + 1:06d}").write_text(text)
        return
    before = path.stat().length if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # The rows must be as durable as the checkpoints that follow them.
    except OSError:
        os.truncate(path, before)  # no half line; frees space, so it does not fail on a full disk
        raise


def drop_after(path: epath.Path, last: int) -> int:
    """Drops the rows of the steps after `last`, and a torn last line. They are logged.

    Returns:
        The last step left, -1 if none is.

    Raises:
        ValueError: A line is not a JSON object with a step; names it. Nothing was dropped then.
    """
    if not exists(path):
        return -1
    numbered_parts = [(part, list(_rows(part))) for part in (parts(path) if in_bucket(path) else [path])]
    stepped = [(part, [(step_of(place, row), row) for place, row in rows]) for part, rows in numbered_parts]
    step = -1
    for part, rows in stepped:
        kept = [row for number, row in rows if number <= last]
        step = kept[-1]["step"] if kept else step
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if text.encode() == part.read_bytes():
            continue
        logging.warning("%s: %d rows past step %d dropped", part, len(rows) - len(kept), last)
        files.replace(part, text)
    return step


def parts(path: epath.Path) -> list[epath.Path]:
    """The objects that a file in a bucket consists of, in order."""
    if not path.parent.exists():
        return []
    numbered = (p for p in path.parent.iterdir() if p.name.startswith(path.name + "."))
    return sorted((p for p in numbered if p.name.rpartition(".")[2].isdigit()), key=lambda p: p.name)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON; a value that was not measured is null")


def _rows(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            if not line.endswith(b"\n"):
                logging.warning("%s: torn (%d bytes without a newline), dropped", place, len(line))
                return
            try:
                row = json.loads(line, parse_constant=_refuse)
            except ValueError as error:
                raise ValueError(f"{place}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{place}: a JSON {type(row).__name__}, expected an object; remove the line")
            yield place, row
