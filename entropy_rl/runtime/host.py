"""This machine: its allocator and its cache of compiled programs, both set up once, and what its devices can do."""

import ctypes
import os
import pathlib
import re
import sys

import jax

GPU_SHARE = 0.92  # of a GPU's memory that JAX takes; its own default leaves a quarter unused
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def prepare() -> None:
    """Keeps freed memory, and compiled programs, for the next use.

    On a CPU, XLA allocates its temporaries anew at every step: returning them to the system and faulting them in again
    takes a third of a training step. On a GPU, JAX takes GPU_SHARE of the memory, unless the environment sets another
    share or the device is in use already.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_SHARE))
    if sys.platform == "linux" and jax.default_backend() == "cpu":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1)):
                libc.mallopt(option, value)
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def compute_capability(device: jax.Device) -> float:
    """The compute capability of an NVIDIA GPU, such as 8.0; 0 for any other device (AMD's are names, not numbers)."""
    text = str(getattr(device, "compute_capability", ""))
    return float(text) if re.fullmatch(r"\d+\.\d+", text) else 0.0


def cache_folder() -> pathlib.Path:
    """The folder of converted models and compiled programs: $ENTROPY_RL_CACHE, or ~/.cache/entropy_rl."""
    return pathlib.Path(os.environ.get("ENTROPY_RL_CACHE", "~/.cache/entropy_rl")).expanduser()
