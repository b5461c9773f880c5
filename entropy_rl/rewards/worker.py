"""The program of the nursery's process and, in its forks, of the graders' workers.

It is run as a file, with the number of a socket as its argument. Requests and replies on the socket are lines of JSON.
{"kinds", "path", "folder", "home", "memory_mb", "cpu_seconds", "once"}, sent with the worker's end of a socket and a
pipe for what it writes to stderr, asks for a new worker; the reply is {"pid"} or {"failed": text}. {"end": pid} ends a
worker; the reply is {"status", "cpu_seconds"}. The nursery waits for requests until the trainer closes its end, and a
worker waits for items until its socket closes: these two waits have no time limit.

A worker reads pickled lists of (kind, response, answer), each preceded by its length as 8 bytes. It writes lines of
JSON: ["ready", what is missing of the fence] once, then [score or null, cause or null, detail] for each item, in order.
The kernel kills a worker that runs out of CPU time, so the first missing line identifies the item that was too slow.
A worker for verifiers that may run foreign code ("once") serves one item: nothing it does reaches another one.
"""

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
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropy_rl.rewards.sandbox import Fence

Judge = Callable[[str, Any], float]  # (given, answer) -> points
Request = dict[str, Any]


def main() -> None:
    """Serves requests until the socket closes."""
    # Ctrl-C and SIGTERM reach a whole process group, but only the trainer acts on them; this process ends when the
    # trainer closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _bare_package()
    from entropy_rl.rewards import sandbox

    namespaces, network = sandbox.isolate(), sandbox.empty_network()
    control = socket.socket(fileno=int(sys.argv[1]))
    judges: dict[str, Judge] = {}
    fences: dict[str, Fence] = {}
    while True:
        request, descriptors = _receive(control)
        if request is None:
            return
        if "end" in request:
            reply = _end(request["end"])
        elif failed := _import(judges, request):
            reply = {"failed": failed}
        else:
            name = json.dumps([request[key] for key in ("once", "kinds", "folder", "home")])
            if name not in fences:
                fences[name] = sandbox.prepare(namespaces, network, _folders(request), Path(request["home"]))
            reply = {"pid": _fork(control, descriptors, judges, request, fences[name])}
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(json.dumps(reply).encode() + b"\n")


def _receive(control: socket.socket) -> tuple[Request | None, list[int]]:
    """(the next request, the descriptors sent with it); None when the socket closes."""
    data, descriptors, _, _ = socket.recv_fds(control, 65536, 2)
    while data and not data.endswith(b"\n"):
        part = control.recv(65536)
        data = data + part if part else b""
    return (json.loads(data) if data else None), descriptors


def _import(judges: dict[str, Judge], request: Request) -> str:
    """Adds the judges of the requested kinds, importing their libraries; returns the error's text, or ""."""
    from entropy_rl.rewards.verify import verifier

    sys.path[:] = request["path"]
    try:
        os.chdir(request["folder"])
        judges |= {kind: verifier(kind) for kind in request["kinds"] if kind not in judges}
    except (ImportError, ValueError, OSError) as error:
        return str(error)
    except SystemExit as error:
        return f"one of the modules of {request['kinds']} ended Python when it was imported (status {error.code})"
    return ""


def _folders(request: Request) -> list[Path]:
    """What a worker may read beside Python's libraries: the working directory and the folders of reward functions."""
    from entropy_rl.rewards.verify import is_own

    if not request["once"]:
        return []
    names = {kind.partition(":")[0] for kind in request["kinds"] if is_own(kind)}
    files = [getattr(sys.modules[name], "__file__", None) for name in sorted(names)]
    return [Path(request["folder"]), *(Path(file).parent for file in files if file)]


def _fork(
    control: socket.socket, descriptors: list[int], judges: dict[str, Judge], request: Request, fence: "Fence"
) -> int:
    """The process id of a new worker; in the worker itself, it serves and never returns."""
    gc.freeze()  # keeps memory shared with the workers: a collection in a worker would write to every page
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        os.dup2(descriptors[1], 2)
        _serve(descriptors[0], judges, request, fence)
    finally:
        os._exit(0)


def _end(pid: int) -> Request:
    """Kills a worker; returns its exit status, negative for a signal, and the CPU time it used."""
    os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status), "cpu_seconds": usage.ru_utime + usage.ru_stime}


def _serve(channel: int, judges: dict[str, Judge], request: Request, fence: "Fence") -> None:
    """Enters the fence, then grades items until the socket closes, or only one."""
    from entropy_rl.rewards import sandbox

    inbox, outbox = os.fdopen(channel, "rb"), os.fdopen(os.dup(channel), "wb")
    meter, once, memory_mb = sandbox.Meter(), request["once"], request["memory_mb"]
    missing = sandbox.enter(fence, memory_mb, request["cpu_seconds"] if once else None)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _send(outbox, ["ready", missing])
    while header := inbox.read(8):
        for kind, response, answer in pickle.loads(inbox.read(int.from_bytes(header, "big"))):
            signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
            reply = _reply(judges[kind], kind, response, answer, memory_mb)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if meter.used_mb() > memory_mb:  # the verifier may have caught the MemoryError and returned 0
                reply = _out_of_memory(kind, memory_mb)
            _send(outbox, reply)
            if once:
                return


def _reply(judge: Judge, kind: str, response: str, answer: Any, memory_mb: int) -> list[Any]:
    """[score or None, cause or None, detail] of one item."""
    from entropy_rl.rewards.sandbox import allowed
    from entropy_rl.rewards.verify import is_own, judge_response

    try:
        return [judge_response(judge, kind, response, answer), None, ""]
    except MemoryError:
        return _out_of_memory(kind, memory_mb)
    except BaseException as error:  # SystemExit too: a text that calls exit() must not end the worker
        fenced = is_own(kind) and isinstance(error, (OSError, ImportError, RuntimeError))
        hint = f" ({allowed(memory_mb)})" if fenced else ""
        return [None, "raised", f"{kind}: {type(error).__name__}: {str(error)[:200]}{hint}"]


def _out_of_memory(kind: str, memory_mb: int) -> list[Any]:
    from entropy_rl.rewards.sandbox import allowed

    return [None, "memory", f"{kind}: out of memory ({allowed(memory_mb)})"]


def _bare_package() -> None:
    # The packages' own __init__ import JAX, and libraries that are found only once sys.path is that of the trainer;
    # empty packages in their place make start-up fast.
    root = Path(__file__).resolve().parents[1]
    for name, path in (("entropy_rl", root), ("entropy_rl.rewards", root / "rewards")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    sys.path.insert(0, str(root.parent))


def _send(outbox: IO[bytes], message: Any) -> None:
    outbox.write(json.dumps(message).encode() + b"\n")
    outbox.flush()


if __name__ == "__main__":
    main()
