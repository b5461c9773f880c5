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

import ml_dtypes
import numpy as np

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Entry = tuple[str, tuple[int, ...], np.dtype]  # a tensor's name, shape and dtype


class TensorFile:
    """The tensors of one safetensors file.

    Attributes:
        path: the file.
        shapes: the shape of every tensor by name, known without reading any data.

    Raises:
        ValueError: If the file is not a safetensors file, or is cut short.
    """

    def __init__(self, path: str | os.PathLike) -> None:
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
        """A tensor as a float32 array.

        Raises:
            ValueError: If its dtype is not float32, float16 or bfloat16, or its byte range does not fit its shape.
        """
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
