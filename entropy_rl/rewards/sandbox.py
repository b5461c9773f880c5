"""Confines a grader's worker: it may compute and read the files that grading needs, and the kernel refuses all else.

A verifier may run code that a model wrote: a reward function of the user's own that executes a program, or an error in
a library. So the boundary is the kernel's, and nothing that Python code does in the process changes it. The nursery
(`worker`) moves into namespaces once (`isolate`). Each worker enters the fence after the fork and before it has read
anything: resource limits, then an empty network, an unprivileged user without capabilities, no new privileges, the
files that it may read (`landlock`), the system calls that it may make (`seccomp`). Each of these holds without the
others. A machine may not offer them all; `enter` returns what is missing.
"""

import contextlib
import ctypes
import math
import os
import re
import resource
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from entropy_rl.rewards import landlock, seccomp

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_MS_NOSUID_NODEV_NOEXEC, _MS_REC_PRIVATE = 2 | 4 | 8, 16384 | (1 << 18)
_CAPABILITIES_V3, _CAP_DAC_READ_SEARCH = 0x20080522, 2
_NOBODY = 65534
_MOST_THREADS = 256  # of the worker's user; without seccomp none, since a thread and a process are made by one call

# What Python, the C library and NumPy read at run time, beside Python's own folders.
_SYSTEM = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
]


def allowed(memory_mb: int) -> str:
    """What a verifier may do, for the message about one that failed."""
    return (
        "a verifier may compute, start threads, and read Python's libraries, its module's folder and the working "
        "directory, but nothing hidden there; it may not write files, start processes or use the network, and may use "
        f"{memory_mb} MiB beyond what its imports take. What is done at the top of its module, such as importing jax, "
        "is done before, and without these limits"
    )


class Fence(NamedTuple):
    """A fence that workers can enter, prepared once in the nursery.

    Attributes:
        rules: the descriptor of Landlock's rules; None: the kernel has no Landlock.
        network: the descriptor of an empty network; None: it could not be made.
        namespaces: whether the nursery is in namespaces of its own.
        closed: whether users in general cannot read some of what the worker must read.
    """

    rules: int | None
    network: int | None
    namespaces: bool
    closed: bool


def isolate() -> bool:
    """Moves the program into namespaces: its own process ids with their own /proc, mounts and System V objects.

    It continues in a fork of this process, the first one of the namespace, with which every other one in it ends.
    This process waits for that fork, and ends with its status.

    Returns:
        Whether the kernel permits it; if not, the program continues in this process.
    """
    if sys.platform != "linux":
        return False
    libc, uid, gid = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()
    if libc.unshare(_NEWPID | _NEWIPC | _NEWNS | (_NEWUSER if uid else 0)) != 0:
        return False
    if uid:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with contextlib.suppress(OSError):  # without a map it is nobody here, and the same user outside
                Path("/proc/self", name).write_text(line)
    if pid := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    die_with_parent()
    libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None)
    libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(_MS_NOSUID_NODEV_NOEXEC), None)
    return True


def empty_network() -> int | None:
    """The descriptor of a network that has nothing in it; None if the kernel does not permit one.

    This process stays in its network: a reward module of the user's may load things when it is imported.
    """
    found: list[int] = []

    def make() -> None:  # in a thread: a namespace is a thread's, and this one ends
        if ctypes.CDLL(None).unshare(_NEWNET) == 0:
            found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    if sys.platform == "linux":
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    return found[0] if found else None


def prepare(namespaces: bool, network: int | None, own: Iterable[Path], home: Path) -> Fence:
    """The fence for workers that may read Python's libraries and what is in some folders of the user's.

    Args:
        namespaces: the result of `isolate`.
        network: the result of `empty_network`.
        own: the folders. What is hidden in them (`.env`, `.git`, `.cache`) may not be read.
        home: the user's home folder, which is not granted by way of a folder that contains it.
    """
    paths = {Path(path) for path in [*_SYSTEM, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]}
    paths |= {Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    # Packages that are installed elsewhere, as this one may be: they may import more of themselves later.
    modules = list(sys.modules.values())
    paths |= {Path(path) for module in modules for path in getattr(module, "__path__", ()) if os.path.isdir(path)}
    folders = [folder.resolve() for folder in own if folder.resolve() != Path("/")]
    for folder in folders:
        with contextlib.suppress(OSError):
            entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
            paths |= {entry for entry in entries if not home.resolve().is_relative_to(entry)}
    paths = {path.resolve() for path in paths if os.path.exists(path)} - {Path("/"), home.resolve()}
    rules = landlock.ruleset(paths, folders) if sys.platform == "linux" else None
    return Fence(rules, network, namespaces, not all(_open_to_all(path) for path in paths))


def enter(fence: Fence, memory_mb: int, cpu_seconds: float | None) -> list[str]:
    """Confines this process until it ends.

    Args:
        fence: prepared before the fork.
        memory_mb: MiB of address space beyond what this process has now; see `Meter`. The kernel's limit is twice that.
        cpu_seconds: the kernel kills the process once it has used that much more CPU time, rounded up; None: no limit.

    Returns:
        What is missing of the fence, in words: the kernel has no such means, or this container forbids it.
    """
    if sys.platform != "linux":
        _limit(memory_mb, cpu_seconds, 0)
        return ["every means of the kernel, which has them only on Linux"]
    libc = ctypes.CDLL(None, use_errno=True)
    _limit(memory_mb, cpu_seconds, _MOST_THREADS if seccomp.known() else 0)
    missing = [] if fence.namespaces else ["namespaces"]
    if fence.network is None or libc.setns(ctypes.c_int(fence.network), ctypes.c_int(_NEWNET)) != 0:
        missing.append("an empty network")
    _drop_privileges(fence.closed, fence.rules is not None)
    die_with_parent()  # after the change of user, which takes this setting back
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if fence.rules is None or not landlock.restrict(fence.rules):
        missing.append("Landlock")
    if not seccomp.enter(memory_mb * 2**20):
        missing.append("seccomp")
    return missing


def die_with_parent() -> None:
    """Ends this process when its parent ends: otherwise a worker that waits forever would outlive the trainer."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # only Linux has this call
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Meter:
    """How much memory this process has asked for since its start: one more than it may have shows.

    A verifier may catch a MemoryError and return 0. So there is room for twice as much, no single mapping may be larger
    than half of that, and a process that has asked for more than the half has run out of memory, whatever it returned.
    """

    def __init__(self) -> None:
        self._status = -1
        with contextlib.suppress(OSError):
            self._status = os.open("/proc/self/status", os.O_RDONLY)  # it cannot be opened from inside the fence
        self._start = _field(self._status, b"VmSize")

    def used_mb(self) -> float:
        """The most MiB of address space so far, beyond those at the start; 0 if the system does not report it."""
        return (_field(self._status, b"VmPeak") - self._start) / 1024


def _field(status: int, name: bytes) -> int:
    found = re.search(name + rb":\s*(\d+) kB", os.pread(status, 8192, 0)) if status >= 0 else None
    return int(found[1]) if found else 0


def _limit(memory_mb: int, cpu_seconds: float | None, threads: int) -> None:
    here = Path("/proc/self/statm")
    size = int(here.read_text().split()[0]) * resource.getpagesize() if here.exists() else 0
    limits = [
        (resource.RLIMIT_AS, size + 2 * memory_mb * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, threads),
    ]
    if cpu_seconds is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        limits.append((resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime + cpu_seconds) + 1))
    for limit, value in limits:
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _drop_privileges(closed: bool, landlock_holds: bool) -> None:
    """Gives up root and every capability.

    If libraries are in a folder that only root may enter (/root), the worker keeps the capability to read, and Landlock
    says what. Where that does not work, it stays root's user, without capabilities.
    """
    keep = 1 << _CAP_DAC_READ_SEARCH if closed and landlock_holds else 0
    if os.geteuid() == 0 and not (closed and not (keep and _has(_CAP_DAC_READ_SEARCH))):
        if keep:
            ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        with contextlib.suppress(OSError):  # a container's root may lack the right
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    else:
        keep = 0
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    sets = (ctypes.c_uint32 * 6)(keep, keep, 0, 0, 0, 0)  # effective, permitted and inheritable, low and then high bits
    ctypes.CDLL(None).capset(header, sets)


def _has(capability: int) -> bool:
    found = re.search(r"CapPrm:\s*([0-9a-f]+)", Path("/proc/self/status").read_text())
    return found is not None and bool(int(found[1], 16) >> capability & 1)


def _open_to_all(path: Path) -> bool:
    """Whether every user may read a file, or list a folder, and enter the folders that it is in."""
    return bool(path.stat().st_mode & 0o004) and all(parent.stat().st_mode & 0o001 for parent in path.parents)
