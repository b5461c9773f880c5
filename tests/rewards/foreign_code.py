"""A user's reward functions that run code from a response, and what such code may try. Not tests.

Each attack takes the test's dict and returns whether it got what it wanted. `test_fence` runs all of them in a worker,
where none may succeed, and those of `WITHOUT_A_FENCE` in an ordinary process too, where each does.
"""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading
import types
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)


def value(response, answer):
    """The value of the response, a Python expression."""
    return float(eval(response))


def careless(response, answer):
    """The same, by an author who takes every failure for a wrong answer."""
    try:
        return float(eval(response))
    except BaseException:
        return 0.0


def attack(response, answer):
    """Runs the attack that the response names."""
    return float(bool(globals()[response](answer)))


def read_environment(given):
    return b"=" in Path(f"/proc/{given['trainer']}/environ").read_bytes()


def read_environment_of_the_parent(given):
    return b"=" in Path(f"/proc/{os.getppid()}/environ").read_bytes()


def read_the_token(given):
    return "secret" in Path(given["token"]).read_text()


def read_the_token_by_a_system_call(given):
    opened = LIBC.open(given["token"].encode(), os.O_RDONLY)
    return opened >= 0 and b"secret" in os.read(opened, 100)


def read_memory(given):
    return Path(f"/proc/{given['victim']}/mem").open("rb").fileno() >= 0


def kill(given):
    os.kill(given["victim"], signal.SIGKILL)
    return True


def kill_the_parent(given):
    os.kill(os.getppid(), 0)
    return True


def kill_everything(given):
    os.kill(-1, 0)
    return True


def send_by_pidfd(given):
    opened = os.pidfd_open(given["victim"])
    signal.pidfd_send_signal(opened, signal.SIGKILL)
    return True


def send_to_the_parent_by_pidfd(given):
    signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)
    return True


def limit(given):
    resource.prlimit(given["victim"], resource.RLIMIT_NOFILE, (3, 3))
    return True


def limit_the_parent(given):
    resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))
    return True


def trace(given):
    return LIBC.ptrace(16, given["victim"], None, None) == 0  # PTRACE_ATTACH


def write(given):
    Path(given["path"]).write_text("made")
    return True


def write_after_the_hooks_are_emptied(given):
    for found in gc.get_objects():
        if isinstance(found, types.FunctionType) and found.__name__ == "refuse":
            found.__code__ = (lambda *args: None).__code__
    for cell in [found for found in gc.get_objects() if isinstance(found, types.CellType)]:
        with contextlib.suppress(ValueError):
            if isinstance(cell.cell_contents, frozenset):
                cell.cell_contents = frozenset()
    return write(given)


def write_by_a_system_call(given):
    return LIBC.creat(given["path"].encode(), 0o666) >= 0


def append(given):
    return os.open(given["kept"], os.O_WRONLY | os.O_APPEND) >= 0


def truncate(given):
    os.truncate(given["kept"], 0)
    return True


def remove(given):
    os.remove(given["kept"])
    return True


def rename(given):
    os.rename(given["kept"], given["path"])
    return True


def link(given):
    os.link(given["kept"], given["path"])
    return True


def symlink(given):
    os.symlink("/", given["path"])
    return True


def chmod(given):
    os.chmod(given["kept"], 0o777)
    return True


def utime(given):
    os.utime(given["kept"])
    return True


def mkdir(given):
    os.mkdir(given["path"])
    return True


def mkfifo(given):
    os.mkfifo(given["path"])
    return True


def mknod(given):
    os.mknod(given["path"])
    return True


def bind_a_socket(given):
    socket.socket(socket.AF_UNIX).bind(given["path"])
    return True


def connect(given):
    socket.create_connection(("127.0.0.1", given["port"]), timeout=5).close()
    return True


def fork(given):
    if os.fork() == 0:
        os._exit(0)
    return True


def execute(given):
    return os.spawnv(os.P_WAIT, "/bin/true", ["true"]) == 0


def bomb(given):
    """1000 processes that wait, each of which would outlive the worker."""
    for _ in range(1000):
        if os.fork() == 0:
            signal.pause()
    return True


def call(given):
    """A system call with its arguments."""
    return LIBC.syscall(*given["call"]) >= 0


def reach_root(given):
    for change in (os.setuid, os.setgid):
        with contextlib.suppress(OSError):
            change(0)
    return os.getuid() == 0


def outlast_the_timer(given):
    """Takes away every limit of time that a process may take away, and computes."""
    signal.signal(signal.SIGPROF, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True:
        pass


def patch(given):
    """Makes every verifier of this process return 1.0."""
    names = ("judge_response", "score_answer", "value", "judge", "_same_text")
    spaces = [vars(module) for module in list(sys.modules.values())]
    spaces += [vars(found) for space in spaces for found in list(space.values()) if isinstance(found, type)]
    functions = [found for space in spaces for name, found in list(space.items()) if name in names]
    for found in functions:
        if isinstance(found, types.FunctionType) and not found.__code__.co_freevars:
            arguments = found.__code__.co_varnames[: found.__code__.co_argcount]
            found.__code__ = eval(f"lambda {', '.join(arguments)}: 1.0").__code__
    return len(functions) > 2


def forge(given):
    """Writes replies for itself and for those after it, to every descriptor."""
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(descriptor, given["text"].encode() * given["times"])
    os._exit(0)


def flood(given):
    """Writes a line that never ends, to every descriptor that takes it."""
    while True:
        for descriptor in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"x" * 65536)


def close_everything(given):
    for descriptor in range(64):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return True


def use_threads(given):
    threads = [threading.Thread(target=sum, args=(range(1000),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return True
