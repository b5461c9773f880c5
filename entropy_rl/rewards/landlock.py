"""Which files a grader's worker may read: a Landlock ruleset (linux/landlock.h), the same on every architecture.

What no rule names is denied: reading anything else, /proc included, and every change of a file. Later kernels also keep
the process from making TCP connections, and from sending signals to processes outside.
"""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # numbers of the system calls
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# Rights over files that the kernel knows, by version of its interface: 13, then refer, truncate, ioctl on devices.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_RIGHTS = 0b11  # TCP bind and connect, from version 4
_SCOPES = 0b11  # abstract sockets and signals, from version 6


def ruleset(readable: Iterable[Path], listed: Iterable[Path] = ()) -> int | None:
    """A descriptor of the rules: reading is allowed beneath these paths, and nothing else anywhere.

    Args:
        readable: files and folders; one that does not exist is left out.
        listed: folders in which only names may be read.

    Returns:
        For `restrict`, in this process or a fork of it; None if the kernel has no Landlock.
    """
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(ctypes.c_long(_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    if version < 1:
        return None
    rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    fields = [rights, _NET_RIGHTS if version >= 4 else 0, _SCOPES if version >= 6 else 0]
    attributes = struct.pack("QQQ", *fields)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = call(ctypes.c_long(_CREATE), attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if rules < 0:
        return None
    wanted = [(path, _READ_FILE | _READ_DIR if path.is_dir() else _READ_FILE) for path in readable]
    for path, allowed in [*wanted, *((path, _READ_DIR) for path in listed)]:
        with contextlib.suppress(OSError):  # it is gone by now
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", allowed, beneath)  # struct landlock_path_beneath_attr, packed
            call(ctypes.c_long(_ADD), ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0))
            os.close(beneath)
    return rules


def restrict(rules: int) -> bool:
    """Puts this process under the rules until it ends; needs PR_SET_NO_NEW_PRIVS. Returns whether the kernel did."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    return call(ctypes.c_long(_RESTRICT), ctypes.c_int(rules), ctypes.c_uint32(0)) == 0
