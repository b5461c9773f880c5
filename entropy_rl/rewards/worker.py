"""The nursery's process, and in its forks the graders' workers.

Run as a file with the number of a socket. In on it, lines of JSON: {"kinds", "path", "memory_mb", "cpu_seconds"} with
two pipes, for a new worker, answered by {"pid"} or {"failed": text}; {"end": pid}, answered by {"status"}.

A worker scores what comes in on its pipe until the pipe closes. In: pickled lists of (kind, response, answer), each
after its length as 8 bytes. Out: lines of JSON: "ready" once, then [score or null, cause or null, detail] for each
item, in order. A worker that runs out of CPU time is killed by the kernel, so the parent knows the culprit by the
missing line.
"""

import ctypes
import functools
import gc
import json
import os
import pickle
import signal
import socket
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    # Ctrl-C and SIGTERM reach a whole process group, and are the parent's to act on; we end with the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _bare_package()
    control = socket.socket(fileno=int(sys.argv[1]))
    judges: dict[str, Callable] = {}
    while True:
        request, pipes = _receive(control)
        if request is None:
            return
        if "end" in request:
            reply: dict[str, Any] = {"status": _end(request["end"])}
        elif failed := _prepare(judges, request):
            reply = {"failed": failed}
        else:
            reply = {"pid": _fork(control, pipes, judges, request)}
        for pipe in pipes:
            os.close(pipe)
        control.sendall(json.dumps(reply).encode() + b"\n")


def _receive(control: socket.socket) -> tuple[dict | None, list[int]]:
    data, pipes, _, _ = socket.recv_fds(control, 65536, 2)
    while data and not data.endswith(b"\n"):
        part = control.recv(65536)
        data = data + part if part else b""
    return (json.loads(data) if data else None), pipes


def _prepare(judges: dict[str, Callable], request: dict) -> str:
    """Imports what the kinds need; returns what is wrong, or ""."""
    from entropy_rl.rewards.verify import verifier

    sys.path[:] = request["path"]
    try:
        judges |= {kind: verifier(kind) for kind in request["kinds"] if kind not in judges}
    except (ImportError, ValueError) as error:
        return str(error)
    return ""


def _fork(control: socket.socket, pipes: list[int], judges: dict[str, Callable], request: dict) -> int:
    gc.freeze()  # what is shared stays shared: a collection in a worker would touch every page
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        _die_with_parent()
        _serve(os.fdopen(pipes[0], "rb"), os.fdopen(pipes[1], "wb"), judges, request)
    finally:
        os._exit(0)


def _die_with_parent() -> None:
    # A worker that waits for ever would outlive a trainer that was killed. Linux alone has this.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _serve(inbox: IO[bytes], outbox: IO[bytes], judges: dict[str, Callable], request: dict) -> None:
    from entropy_rl.rewards import sandbox
    from entropy_rl.rewards.verify import judge_response

    sandbox.enter(request["memory_mb"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _send(outbox, "ready")
    while header := inbox.read(8):
        for kind, response, answer in pickle.loads(inbox.read(int.from_bytes(header, "big"))):
            signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
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


def _bare_package() -> None:
    # The package's own __init__ brings in JAX; a namespace in its place keeps start-up lean.
    root = Path(__file__).resolve().parents[1]
    package = types.ModuleType("entropy_rl")
    package.__path__ = [str(root)]
    sys.modules["entropy_rl"] = package
    sys.path.insert(0, str(root.parent))


def _send(outbox: IO[bytes], message: Any) -> None:
    outbox.write(json.dumps(message).encode() + b"\n")
    outbox.flush()


if __name__ == "__main__":
    main()
