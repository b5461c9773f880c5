"""The training command in a process that gets real signals at a named point.

`python tests/signal_at.py POINT COUNT SIGNAL --config=... --workdir=...` sends SIGNAL to its own process when it comes
to POINT for the COUNT-th time; several such triples may precede the flags. A test that waited for a line of the log
would hit another point on a slower machine.
"""

import functools
import importlib
import os
import runpy
import signal
import sys

POINTS = {
    "model": ("entropy_rl.training.engine", "load"),
    "compile": ("jax._src.compiler", "compile_or_get_cached"),
    "warm-up": ("entropy_rl.training.warmup", "Lessons.batch"),
    "rollout": ("entropy_rl.training.engine", "Engine.rollout"),
    "grading": ("entropy_rl.rewards.grader", "Grader.grade"),
    "step": ("entropy_rl.loop", "update_all"),
    "evaluation": ("entropy_rl.evaluation.in_training", "Examiner.examine"),
    "row": ("entropy_rl.record.metrics", "RunLog.write"),
    "save": ("entropy_rl.record.checkpoint", "Checkpoints.save"),
    "commit": ("entropy_rl.record.manifest", "write"),
}


class AtImport:
    """A finder of modules that finds none, and sends the signal when JAX is looked for."""

    def __init__(self, send):
        self.send = send

    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            sys.meta_path.remove(self)
            self.send()


def watch(point: str, count: int, number: signal.Signals) -> None:
    """Sends the signal at the `count`-th call of the function that `point` names, before it does anything."""
    send = functools.partial(os.kill, os.getpid(), number)
    if point == "import":
        sys.meta_path.insert(0, AtImport(send))
        return
    module_name, path = POINTS[point]
    owner = importlib.import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), iter(range(1, sys.maxsize))

    @functools.wraps(function)
    def watched(*args, **kwargs):
        if next(calls) == count:
            print(f"{number.name} at {point}", flush=True)
            send()
        return function(*args, **kwargs)

    setattr(owner, name, watched)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    while not arguments[0].startswith("-"):
        point, count, number, *arguments = arguments
        watch(point, int(count), signal.Signals[number])
    sys.argv[1:] = arguments
    runpy.run_module("entropy_rl.train", run_name="__main__", alter_sys=True)
