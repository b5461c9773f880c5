"""Read and write safetensors files one tensor at a time.

The format is eight bytes of header length, a JSON header (name → dtype, shape, byte range), then raw
little-endian data (https://github.com/huggingface/safetensors). Plain reads, not a memory map: the pages of a map
stay resident and would double the memory of loading a model; bfloat16 needs no torch this way.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable

import ml_dtypes
import numpy as np

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFile:
    """The tensors of one safetensors file.

    Attributes:
        path: the file.
        shapes: shape of every tensor by name, known without reading any data.

    Raises:
        ValueError: the file is not a safetensors file, or is cut short.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"{self.path}: not a safetensors file, or cut short: {size} bytes, header of {length}")
            try:
                header = json.loads(file.read(length))
            except ValueError as e:
                raise ValueError(f"{self.path}: not a safetensors file: its header is not JSON ({e})") from None
        header.pop("__metadata__", None)
        self.entries = header
        self.start = 8 + length
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        end = self.start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size < end:
            raise ValueError(f"{self.path}: cut short: {size} bytes, expected {end}")

    def read(self, name: str) -> np.ndarray:
        """float32 array of the tensor's own shape. Raises ValueError for a dtype that is no plain float."""
        entry = self.entries[name]
        dtype, shape = DTYPES.get(entry["dtype"]), self.shapes[name]
        if dtype is None:
            raise ValueError(
                f"{self.path}: tensor {name} has dtype {entry['dtype']}; expected one of "
                f"{', '.join(DTYPES)} (quantised checkpoints are read from GGUF only)"
            )
        begin, end = entry["data_offsets"]
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"{self.path}: tensor {name} {shape} of {entry['dtype']} does not fill its {end - begin} bytes"
            )
        with open(self.path, "rb") as file:
            file.seek(self.start + begin)
            flat = np.fromfile(file, dtype, math.prod(shape))
        return flat.reshape(shape).astype(np.float32, copy=False)


def write(
    path: str | os.PathLike, tensors: Iterable[tuple[str, tuple[int, ...], np.dtype]], read: Callable[[str], np.ndarray]
) -> None:
    """Writes a safetensors file, asking for one tensor at a time.

    Args:
        path: the file to make.
        tensors: (name, shape, dtype) of every tensor, in order.
        read: gives the array of a name.

    Raises:
        ValueError: a dtype other than float32, float16 and bfloat16.
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
                # The view as bytes: a file takes no bfloat16 buffer.
                file.write(np.ascontiguousarray(read(name)).reshape(-1).view(np.uint8).data)
