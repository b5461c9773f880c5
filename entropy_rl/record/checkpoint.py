"""Checkpoints that are trusted only when every byte of them is accounted for.

    <directory>/<step>/state/<leaf>/...    Orbax, one folder per leaf (zarr, no OCDBT, no compression)
    <directory>/<step>/manifest.json       ours, written last: it is the commit

On its own, Orbax returns a flipped bit as a wrong number, takes an empty folder for a step, and restores float32 as
bfloat16 if asked to. So a step exists only if its manifest does, and is restored only if the size and CRC32 of each
of its files, and the shape and dtype of each of its leaves, agree with that manifest. Nothing here renames or appends,
so the same code works in a bucket.
"""

import logging as python_logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from entropy_rl.record import manifest
from entropy_rl.record.manifest import Manifest
from entropy_rl.runtime import distributed

State = TypeVar("State")  # the caller's tree: NamedTuples and dicts of jax.Array, or of jax.ShapeDtypeStruct
_MANIFEST = "manifest.json"
_STATE = "state"


class Checkpoints:
    """The checkpoints of one run. They are saved at step boundaries; the newest of them are kept, and some for good."""

    def __init__(self, directory: epath.Path | str, keep: int = 2, keep_every: int = 0):
        """Opens a directory, which need not exist.

        Args:
            directory: on a disk or in a bucket.
            keep: how many of the newest checkpoints to keep.
            keep_every: checkpoints of its multiples, step 0 among them, are kept beside those; 0: none.

        Raises:
            ValueError: If `keep` is below 1, or `keep_every` below 0.
        """
        if keep < 1:
            raise ValueError(f"checkpoint.keep: got {keep}, expected at least 1 (2 survives one damaged step)")
        if keep_every < 0:
            raise ValueError(f"checkpoint.keep_every: got {keep_every}, expected at least 0 (0: none is kept for good)")
        self._directory = epath.Path(directory)
        self._keep, self._keep_every = keep, keep_every
        # Compression costs time and saves 9% on weights. The commit-file class writes in place: no rename.
        self._orbax = ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False),
            temporary_path_class=ocp.path.atomicity.CommitFileTemporaryPath,
        )

    def save(self, step: int, state: State, meta: dict[str, Any]) -> None:
        """Writes a state as `step`, and returns once it is on disk: its buffers may then be donated.

        Older steps are pruned only after this one is committed. So are later steps: they belong to a history that a
        restore has abandoned. A checkpoint of the same step is replaced, and is lost if this save fails.

        Args:
            step: becomes the name of the folder.
            state: a tree of jax.Array.
            meta: JSON, which `restore` returns.

        Raises:
            ValueError: If a leaf is not a jax.Array, or holds a NaN or infinity; the message names it. Nothing has
                been written then.
            OSError: If writing fails, for instance because the disk is full. The other steps stay as they were.
        """
        leaves = _named_leaves(state)
        _refuse_unsavable(leaves)
        try:
            self._write(step, leaves, meta)
        except Exception as error:  # an OSError, or whatever TensorStore makes of one
            raise OSError(
                f"{self._folder(step)} could not be saved ({_cause(error)}); the checkpoints before it are as they "
                "were. Once that is mended, the same command continues from the newest"
            ) from error

    def _write(self, step: int, leaves: Mapping[str, Any], meta: dict[str, Any]) -> None:
        writes = distributed.first()
        folder = self._folder(step)
        if writes:
            for leftover in [*self._unfinished(), step]:
                self._remove(leftover)
            folder.mkdir(parents=True, exist_ok=True)
        with _quiet_orbax():
            self._orbax.save(folder / _STATE, args=ocp.args.PyTreeSave(leaves))
        files = manifest.file_records(folder / _STATE)
        if writes:
            specs = {name: manifest.leaf(x) for name, x in leaves.items()}
            contents = Manifest(step=step, meta=meta, jax=jax.__version__, leaves=specs, files=files)
            manifest.write(folder / _MANIFEST, contents)
            self._prune(step)
        multihost_utils.sync_global_devices(f"checkpoint {step} committed")

    def refuse_files(self) -> None:
        """Call it before work starts: a file where a checkpoint will have to go would be found only then.

        Raises:
            ValueError: The directory is a file, or holds one that is named like a step.
        """
        if self._directory.exists():
            if not self._directory.is_dir():
                raise ValueError(f"{self._directory} is a file, but checkpoints go into a folder there; move it away")
            for path in self._directory.iterdir():
                if path.name.isdigit() and not path.is_dir():
                    raise ValueError(f"{path} is a file, where the checkpoint of that step has to go; move it away")

    def clear(self) -> None:
        """Removes all checkpoints, and the directory unless something else was put into it."""
        if distributed.first():
            for step in self._numbered():
                self._remove(step)
            if self._directory.exists() and not any(self._directory.iterdir()):
                self._directory.rmdir()

    def steps(self) -> list[int]:
        """The committed steps, ascending: those whose manifest was written to its end, damaged since or not."""
        return [step for step in self._numbered() if self._is_committed(step)]

    def latest(self) -> int | None:
        """The newest committed step, or None if there is none."""
        return max(self.steps(), default=None)

    def restore(
        self, abstract_state: State, step: int | None = None, partial: bool = False, fresh: Any = ()
    ) -> tuple[State, dict[str, Any]] | None:
        """Reads the newest undamaged step, or the one asked for.

        A damaged step is logged with its damaged leaves, and the step before it is tried.

        Args:
            abstract_state: a tree of jax.ShapeDtypeStruct. Each leaf is restored to its sharding, on any mesh, or to
                the first local device if it has none.
            step: the step to read; None: the newest.
            partial: the tree may lack leaves that were saved. The files of those are neither read nor checked.
            fresh: a tree of jax.Array with some of the state's leaves, as they are at the start of a run. They stand in
                for those that the checkpoint lacks because it was written before they existed.

        Returns:
            (state, meta), where meta is as saved, with the restored "step" added. None if nothing was ever saved.

        Raises:
            RuntimeError: If every committed step, or the one asked for, is damaged.
            ValueError: If `step` was never saved, or if a leaf's name, shape or dtype differs from that saved; the
                message names it.
        """
        committed = self.steps()
        for unfinished in self._unfinished():
            logging.warning("%s has no manifest: not a finished checkpoint, ignored", self._folder(unfinished))
        if step is not None and step not in committed:
            raise ValueError(f"{self._directory}: no checkpoint of step {step}; the steps are {committed}")
        wanted, instead = _named_leaves(abstract_state), _named_leaves(fresh)
        tried = committed[::-1] if step is None else [step]
        if not tried:
            return None
        for candidate in tried:
            folder = self._folder(candidate)
            contents = manifest.read(folder / _MANIFEST)
            damage = [f"{_MANIFEST} is damaged"]
            if contents:
                unread = [name for name in contents["leaves"] if partial and name not in wanted]
                damage = manifest.damage(folder / _STATE, contents, unread)
            if contents and not damage:
                added = {name: x for name, x in instead.items() if name not in contents["leaves"]}
                specs = {name: manifest.leaf(x) for name, x in wanted.items() if name not in added}
                manifest.refuse_mismatch(folder, saved=contents["leaves"], wanted=specs, partial=partial)
                return self._load(folder, abstract_state, partial, added), contents["meta"] | {"step": candidate}
            logging.warning("checkpoint %s is damaged and cannot be used: %s", folder, "; ".join(damage))
        raise RuntimeError(
            f"{self._directory}: no undamaged checkpoint among steps {tried}; the log names what is damaged. "
            "Put back a copy, or start in another workdir"
        )

    def as_saved(self, abstract_state: State, step: int | None = None) -> State:
        """The tree with the dtypes that its leaves have in the newest checkpoint, or in that of a step, if it is there.

        Args:
            abstract_state: a tree of jax.ShapeDtypeStruct.
            step: as for `restore`.
        """
        step = self.latest() if step is None else step
        contents = manifest.read(self._folder(step) / _MANIFEST) if step in self.steps() else None
        saved = contents["leaves"] if contents else {}
        leaves = [
            jax.ShapeDtypeStruct(x.shape, saved[name]["dtype"], sharding=x.sharding) if name in saved else x
            for name, x in _named_leaves(abstract_state).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)

    def _load(self, folder: epath.Path, abstract_state: State, partial: bool, added: Mapping[str, jax.Array]) -> State:
        names = list(_named_leaves(abstract_state))
        wanted = {name: x for name, x in _named_leaves(abstract_state).items() if name not in added}
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        restore_args = {
            name: ocp.ArrayRestoreArgs(sharding=x.sharding or here, global_shape=x.shape, dtype=x.dtype)
            for name, x in wanted.items()
        }
        leaves = self._orbax.restore(
            folder / _STATE,
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=partial),
        )
        # The tree's own structure (NamedTuples, empty states) comes from the caller, never from the disk.
        return jax.tree.unflatten(jax.tree.structure(abstract_state), [{**leaves, **added}[name] for name in names])

    def _folder(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _numbered(self) -> list[int]:
        if not self._directory.exists():
            return []
        names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        return sorted(int(n) for n in names if n.isascii() and n.isdigit() and n == str(int(n)))

    def _is_committed(self, step: int) -> bool:
        return manifest.is_complete(self._folder(step) / _MANIFEST)

    def _unfinished(self) -> list[int]:
        return [step for step in self._numbered() if not self._is_committed(step)]

    def _prune(self, newest: int) -> None:
        steps = self.steps()
        for step in [s for s in steps if s > newest]:
            logging.warning("checkpoint %s is later than step %d, just saved: removed", self._folder(step), newest)
            self._remove(step)
        for step in [s for s in steps if s <= newest][: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Removes what `save` wrote, and the folder too unless something else was put into it."""
        folder = self._folder(step)
        (folder / _MANIFEST).unlink(missing_ok=True)  # First: half a removal must not look like a checkpoint.
        if (folder / _STATE).exists():
            (folder / _STATE).rmtree()
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _named_leaves(tree: State) -> dict[str, Any]:
    """The leaves by dotted path, in the tree's order. The name is also the leaf's folder on disk.

    Raises:
        ValueError: If a name is empty or belongs to two leaves.
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in named or not name:
            raise ValueError(f"state: the name {name!r} is empty or belongs to two leaves; rename a key of the state")
        named[name] = leaf
    return named


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


def _refuse_unsavable(leaves: Mapping[str, Any]) -> None:
    """Checks that every leaf can be saved and is worth saving.

    Raises:
        ValueError: If a leaf is not a jax.Array of numbers or bools, or is not finite.
    """
    for name, x in leaves.items():
        if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            got = x.dtype if isinstance(x, jax.Array) else type(x).__name__
            raise ValueError(f"state: leaf {name!r} is {got}; expected a jax.Array of numbers or bools")
    finite = {n: _all_finite(x) for n, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    bad = [name for name, ok in jax.device_get(finite).items() if not ok]
    if bad:
        raise ValueError(
            f"state: not saved, NaN or infinity in {manifest.listed(bad)}; the last checkpoint is as it was"
        )


def _cause(error: Exception) -> str:
    """What the system said, out of TensorStore's long message; otherwise the error's first line."""
    said = re.search(r": ([^:]+) \[os_error_code", str(error))
    return said[1] if said else (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Drops Orbax's warning that there is no OCDBT to merge, and its threads' tracebacks of an error that it raises."""

    def keep(record: python_logging.LogRecord) -> bool:
        text = str(record.msg)
        return "Skipping merge of OCDBT" not in text and "run() raised an exception" not in text

    logger = logging.get_absl_logger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
