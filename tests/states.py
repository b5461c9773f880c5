"""A training state in small, and what can happen to its files: shared by the tests of checkpoints and of faults."""

import logging
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_rl.record.checkpoint import Checkpoints


class Adaptive(NamedTuple):
    coef: jax.Array
    mask: optax.EmptyState


def make_state(seed: int):
    """All that a training state holds: nested parameters, Adam's state, NamedTuples, scalars of four dtypes."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embed": jax.random.normal(keys[0], (16, 8)),
        "layers": {"w": jax.random.normal(keys[1], (2, 8, 8)), "scale": jnp.ones((8,), jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    grads = jax.tree.map(lambda x: (x * (seed + 0.3)).astype(x.dtype), params)
    _, opt_state = optimizer.update(grads, optimizer.init(params), params)
    tokens = (Adaptive(coef=jnp.float32(0.1 * seed), mask=optax.EmptyState()), optax.EmptyState())
    counters = {"step": jnp.int32(seed), "seed": jnp.uint32(2**32 - 1), "done": jnp.array(seed % 2 == 0)}
    return {"params": params, "opt": opt_state, "tokens": tokens, "counters": counters}


ABSTRACT = jax.eval_shape(lambda: make_state(0))


def assert_bitwise(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


def saved(directory: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(directory, keep=keep)
    for step in steps:
        checkpoints.save(step, make_state(step), {"config": f"hash{step}", "position": [step, None]})
    return checkpoints


def data_files(directory: Path, step: int) -> list[Path]:
    return sorted(path for path in (directory / str(step)).rglob("*") if path.is_file())


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(data))


def cut_chunk(folder: Path) -> None:
    """Leaves half of a leaf's only file."""
    data = (folder / "0.0").read_bytes()
    (folder / "0.0").write_bytes(data[: len(data) // 2])


def warnings_in(caplog) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
