"""Confines a grader's worker once its libraries are loaded: it may only compute and read files.

The verifiers of several tasks call eval on the model's text. There are three fences, each of which still holds if
another one is not permitted here: resource limits, no network (if the kernel allows a process to give it up), and an
audit hook that refuses to start processes, open sockets, write or remove files, load C code, send signals or sleep.
They keep a model's text from doing harm; they are not a jail for a person who intends to break out of Python.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED_FAMILIES = frozenset({"socket", "subprocess", "ctypes", "shutil", "pty", "fcntl", "tempfile", "webbrowser"})
_REFUSED_EVENTS = frozenset(
    [
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.kill",
        "os.killpg",
        "os.chmod",
        "os.chown",
        "os.chflags",
        "os.link",
        "os.symlink",
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.truncate",
        "os.utime",
        "os.setxattr",
        "os.removexattr",
        "os.lockf",
        "os.chdir",
        "signal.pthread_kill",
        "sys.addaudithook",
        "time.sleep",
    ]
)


def enter(memory_mb: int) -> None:
    """Confines this process until it ends.

    Args:
        memory_mb: the limit on its address space, in MiB.

    Raises:
        OSError: If the system refuses even the resource limits.
    """
    for limit, value in (
        (resource.RLIMIT_AS, memory_mb * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    _drop_network()
    sys.addaudithook(_hook())


def _drop_network() -> None:
    # Best effort: containers often forbid it, and macOS has no such call. The audit hook refuses sockets in any case.
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare is not None and unshare(_CLONE_NEWNET) != 0:
        unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _hook() -> Callable[[str, tuple[Any, ...]], None]:
    # In a closure, because evaluated text can reach a module's globals more easily.
    events, families, write_flags = _REFUSED_EVENTS, _REFUSED_FAMILIES, _WRITE_FLAGS
    error = PermissionError  # an OSError: library code that handles a read-only disk handles this too

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            flags = args[2]
            if isinstance(flags, int) and flags & write_flags:
                raise error("a grader may not write files")
        elif event in events or event.partition(".")[0] in families:
            raise error(f"a grader may not call {event}")

    return refuse
