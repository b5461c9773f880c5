"""A grader's worker process: scores what comes in on its pipe until the pipe closes.

Run as a file with three arguments: memory limit in MB, CPU seconds for one item, kinds to prepare joined by
commas. In: pickled lists of (kind, response, answer), each after its length as 8 bytes. Out: lines of JSON:
"ready" or {"failed": text} once, then [score or null, cause or null, detail] for each item, in order. A
worker that runs out of CPU time is killed by the kernel, so the parent knows the culprit by the missing line.
"""

import functools
import json
import os
import pickle
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def main() -> None:
    memory_mb, cpu_seconds, kinds = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3].split(",")
    # Ctrl-C and SIGTERM reach a whole process group, and are the parent's to act on; we end with the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    inbox, outbox = _take_pipes()
    _bare_package()
    from entropy_rl.rewards import sandbox
    from entropy_rl.rewards.verify import judge_response, verifier

    try:
        judges = {kind: verifier(kind) for kind in kinds}
    except (ImportError, ValueError) as error:
        _send(outbox, {"failed": str(error)})
        return
    sandbox.enter(memory_mb)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _send(outbox, "ready")
    while header := inbox.read(8):
        for kind, response, answer in pickle.loads(inbox.read(int.from_bytes(header, "big"))):
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            reply = _reply(functools.partial(judge_response, judges[kind], kind, response, answer), kind)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(outbox, reply)


def _reply(grade: Callable[[], float], kind: str) -> list:
    try:
        return [grade(), None, ""]
    except MemoryError:
        return [None, "memory", f"{kind}: out of memory"]
    except BaseException as error:  # SystemExit too: a text that calls exit() ends nothing
        return [None, "raised", f"{kind}: {type(error).__name__}: {str(error)[:200]}"]


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    # What a verifier prints must not reach the protocol, nor read from it.
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    return inbox, outbox


def _bare_package() -> None:
    # The package's own __init__ brings in JAX; a namespace in its place keeps start-up lean.
    package = types.ModuleType("entropy_rl")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["entropy_rl"] = package


def _send(outbox: IO[bytes], message: Any) -> None:
    outbox.write(json.dumps(message).encode() + b"\n")
    outbox.flush()


if __name__ == "__main__":
    main()
