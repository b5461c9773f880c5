"""Two processes, which hold the parameters together, write Hugging Face folders, for the tests.

python -m shared_folder WORKDIR
"""

import pathlib
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_models import FAMILIES, random_params, tiny_tokenizer

from entropy_rl.model import hf
from entropy_rl.record.hf_folders import HfFolders
from entropy_rl.runtime import distributed


class NoLock:
    """A lock that is never lost."""

    def check(self) -> None:
        """Is fine."""


def spread(x: np.ndarray) -> jax.Array:
    """The leaf over all devices, by its last axis."""
    axes = (*(None,) * (x.ndim - 1), "all" if x.shape[-1] % jax.device_count() == 0 else None)
    return distributed.put(np.asarray(x), NamedSharding(MESH, PartitionSpec(*axes)))


def fail(folder: pathlib.Path, shards: Any, source: Any, fetch: Any) -> None:
    """A disk that is full after the first leaf."""
    fetch(next(iter(source.values()))[0])
    raise OSError(28, "No space left on device")


if __name__ == "__main__":
    distributed.initialize()
    MESH = Mesh(np.array(jax.devices()), ("all",))
    cfg, workdir = FAMILIES["llama"], pathlib.Path(sys.argv[1])
    params = jax.tree.map(spread, random_params(cfg))
    folders = HfFolders(workdir, 4, 8, cfg, tiny_tokenizer(), NoLock())  # type: ignore[arg-type]
    folders.resumed(4, params)
    before = (workdir / "hf/step-00000004/config.json").stat().st_mtime_ns
    folders.resumed(4, params)
    assert (workdir / "hf/step-00000004/config.json").stat().st_mtime_ns == before
    hf.write_shards = fail
    try:
        folders.reached(8, params)
    except (OSError, RuntimeError) as error:
        (workdir / f"{jax.process_index()}").write_text(f"{type(error).__name__}: {error}")
