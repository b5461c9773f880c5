"""The program of the nursery's process and, in its forks, of the graders' workers.

It is run as a file, with the number of a socket as its argument. Requests and replies on the socket are lines of JSON.
{"kinds", "path", "memory_mb", "cpu_seconds"}, sent with two pipes, asks for a new worker; the reply is {"pid"} or
{"failed": text}. {"end": pid} ends a worker; the reply is {"status"}. The nursery waits for requests until the trainer
closes its end, and a worker waits for items until its pipe closes: these two waits have no time limit.

A worker reads pickled lists of (kind, response, answer), each preceded by its length as 8 bytes. It writes lines of
JSON: "ready" once, then [score or null, cause or null, detail] for each item, in order. The kernel kills a worker that
runs out of CPU time, so the first missing line identifies the item that was too slow.
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

Judge = Callable[[str, Any], float]  # (given, answer) -> points
Request = dict[str, Any]


def main() -> None:
    """Serves requests until the socket closes."""
    # Ctrl-C and SIGTERM reach a whole process group, but only the trainer acts on them; this process ends when the
    # trainer closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _bare_package()
    control = socket.socket(fileno=int(sys.argv[1]))
    judges: dict[str, Judge] = {}
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


def _receive(control: socket.socket) -> tuple[Request | None, list[int]]:
    """(the next request, the pipes sent with it); None when the socket closes."""
    data, pipes, _, _ = socket.recv_fds(control, 65536, 2)
    while data and not data.endswith(b"\n"):
        part = control.recv(65536)
        data = data + part if part else b""
    return (json.loads(data) if data else None), pipes


def _prepare(judges: dict[str, Judge], request: Request) -> str:
    """Adds the judges of the requested kinds, importing their libraries; returns the error's text, or ""."""
    from entropy_rl.rewards.verify import verifier

    sys.path[:] = request["path"]
    try:
        judges |= {kind: verifier(kind) for kind in request["kinds"] if kind not in judges}
    except (ImportError, ValueError) as error:
        return str(error)
    return ""


def _fork(control: socket.socket, pipes: list[int], judges: dict[str, Judge], request: Request) -> int:
    """The process id of a new worker; in the worker itself, it serves and never returns."""
    gc.freeze()  # keeps memory shared with the workers: a collection in a worker would write to every page
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
    # Otherwise a worker that waits forever would outlive a trainer that was killed. Only Linux has this call.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(pid: int) -> int:
    """Kills a worker; returns its exit status, negative for a signal."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _serve(inbox: IO[bytes], outbox: IO[bytes], judges: dict[str, Judge], request: Request) -> None:
    """Enters the sandbox, then grades items until the pipe closes."""
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


def _reply(grade: Callable[[], float], kind: str) -> list[Any]:
    """[score or None, cause or None, detail] of one item."""
    try:
        return [grade(), None, ""]
    except MemoryError:
        return [None, "memory", f"{kind}: out of memory"]
    except BaseException as error:  # SystemExit too: a text that calls exit() must not end the worker
        return [None, "raised", f"{kind}: {type(error).__name__}: {str(error)[:200]}"]


def _bare_package() -> None:
    # The package's own __init__ imports JAX; an empty package in its place makes start-up fast.
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
