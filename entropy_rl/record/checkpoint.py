"""Checkpoints that are trusted only when every byte of them is accounted for.

    <directory>/<step>/state/<leaf>/...    Orbax, one folder a leaf (zarr, no OCDBT, no compression)
    <directory>/<step>/manifest.json       ours, written last: it is the commit

Orbax gives back a flipped bit as a wrong number, takes an empty folder for a step, and restores float32 as
bfloat16 if asked to. So a step exists when its manifest does, and is restored only after the size and CRC32
of each of its files, and the shape and dtype of each of its leaves, agree with that manifest. Nothing here
renames or appends, so the same code serves a bucket.
"""

import json
import logging as python_logging
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from entropy_rl.runtime import distributed

PyTree = Any
_MANIFEST = "manifest.json"
_STATE = "state"
_READ_BYTES = 1 << 24


class Checkpoints:
    """The checkpoints of one run: saved at step boundaries, the newest `keep` of them kept.

    Raises ValueError if `keep` is below 1.
    """

    def __init__(self, directory: epath.Path | str, keep: int = 2):
        if keep < 1:
            raise ValueError(f"checkpoint.keep: got {keep}, expected at least 1 (2 survives one damaged step)")
        self._directory = epath.Path(directory)
        self._keep = keep
        # Compression costs time and saves 9% on weights. The commit-file class writes in place: no rename.
        self._orbax = ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False),
            temporary_path_class=ocp.path.atomicity.CommitFileTemporaryPath,
        )

    def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Writes `state` (a tree of jax.Array) and `meta` (JSON) as `step`; returns once both are on disk.

        Older steps are pruned only after this one is committed. So are steps later than this one: they belong
        to a history that a restore has abandoned. The same step saved before is replaced, and is gone if this
        save fails. The buffers may be donated as soon as this returns.

        Raises ValueError naming the leaf that is not a jax.Array or holds a NaN or infinity (before anything
        is written), and whatever the file system raises (disk full), leaving the other steps as they were.
        """
        leaves = _named_leaves(state)
        _refuse_unsavable(leaves)
        first = distributed.first()
        folder = self._folder(step)
        if first:
            for leftover in [*self._unfinished(), step]:
                self._remove(leftover)
            folder.mkdir(parents=True, exist_ok=True)
        with _quiet_orbax():
            self._orbax.save(folder / _STATE, args=ocp.args.PyTreeSave(leaves))
        files = _file_records(folder / _STATE)
        if first:
            manifest = {
                "step": step,
                "meta": meta,
                "jax": jax.__version__,
                "leaves": {name: _spec(x) for name, x in leaves.items()},
                "files": files,
            }
            _put(folder / _MANIFEST, _seal(manifest))
            self._prune(step)
        multihost_utils.sync_global_devices(f"checkpoint {step} committed")

    def steps(self) -> list[int]:
        """Committed steps, ascending: those whose manifest was written to its end, damaged since or not."""
        return [step for step in self._numbered() if self._is_committed(step)]

    def latest(self) -> int | None:
        """The newest committed step, or None where there is none."""
        return max(self.steps(), default=None)

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]] | None:
        """Returns (state, meta) of `step`, or of the newest undamaged step; None if nothing was ever saved.

        abstract_state: a tree of jax.ShapeDtypeStruct; each leaf is restored to its sharding, on any mesh,
          and to the first local device where it has none.
        meta: as saved, with the restored "step" added.

        A damaged step is logged with the leaves that are damaged, and the one before it is tried.
        Raises RuntimeError if every committed step (or the one asked for) is damaged, and ValueError if
        `step` was never saved, or naming the leaf whose name, shape or dtype differs from what was saved.
        """
        committed = self.steps()
        for unfinished in self._unfinished():
            logging.warning(
                "%s has no manifest: not a finished checkpoint, ignored",
                self._folder(unfinished),
            )
        if step is not None and step not in committed:
            raise ValueError(f"{self._directory}: no checkpoint of step {step}; the steps are {committed}")
        tried = committed[::-1] if step is None else [step]
        if not tried:
            return None
        for candidate in tried:
            folder = self._folder(candidate)
            manifest = _unseal((folder / _MANIFEST).read_bytes())
            damage = [f"{_MANIFEST} is damaged"] if manifest is None else _damage(folder / _STATE, manifest)
            if manifest is not None and not damage:
                return self._load(candidate, manifest, abstract_state)
            logging.warning(
                "checkpoint %s is damaged and cannot be used: %s",
                folder,
                "; ".join(damage),
            )
        raise RuntimeError(
            f"{self._directory}: no undamaged checkpoint among steps {tried}; the log names what is damaged. "
            "Put back a copy, or move the directory away to start afresh"
        )

    def _load(self, step: int, manifest: dict, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
        folder = self._folder(step)
        wanted = _named_leaves(abstract_state)
        _refuse_mismatch(folder, saved=manifest["leaves"], wanted=wanted)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        restore_args = {
            name: ocp.ArrayRestoreArgs(sharding=x.sharding or here, global_shape=x.shape, dtype=x.dtype)
            for name, x in wanted.items()
        }
        leaves = self._orbax.restore(
            folder / _STATE,
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args),
        )
        # The tree's own structure (NamedTuples, empty states) comes from the caller, never from the disk.
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), [leaves[name] for name in wanted])
        return state, manifest["meta"] | {"step": step}

    def _folder(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _numbered(self) -> list[int]:
        if not self._directory.exists():
            return []
        names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        return sorted(int(n) for n in names if n.isascii() and n.isdigit() and n == str(int(n)))

    def _is_committed(self, step: int) -> bool:
        manifest = self._folder(step) / _MANIFEST
        # The closing newline is the last byte put: without it the process died while writing the manifest.
        return manifest.exists() and manifest.read_bytes().endswith(b"\n")

    def _unfinished(self) -> list[int]:
        return [step for step in self._numbered() if not self._is_committed(step)]

    def _prune(self, newest: int) -> None:
        steps = self.steps()
        for step in [s for s in steps if s > newest]:
            logging.warning(
                "checkpoint %s is later than step %d, just saved: removed",
                self._folder(step),
                newest,
            )
            self._remove(step)
        for step in [s for s in steps if s <= newest][: -self._keep]:
            self._remove(step)

    def _remove(self, step: int) -> None:
        """Removes what `save` wrote, and the folder unless somebody put something else there."""
        folder = self._folder(step)
        (folder / _MANIFEST).unlink(missing_ok=True)  # First, so that half a removal is not a checkpoint.
        if (folder / _STATE).exists():
            (folder / _STATE).rmtree()
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves by dotted path, in the tree's order. The name is also the leaf's folder on disk."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in named or not name:
            raise ValueError(f"state: leaf {name!r} has no name of its own; rename a key of the state")
        named[name] = leaf
    return named


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


def _refuse_unsavable(leaves: dict[str, Any]) -> None:
    for name, x in leaves.items():
        if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            got = x.dtype if isinstance(x, jax.Array) else type(x).__name__
            raise ValueError(f"state: leaf {name!r} is {got}; expected a jax.Array of numbers or bools")
    finite = {n: _all_finite(x) for n, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    bad = [name for name, ok in jax.device_get(finite).items() if not ok]
    if bad:
        raise ValueError(f"state: not saved, {_some(bad)} not finite; the last checkpoint is left as it was")


def _spec(x: Any) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype)}


def _refuse_mismatch(folder: epath.Path, saved: dict[str, dict], wanted: dict[str, Any]) -> None:
    missing, extra = (
        [n for n in wanted if n not in saved],
        [n for n in saved if n not in wanted],
    )
    if missing or extra:
        sides = [f"it lacks {_some(missing)}"] * bool(missing) + [f"only it has {_some(extra)}"] * bool(extra)
        raise ValueError(f"{folder}: the checkpoint is of another state: {' and '.join(sides)}")
    for name, x in wanted.items():
        if saved[name] != _spec(x):
            there, here = (f"{s['dtype']}{s['shape']}" for s in (saved[name], _spec(x)))
            raise ValueError(f"{folder}: leaf {name!r} was saved as {there}, but {here} is expected here")


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"leaf {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _file_records(state: epath.Path) -> dict[str, list[int]]:
    """{path relative to `state`: [size, CRC32]} for every file under it, each read once, by one of the processes."""
    files = sorted(_walk(state))

    def records(some: list[epath.Path]) -> list[list[int]]:
        with ThreadPoolExecutor() as pool:  # zlib lets go of the GIL
            return list(pool.map(_size_and_crc, some))

    found = distributed.share(files, records)
    return {str(file.relative_to(state)): record for file, record in zip(files, found, strict=True)}


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _size_and_crc(path: epath.Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return [size, crc]


def _damage(state: epath.Path, manifest: dict) -> list[str]:
    """What is wrong with the files on disk, one phrase a file, naming its leaf; empty if nothing is."""
    found = _file_records(state) if state.exists() else {}
    phrases = []
    for file, expected in manifest["files"].items():
        if found.get(file) == expected:
            continue
        leaf = max(
            (n for n in manifest["leaves"] if file.startswith(n + "/")),
            key=len,
            default=None,
        )
        what = f"leaf {leaf!r} (file {file})" if leaf is not None else f"file {file}"
        if file not in found:
            phrases.append(f"{what} is missing")
        elif found[file][0] != expected[0]:
            phrases.append(f"{what} has {found[file][0]} bytes, {expected[0]} were written")
        else:
            phrases.append(f"{what} has CRC32 {found[file][1]:08x}, {expected[1]:08x} was written")
    return phrases


def _seal(manifest: dict[str, Any]) -> str:
    body = json.dumps(manifest)
    return f'{{"crc32": {zlib.crc32(body.encode())},\n "manifest": {body}}}\n'


def _unseal(text: bytes) -> dict[str, Any] | None:
    """The manifest, or None if its own CRC32 does not fit: then no figure in it can be trusted."""
    try:
        sealed = json.loads(text)
        body = json.dumps(sealed["manifest"])
        return sealed["manifest"] if zlib.crc32(body.encode()) == sealed["crc32"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _put(path: epath.Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        if "://" not in str(path):  # a bucket's object is durable once closed
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Drops Orbax's warning, at every save without OCDBT, that there is no OCDBT to merge."""

    def keep(record: python_logging.LogRecord) -> bool:
        return "Skipping merge of OCDBT" not in str(record.msg)

    logger = logging.get_absl_logger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
