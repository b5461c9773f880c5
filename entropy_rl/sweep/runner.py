"""Runs the jobs of a sweep, several at a time; a job that fails is named, and the others continue."""

import contextlib
import ctypes
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from absl import logging

from entropy_rl.record import jsonl
from entropy_rl.sweep.plan import Job

_PDEATHSIG = 1  # prctl(2): the signal that a child receives if its parent dies
_LOOK_S, _TELL_S = 0.2, 60.0  # seconds between two looks at the children, and between two progress lines


class Place(NamedTuple):
    """What one of several runs at a time may use.

    Attributes:
        cores: CPU cores.
        gpus: the value of CUDA_VISIBLE_DEVICES; None: unchanged.
    """

    cores: frozenset[int]
    gpus: str | None


def places(jobs: int) -> list[Place]:
    """This machine's cores and GPUs in `jobs` equal shares.

    Raises:
        ValueError: There are fewer cores, or fewer GPUs if there are any, than shares.
    """
    cores, gpus = sorted(os.sched_getaffinity(0)), _gpus()
    for kind, found in (("cores", cores), ("GPUs", gpus)):
        if found and len(found) < jobs:
            raise ValueError(
                f"--jobs={jobs}: this machine has {len(found)} {kind} for the runs; give at most that many"
            )

    def share(things: Sequence[Any], i: int) -> Sequence[Any]:
        return things[len(things) * i // jobs : len(things) * (i + 1) // jobs]

    return [Place(frozenset(share(cores, i)), ",".join(share(gpus, i)) if gpus else None) for i in range(jobs)]


def _gpus() -> list[str]:
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu]
    if not (program := shutil.which("nvidia-smi")):
        return []
    listed = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i in range(len(listed.splitlines()))]


def is_done(out: pathlib.Path, job: Job) -> bool:
    """Whether the run has finished, by its record."""
    return last_step(out / job.folder) >= job.steps and (out / job.folder / "checkpoints").is_dir()


def last_step(workdir: pathlib.Path) -> int:
    """The step of the last whole row of a run's metrics; −1 without one."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return -1
    rows = jsonl.read(path)
    return int(rows[-1]["step"]) if rows else -1


class Running(NamedTuple):
    """A run in progress.

    Attributes:
        job: the run.
        process: its process.
        place: what it may use.
    """

    job: Job
    process: subprocess.Popen[bytes]
    place: Place


def run_all(out: pathlib.Path, jobs: Sequence[Job], shares: Sequence[Place]) -> dict[str, str]:
    """Runs every job that is not done yet, as many at a time as there are shares.

    Args:
        out: the sweep's directory.
        jobs: in the order in which they are started.
        shares: see `places`.

    Returns:
        The jobs that failed, by folder, each with the last line of its log.

    Raises:
        SystemExit: After SIGTERM (75) or Ctrl-C (130), once the running jobs have saved and ended.
    """
    waiting = [job for job in jobs if not is_done(out, job)]
    free, running, failed, told = list(shares), list[Running](), dict[str, str](), time.monotonic()
    try:
        with _signals_raise():
            while waiting or running:
                while waiting and free:
                    running.append(_start(out, waiting.pop(0), free.pop(0)))
                for ended in [r for r in running if r.process.poll() is not None]:
                    running.remove(ended)
                    free.insert(0, ended.place)
                    if ended.process.returncode or not is_done(out, ended.job):
                        failed[ended.job.folder] = _last_line(out / ended.job.folder)
                        logging.warning("failed: %s: %s", ended.job.folder, failed[ended.job.folder])
                    logging.info("%s", progress(out, jobs, running, failed))
                if time.monotonic() - told > _TELL_S:
                    told = time.monotonic()
                    logging.info("%s", progress(out, jobs, running, failed))
                time.sleep(_LOOK_S)
    except KeyboardInterrupt as stop:
        _end(running)
        logging.info("stopped; the same command continues")
        raise SystemExit(stop.args[0] if stop.args else 130) from None
    return failed


def progress(out: pathlib.Path, jobs: Sequence[Job], running: Sequence[Running], failed: dict[str, str]) -> str:
    """One line per arm: runs that are done, running with their step, failed and waiting."""
    lines, busy = [], {r.job.folder for r in running}
    for arm in dict.fromkeys(job.arm for job in jobs):
        own = [job for job in jobs if job.arm == arm]
        done = sum(is_done(out, job) for job in own)
        now = [f"seed {j.seed} at step {max(0, last_step(out / j.folder))}/{j.steps}" for j in own if j.folder in busy]
        wrong = [f"seed {j.seed} failed" for j in own if j.folder in failed]
        lines.append(f"  {arm:<32} {done}/{len(own)} done  {', '.join(now + wrong)}".rstrip())
    return "\n".join(["sweep", *lines])


def _start(out: pathlib.Path, job: Job, place: Place) -> Running:
    workdir = out / job.folder
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "entropy_rl.train", *job.flags, f"--workdir={workdir}"]
    if job.warm_up:
        command.append(f"--warm_up_of={out / job.warm_up}")
    _note_start(workdir, job)
    env = os.environ | ({} if place.gpus is None else {"CUDA_VISIBLE_DEVICES": place.gpus})
    with (workdir / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which then ends its runs in order
            preexec_fn=lambda: _settle(place),
        )
    return Running(job, process, place)


def _settle(place: Place) -> None:
    """In the child: its cores, and SIGTERM if the sweep dies, so that no run is left without one."""
    os.sched_setaffinity(0, place.cores)
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)


def _note_start(workdir: pathlib.Path, job: Job) -> None:
    """Adds a line to starts.jsonl: the command, and which code and libraries it was run with."""
    start = {
        "time": time.time(),
        "command": job.command("WORKDIR"),
        "commit": commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "machine": platform.machine(),
    }
    with (workdir / "starts.jsonl").open("a") as file:
        file.write(json.dumps(start) + "\n")


def commit() -> str:
    """The commit of this package's checkout, with "+" if files differ from it; "unknown" outside a checkout."""
    folder = pathlib.Path(__file__).parent
    git = shutil.which("git")
    if not git:
        return "unknown"

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False)

    if (head := ask("rev-parse", "HEAD")).returncode:
        return "unknown"
    changed = ask("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return head.stdout.strip() + ("+" if changed else "")


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM becomes a KeyboardInterrupt that carries exit code 75."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(75)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(running: Sequence[Running]) -> None:
    """Asks the runs to save and end, and waits for them."""
    for r in running:
        r.process.terminate()
    for r in running:
        r.process.wait()


def _last_line(workdir: pathlib.Path) -> str:
    lines = (workdir / "log.txt").read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")
