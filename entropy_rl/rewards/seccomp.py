"""The system calls that a grader's worker may make: a seccomp filter, assembled here.

It is a list of what is allowed: to compute, to read files, to start threads, to wait, and to end. All else fails with
EPERM: processes, signals to others, sockets, everything that changes a file or makes one, other processes' limits and
memory, namespaces, keys, BPF, io_uring. The kernel keeps the filter on the process and its threads until they end.

The numbers are those of the kernel's `unistd_64.h` (x86_64) and `asm-generic/unistd.h` (aarch64).
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

# System call: (number on x86_64, number on aarch64), None where the architecture has no such call.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # descriptors that are open already
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "close": (3, 57),
    "lseek": (8, 62),
    "fadvise64": (221, 223),
    "dup": (32, 23),
    "dup3": (292, 24),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    # looking at files and folders
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    # memory
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "brk": (12, 214),
    "madvise": (28, 233),
    # this process's own signals, threads and end
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "pause": (34, None),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # what this process is, and the time
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "times": (100, 153),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getcpu": (309, 168),
    "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "getrandom": (318, 278),
}
# Allowed under a condition on an argument; see `_program`.
_OPEN, _OPENAT, _CLONE = (2, None), (257, 56), (56, 220)
_MMAP, _MREMAP = (9, 222), (25, 216)
_TGKILL, _PRLIMIT64, _PRCTL, _FCNTL = (234, 131), (302, 261), (157, 167), (72, 25)
# Refused with the error after which the C library tries an older call, or takes a file for no terminal.
_REFUSED = {(435, 435): errno.ENOSYS, (16, 29): errno.ENOTTY}  # clone3, ioctl

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0o20000000  # the last: O_TMPFILE
_CLONE_THREAD = 0x00010000
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC

# Classic BPF (linux/bpf_common.h) and what a filter returns (linux/seccomp.h).
_LOAD, _RETURN, _EQUAL, _GREATER, _ANY_BIT = 0x20, 0x06, 0x15, 0x25, 0x45
ALLOW, KILL = 0x7FFF0000, 0x80000000
_ERRNO = 0x00050000
# platform.machine(): (index into the pairs of numbers, AUDIT_ARCH of linux/audit.h, number of the call seccomp itself)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k


def known() -> bool:
    """Whether the filter is written for this kind of machine."""
    return platform.machine() in _ARCHITECTURES


def enter(largest_bytes: int) -> bool:
    """Puts the filter on this process; it needs PR_SET_NO_NEW_PRIVS, or root.

    Args:
        largest_bytes: a single mapping of more memory than that kills the process, with SIGSYS.

    Returns:
        Whether the kernel accepted it.
    """
    return known() and install(_program(_ARCHITECTURES[platform.machine()][0], largest_bytes))


def install(body: Sequence[Instruction]) -> bool:
    """Puts a filter on this process that runs after the architecture's check, with the call's number loaded.

    Args:
        body: the instructions after those that check the architecture.

    Returns:
        Whether the kernel accepted it.
    """
    _, audit, number = _ARCHITECTURES[platform.machine()]
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, KILL), (_LOAD, 0, 0, 0), *body]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))  # struct sock_fprog
    call = ctypes.CDLL(None, use_errno=True).syscall
    return call(ctypes.c_long(number), ctypes.c_long(1), ctypes.c_long(0), ctypes.c_char_p(header)) == 0


def refusal(numbers: Sequence[int], error: int) -> list[Instruction]:
    """The body of a filter that refuses these calls and allows all others: a machine without them, for a test."""
    return [line for number in numbers for line in _when(number, [_errno(error)])] + [(_RETURN, 0, 0, ALLOW)]


def _program(machine: int, largest_bytes: int) -> list[Instruction]:
    """The filter's body for one architecture, in this process: the rules name its id."""
    allow, deny = (_RETURN, 0, 0, ALLOW), _errno(errno.EPERM)
    size = [*_argument_above(1, largest_bytes), (_RETURN, 0, 0, KILL), allow]
    new_size = [*_argument_above(2, largest_bytes), (_RETURN, 0, 0, KILL), allow]
    # An open for writing fails as if the file's mode forbade it, which libraries expect.
    write = _errno(errno.EACCES)
    rules: list[tuple[tuple[int | None, int | None], list[Instruction]]] = [
        *((pair, [allow]) for pair in _ALLOWED.values()),
        (_OPEN, [_argument(1), (_ANY_BIT, 0, 1, _WRITE_FLAGS), write, allow]),
        (_OPENAT, [_argument(2), (_ANY_BIT, 0, 1, _WRITE_FLAGS), write, allow]),
        (_MMAP, size),
        (_MREMAP, new_size),
        (_CLONE, [_argument(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), deny, allow]),
        (_TGKILL, [_argument(0), (_EQUAL, 1, 0, os.getpid()), deny, allow]),
        (_PRLIMIT64, [_argument(0), (_EQUAL, 1, 0, 0), deny, allow]),
        (_PRCTL, _one_of(0, (_PR_SET_NAME, _PR_GET_NAME), allow, deny)),
        (_FCNTL, _one_of(1, _FCNTL_COMMANDS, allow, deny)),
        *((pair, [_errno(error)]) for pair, error in _REFUSED.items()),
    ]
    body: list[Instruction] = []
    for pair, block in rules:
        number = pair[machine]
        if number is not None:
            body += _when(number, block)
    return [*body, deny]


def _when(number: int, block: list[Instruction]) -> list[Instruction]:
    """Runs a block, which returns, if the call has this number; otherwise jumps over it."""
    return [(_EQUAL, 0, len(block), number), *block]


def _argument(index: int, high: bool = False) -> Instruction:
    """Loads the low or high 32 bits of an argument (struct seccomp_data, on a little-endian machine)."""
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _argument_above(index: int, bound: int) -> list[Instruction]:
    """Continues with the next instruction if an argument is above the bound, and with the second one otherwise."""
    high, low = bound >> 32, bound & 0xFFFFFFFF
    return [
        _argument(index, high=True),
        (_GREATER, 3, 0, high),
        (_EQUAL, 0, 3, high),
        _argument(index),
        (_GREATER, 0, 1, low),
    ]


def _one_of(index: int, values: Sequence[int], allow: Instruction, deny: Instruction) -> list[Instruction]:
    """Allows the call if an argument is one of the values."""
    tests = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_argument(index), *tests, deny, allow]


def _errno(error: int) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | error)
