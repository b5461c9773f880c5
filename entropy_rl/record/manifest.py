"""The manifest of a checkpoint: every leaf's shape and dtype, every file's size and CRC32, and a CRC32 of all that."""

import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import jax
from etils import epath

from entropy_rl.runtime import distributed

_READ_BYTES = 1 << 24


class Leaf(TypedDict):
    """Shape and dtype of one leaf of a state."""

    shape: list[int]
    dtype: str


class Manifest(TypedDict):
    """The contents of a manifest, in the order of the file.

    Attributes:
        step: the step of the checkpoint.
        meta: JSON that the caller wants back.
        jax: the version of JAX that wrote the checkpoint.
        leaves: by name.
        files: [size, CRC32] by path, relative to the folder of the state.
    """

    step: int
    meta: dict[str, Any]
    jax: str
    leaves: dict[str, Leaf]
    files: dict[str, list[int]]


def write(path: epath.Path, manifest: Manifest) -> None:
    """Writes the manifest with its own CRC32. Once this returns, the file is on disk.

    Raises:
        OSError: If the file system refuses the file.
    """
    body = json.dumps(manifest)
    text = f'{{"crc32": {zlib.crc32(body.encode())},\n "manifest": {body}}}\n'
    with path.open("w") as file:
        file.write(text)
        if "://" not in str(path):  # an object in a bucket is durable once closed
            file.flush()
            os.fsync(file.fileno())


def is_complete(path: epath.Path) -> bool:
    """Whether the manifest exists and was written to its end, damaged since or not."""
    # The closing newline is the last byte written: without it the process died while writing.
    return path.exists() and path.read_bytes().endswith(b"\n")


def read(path: epath.Path) -> Manifest | None:
    """The manifest, or None if it does not match its own CRC32: then no figure in it can be trusted."""
    try:
        sealed = json.loads(path.read_bytes())
        body = json.dumps(sealed["manifest"])
        return sealed["manifest"] if zlib.crc32(body.encode()) == sealed["crc32"] else None
    except (ValueError, KeyError, TypeError):
        return None


def leaf(x: jax.Array | jax.ShapeDtypeStruct) -> Leaf:
    """The manifest's entry for a leaf."""
    return {"shape": list(x.shape), "dtype": str(x.dtype)}


def file_records(state: epath.Path, without: Collection[str] = ()) -> dict[str, list[int]]:
    """[size, CRC32] of every file under `state`, by relative path. Each file is read once, by one of the processes.

    Args:
        state: the folder.
        without: names of folders directly under it that are left out.
    """
    files = sorted(file for path in state.iterdir() if path.name not in without for file in _walk(path))

    def records(some: list[epath.Path]) -> list[list[int]]:
        with ThreadPoolExecutor() as pool:  # zlib releases the GIL
            return list(pool.map(_size_and_crc, some))

    found = distributed.share(files, records)
    return {str(file.relative_to(state)): record for file, record in zip(files, found, strict=True)}


def _walk(path: epath.Path) -> Iterator[epath.Path]:
    """The file, or every file under the folder."""
    if path.is_dir():
        for inner in path.iterdir():
            yield from _walk(inner)
    else:
        yield path


def _size_and_crc(path: epath.Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return [size, crc]


def damage(state: epath.Path, manifest: Manifest, without: Collection[str] = ()) -> list[str]:
    """The files under `state` that differ from the manifest: one phrase per file, with its leaf; empty if none does.

    Args:
        state: the folder.
        manifest: its manifest.
        without: names of leaves whose files are not looked at.
    """
    found = file_records(state, without) if state.exists() else {}
    phrases = []
    for file, expected in manifest["files"].items():
        if found.get(file) == expected or file.partition("/")[0] in without:
            continue
        name = max((n for n in manifest["leaves"] if file.startswith(n + "/")), key=len, default=None)
        place = f"leaf {name!r} (file {file})" if name is not None else f"file {file}"
        if file not in found:
            phrases.append(f"{place} is missing")
        elif found[file][0] != expected[0]:
            phrases.append(f"{place} has {found[file][0]} bytes, {expected[0]} were written")
        else:
            phrases.append(f"{place} has CRC32 {found[file][1]:08x}, {expected[1]:08x} was written")
    return phrases


def refuse_mismatch(
    folder: epath.Path, saved: Mapping[str, Leaf], wanted: Mapping[str, Leaf], partial: bool = False
) -> None:
    """Checks that the leaves saved in `folder` are those that are wanted.

    Args:
        folder: for the message.
        saved: the leaves of the manifest.
        wanted: the leaves to read.
        partial: more may be saved than is wanted.

    Raises:
        ValueError: If a leaf is missing, is not wanted, or has another shape or dtype; the message names it.
    """
    missing = [name for name in wanted if name not in saved]
    extra = [name for name in saved if name not in wanted and not partial]
    if missing or extra:
        sides = [f"it lacks {listed(missing)}"] * bool(missing) + [f"it also holds {listed(extra)}"] * bool(extra)
        raise ValueError(f"{folder}: the checkpoint holds another state: {' and '.join(sides)}")
    for name, expected in wanted.items():
        if saved[name] != expected:
            there, here = (f"{spec['dtype']}{spec['shape']}" for spec in (saved[name], expected))
            raise ValueError(f"{folder}: leaf {name!r} was saved as {there}, but {here} is expected here")


def listed(names: Sequence[str]) -> str:
    """The leaves' names for a message, at most five of them.

    >>> listed(["a"])
    "leaf 'a'"
    >>> listed(list("abcdefg"))
    "leaves 'a', 'b', 'c', 'd', 'e' and 2 more"
    """
    shown = ", ".join(repr(name) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{'leaf' if len(names) == 1 else 'leaves'} {shown}{more}"
