"""Reading and writing safetensors files one tensor at a time, without torch.

The format is eight bytes for the length of the header, a JSON header (name → dtype, shape, byte range), then raw
little-endian data (https://github.com/huggingface/safetensors). Files are read, not mapped into memory: the pages of a
map stay resident and would double the memory that loading a model takes.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from entropy_rl.model.foreign import check_finite, check_ranges
from entropy_rl.runtime.files import refuse_pointer

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
MAX_HEADER = 100_000_000  # bytes; the official reader's limit
MAX_AXES = 8
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Entry = tuple[str, tuple[int, ...], np.dtype]  # a tensor's name, shape and dtype


class Stored(NamedTuple):
    """A tensor's entry in the header: its dtype's name, its shape and its byte range in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """The tensors of one safetensors file.

    Attributes:
        path: the file.
        shapes: the shape of every tensor by name, known without reading any data.

    Raises:
        ValueError: If the file is not a safetensors file, is cut short, or has tensors that overlap.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = pathlib.Path(path)
        refuse_pointer(self.path)
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"{self.path}: not a safetensors file, or cut short: {size} bytes, header of {length}")
            if length > MAX_HEADER:
                raise ValueError(f"{self.path}: not a safetensors file: a header of {length} bytes")
            try:
                header = json.loads(file.read(length))
            except (ValueError, RecursionError) as e:
                raise ValueError(f"{self.path}: not a safetensors file: its header is not JSON ({e})") from None
        if not isinstance(header, dict):
            raise ValueError(f"{self.path}: not a safetensors file: its header is a {type(header).__name__}")
        header.pop("__metadata__", None)
        self.start = 8 + length
        self.entries = {name: _entry(self.path, name, entry) for name, entry in header.items()}
        self.shapes = {name: entry.shape for name, entry in self.entries.items()}
        check_ranges(self.path, [(e.begin, e.end, name) for name, e in self.entries.items()], self.start, size)

    def read(self, name: str) -> np.ndarray:
        """A tensor as a float32 array.

        Raises:
            ValueError: If its dtype is not float32, float16 or bfloat16, its byte range does not fit its shape, or a
                value is not finite.
        """
        entry = self.entries[name]
        dtype, shape = DTYPES.get(entry.dtype), entry.shape
        if dtype is None:
            raise ValueError(
                f"{self.path}: tensor {name} has dtype {entry.dtype}; expected one of "
                f"{', '.join(DTYPES)} (quantised checkpoints are read from GGUF only)"
            )
        if entry.end - entry.begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"{self.path}: tensor {name} {shape} of {entry.dtype} does not fill its {entry.end - entry.begin} bytes"
            )
        with open(self.path, "rb") as file:
            file.seek(self.start + entry.begin)
            flat = np.fromfile(file, dtype, math.prod(shape))
        value = flat.reshape(shape).astype(np.float32, copy=False)
        check_finite(self.path, name, value)
        return value


def _entry(path: pathlib.Path, name: str, entry: Any) -> Stored:
    """A tensor's entry in the header, checked; raises ValueError."""

    def numbers(value: list[Any]) -> bool:
        return all(type(n) is int and 0 <= n < 1 << 63 for n in value)

    entry = entry if isinstance(entry, dict) else {"entry": entry}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not numbers(shape) or len(shape) > MAX_AXES:
        raise ValueError(f"{path}: tensor {name} has no dtype and shape in the file's header, but {entry!r:.80}")
    if not isinstance(offsets, list) or not numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{path}: tensor {name} has the byte range {offsets!r:.80}; expected [first, end]")
    return Stored(dtype, tuple(shape), *offsets)


def write(path: str | os.PathLike, tensors: Iterable[Entry], read: Callable[[str], np.ndarray]) -> None:
    """Writes a safetensors file, reading one tensor at a time.

    Args:
        path: the file to write.
        tensors: every tensor, in order.
        read: returns the array of a name.

    Raises:
        ValueError: If a dtype is not float32, float16 or bfloat16.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, dtype in tensors:
        if dtype not in NAMES:
            raise ValueError(f"{path}: tensor {name} has dtype {dtype}; expected float32, float16 or bfloat16")
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            if name != "__metadata__":
                # Viewed as bytes, because a file does not accept a bfloat16 buffer.
                file.write(np.ascontiguousarray(read(name)).reshape(-1).view(np.uint8).data)
