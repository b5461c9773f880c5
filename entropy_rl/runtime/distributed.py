"""Several processes as one run: how they find one another, and the few places where they have to agree.

Every process holds the same small host arrays (prompts, responses, rewards; a few MB), because each is a pure function
of the seed and of what was gathered. So every process makes the same decisions on its host. Parameters, caches and
activations are spread over the devices of all processes. Work that is expensive on the host is divided among them:
grading, checksums, files.
"""

import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Sharding

_PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def cluster(env: Mapping[str, str], on_tpu: bool) -> tuple[str, dict[str, Any]] | None:
    """(The kind of this process's run, the arguments of `jax.distributed.initialize`); None: it runs alone.

    Args:
        env: the environment. A plain run names JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; Slurm,
            GKE and Cloud TPU are known by the variables they set, or by their metadata server, and JAX asks them.
        on_tpu: this machine has a TPU that JAX will use.

    Raises:
        ValueError: If a plain run names only some of the three, or the process's number is out of range.
    """
    if given := [name for name in _PLAIN if name in env]:
        if missing := [name for name in _PLAIN if name not in env]:
            raise ValueError(f"{', '.join(given)} without {', '.join(missing)}: a run of several processes needs all")
        count, index = int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"])
        if not 0 <= index < count:
            raise ValueError(f"JAX_PROCESS_ID={index} must be from 0 to JAX_NUM_PROCESSES − 1 = {count - 1}")
        return "plain", dict(
            coordinator_address=env["JAX_COORDINATOR_ADDRESS"],
            num_processes=count,
            process_id=index,
            cluster_detection_method="deactivate",
        )
    if all(name in env for name in _SLURM) and int(env["SLURM_NTASKS"]) > 1:
        return "Slurm", dict(cluster_detection_method="slurm")
    if not on_tpu:
        return None
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return "GKE", {}
    # a TPU VM's metadata server knows its neighbours; notebooks and pods of one host have no such server
    if not {"TPU_SKIP_MDS_QUERY", "KUBERNETES_SERVICE_HOST", "COLAB_RELEASE_TAG"} & env.keys():
        return "Cloud TPU", {}
    return None


def initialize() -> None:
    """Joins this process to the others of its run, if there are any; call it before anything touches a device.

    If a process dies, the others end too, within `heartbeat_timeout_seconds`.
    """
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    devices = pathlib.Path("/dev/accel0").exists() or pathlib.Path("/dev/vfio/0").exists()
    found = cluster(os.environ, "tpu" in wanted and devices and importlib.util.find_spec("libtpu") is not None)
    if found is None:
        return
    name, how = found
    # It would put a SIGTERM handler of its own in the place of ours (preemption.py), and the run would not stop.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**how, heartbeat_timeout_seconds=int(os.environ.get("ENTROPY_RL_HEARTBEAT", "100")))
    logging.info("%s: process %d of %d, %d devices", name, jax.process_index(), jax.process_count(), jax.device_count())


def first() -> bool:
    """Whether this process writes the records: config, metrics, samples, manifests."""
    return jax.process_index() == 0


def spread(f: Callable[..., Any], shardings: tuple[Any, ...]) -> Callable[..., Any]:
    """A jitted f that takes host arrays which are the same on every process: each process places its devices' part.

    Args:
        f: the jitted function.
        shardings: f's `in_shardings`; an argument whose entry is a tree of shardings is on devices already.
    """
    if jax.process_count() == 1:
        return f

    def ready_for(x: Any, sharding: Sharding) -> Any:
        return put(x, sharding) if isinstance(x, np.ndarray) else x

    def call(*args: Any) -> Any:
        ready = (
            jax.tree.map(lambda x: ready_for(x, s), arg) if isinstance(s, Sharding) else arg  # noqa: B023
            for arg, s in zip(args, shardings, strict=True)
        )
        return f(*ready)

    return call


def put(x: np.ndarray, sharding: Sharding) -> jax.Array:
    """A host array that is the same on every process -> one array on the devices of all of them."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    x = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def mine(i: int) -> bool:
    """Whether item number i is this process's, when work is divided among all."""
    return i % jax.process_count() == jax.process_index()


def fetch(tree: Any) -> Any:
    """Arrays on the devices of all processes -> numpy arrays on every process."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def collect(value: Any) -> list:
    """A value that JSON can hold, from each process -> the list of all of them, in order, on every process."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    rows = multihost_utils.process_allgather(np.pad(text, (0, int(lengths.max()) - len(text))))
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def outcomes(work: Callable[[], Any]) -> list:
    """`collect` of the results of work(); if it raises on one process, all raise, so that none waits for the others.

    Raises:
        RuntimeError: If work() raised on another process; on its own process the error is raised as it is.
    """
    if jax.process_count() == 1:
        return [work()]
    result, error = None, None
    try:
        result = work()
    except Exception as raised:  # sent to the others, then raised again
        error = raised
    found = collect([result, error and f"{type(error).__name__}: {error}"])
    if error:
        raise error
    for i, (_, fault) in enumerate(found):
        if fault:
            raise RuntimeError(f"process {i} failed with {fault}")
    return [result for result, _ in found]


def share(items: list, work: Callable[[list], list]) -> list:
    """work(items), one result per item, of which each process does its part; JSON must be able to hold the results."""
    count = jax.process_count()
    done = [None] * len(items)
    for i, part in enumerate(outcomes(lambda: work(items[jax.process_index() :: count]))):
        done[i::count] = part
    return done


def anyone(flag: bool) -> bool:
    """True on every process if it is true on one."""
    return any(collect(flag))
