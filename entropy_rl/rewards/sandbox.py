"""What a grader's worker may still do once its libraries are loaded: compute, and read files.

Verifiers of several tasks call eval on the model's text. Three fences, each of which holds where another is
not permitted: resource limits, no network (where the kernel lets us drop it), and an audit hook that refuses
to start processes, open sockets, write or remove files, load C code, send signals or sleep. This keeps a
model's text from doing harm; it is not a jail for a person who means to break out of Python.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Callable

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
    """Fences this process in for good. Raises OSError where even the resource limits are refused."""
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
    # Best effort: containers often forbid it, macOS has no such call, and the audit hook stands behind it.
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare is not None and unshare(_CLONE_NEWNET) != 0:
        unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _hook() -> Callable[[str, tuple], None]:
    # Held in a closure: evaluated text reaches a module's globals more easily.
    events, families, write_flags = _REFUSED_EVENTS, _REFUSED_FAMILIES, _WRITE_FLAGS
    error = PermissionError  # an OSError, so library code that copes with a read-only disk copes with this

    def refuse(event: str, args: tuple) -> None:
        if event == "open":
            flags = args[2]
            if isinstance(flags, int) and flags & write_flags:
                raise error("a grader may not write files")
        elif event in events or event.partition(".")[0] in families:
            raise error(f"a grader may not call {event}")

    return refuse
