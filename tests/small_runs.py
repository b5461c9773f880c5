"""The smallest run that has everything, in processes that can be killed; the tests of faults and the soak use it.

It has a warm-up, Adam, a transform with a state, two updates per rollout, evaluations, samples and checkpoints. This
file is also its configuration: `python -m entropy_rl.train --config=tests/small_runs.py --workdir=...`.
"""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from entropy_rl import config
from entropy_rl.record import jsonl, words

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT = 300  # seconds that a process may take before a test gives up, on a machine that is busy with other tests
COMMAND = "-m", "entropy_rl.train"
_TIMED = ("time", "throughput/")  # how the keys of a row begin that differ from run to run


def get_config(method: str = "adaptive_entropy") -> ConfigDict:
    """The configuration of the run, by a method's name; "file": GRPO on a file of problems, and nothing besides."""
    c = config.default()
    c.model.source = "tiny"
    c.model.tiny.update(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32)
    c.data.settings.update(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    c.data.max_prompt_len = 9
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.rollout.slots = 8, 4, 20, 32
    c.reward.weights.update(length=0.5)  # so that every group has something to learn from
    c.warmup.updates, c.warmup.batch, c.warmup.lr = 30, 32, 1e-2
    c.optim.lr, c.train.steps, c.train.updates_per_rollout = 1e-3, 10, 2
    c.eval.every, c.eval.problems, c.eval.batch = 3, 8, 8
    c.checkpoint.every, c.log.samples, c.log.rollouts, c.mesh.data = 2, 2, 2, 1
    if method == "file":
        for key in list(c.data.settings):
            del c.data.settings[key]
        c.data.settings.kind, c.data.held_out_modulus, c.eval.every, c.warmup.updates = "exact", 0, 0, 0
        method = "grpo"
    config.apply_recipe(c, method)
    if method == "adaptive_entropy":  # its state has to matter from the first steps on
        c.algo.transforms.adaptive_entropy_bonus.update(target=4.0, step=0.01, max_coef=1.0)
    return c


def environment(cache: pathlib.Path) -> dict[str, str]:
    """The environment of a run that takes its compiled programs from `cache`."""
    fast = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"  # compiles faster
    return os.environ | {
        "ENTROPY_RL_CACHE": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", fast),  # the tests' own, so that they share their programs
    }


def start(
    workdir: pathlib.Path,
    cache: pathlib.Path,
    *flags: str,
    program: tuple[str, ...] = COMMAND,
    **popen: Any,
) -> subprocess.Popen:
    """The command in a new process, whose output is added to the file `log_of(workdir)`.

    Args:
        workdir: the run directory.
        cache: of compiled programs.
        *flags: of the command; `--config` among them replaces the configuration of this file.
        program: what Python runs in place of the command.
        **popen: further arguments of `subprocess.Popen`.
    """
    given = [*flags, f"--workdir={workdir}"]
    if not any(flag.startswith("--config=") for flag in flags):
        given.insert(0, f"--config={__file__}")  # before the flags that change it
    popen = {"cwd": ROOT, "env": environment(cache), "stdin": subprocess.DEVNULL} | popen
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with log_of(workdir).open("a") as log:
        return subprocess.Popen([sys.executable, *program, *given], stdout=log, stderr=subprocess.STDOUT, **popen)


def finish(
    workdir: pathlib.Path, cache: pathlib.Path, *flags: str, code: int = 0, limit: float | None = LIMIT, **popen: Any
) -> str:
    """Runs the command to its end, for at most `limit` seconds: its output. The exit code must be `code`."""
    before = log_of(workdir).stat().st_size if log_of(workdir).exists() else 0
    process = start(workdir, cache, *flags, **popen)
    try:
        returned = process.wait(limit)
    finally:
        process.kill()
        process.wait()
    output = log_of(workdir).read_text(errors="replace")[before:]
    assert returned == code, f"exit code {returned}, expected {code}:\n{output[-4000:]}"
    return output


def with_room(size: int) -> tuple[str, ...]:
    """The command as `program`, in a process that cannot write a file of more than `size` bytes."""
    limit = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    return "-c", f"{limit}; runpy.run_module('entropy_rl.train', run_name='__main__', alter_sys=True)"


def log_of(workdir: pathlib.Path) -> pathlib.Path:
    """The file of a run's output, beside its directory."""
    return workdir.with_name(workdir.name + ".log")


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The metrics of a run, times aside; every key has a word."""
    kept = jsonl.read(workdir / "metrics.jsonl")
    assert not [key for row in kept for key in words.unknown(row)]
    return [{key: value for key, value in row.items() if not key.startswith(_TIMED)} for row in kept]


def leaves(workdir: pathlib.Path, step: int) -> dict[str, bytes]:
    """Every parameter, optimiser and token state of a checkpoint: shape and dtype, and the bytes of its files."""
    folder = workdir / "checkpoints" / str(step)
    manifest = json.loads((folder / "manifest.json").read_text())["manifest"]
    found = {f"{name} (shape, dtype)": json.dumps(leaf).encode() for name, leaf in manifest["leaves"].items()}
    data = [name for name in manifest["files"] if re.search(r"/[\d.]+$", name)]  # the others hold times and versions
    found |= {name: (folder / "state" / name).read_bytes() for name in data}
    assert len(found) == 2 * len(manifest["leaves"]) > 0
    return found


def differences(one: pathlib.Path, other: pathlib.Path, step: int) -> list[str]:
    """Where two runs differ up to `step`, the last of both, bit for bit: rows, samples, recorded rollouts and state."""
    return list(
        itertools.chain(
            _unequal("metrics.jsonl, row", rows(one), rows(other)),
            _unequal("samples.jsonl, row", jsonl.read(one / "samples.jsonl"), jsonl.read(other / "samples.jsonl")),
            (
                f"rollouts/{name}"
                for files in [(recorded(one), recorded(other))]
                for name in sorted(files[0].keys() | files[1].keys())
                if files[0].get(name) != files[1].get(name)
            ),
            (
                f"checkpoint {step}, {name}"
                for (name, a), b in zip(leaves(one, step).items(), leaves(other, step).values(), strict=True)
                if a != b
            ),
        )
    )


def recorded(workdir: pathlib.Path) -> dict[str, bytes]:
    """The files of a run's recorded rollouts."""
    return {path.name: path.read_bytes() for path in sorted((workdir / "rollouts").glob("*"))}


def _unequal(what: str, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> Iterator[str]:
    if len(one) != len(other):
        yield f"{what}s: {len(one)} and {len(other)}"
    for number, (a, b) in enumerate(zip(one, other, strict=False), 1):
        for key in (key for key in a | b if a.get(key) != b.get(key)):
            yield f"{what} {number}, {key}: {a.get(key)!r} and {b.get(key)!r}"
