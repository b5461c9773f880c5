"""Reading GGUF files: the metadata and one tensor at a time, every size checked against the file.

The format is documented at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package knows the
types and dequantises; its reader is not used, because it trusts every length in the file.
"""

import math
import mmap
import os
import pathlib
import struct
from typing import Any, NamedTuple

import gguf
import numpy as np

from entropy_rl.model.foreign import check_finite, check_ranges
from entropy_rl.runtime.files import refuse_pointer

VERSIONS = (2, 3)
MAX_AXES = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class Tensor(NamedTuple):
    """A tensor's entry in the file.

    Attributes:
        kind: how its values are stored.
        shape: the axis that varies fastest comes last, as in numpy; the file lists it first.
        begin: its first byte, counted from the start of the data.
        size: bytes.
    """

    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    begin: int
    size: int


class GGUFFile:
    """The metadata and tensors of one GGUF file.

    Attributes:
        path: the file.
        fields: the metadata: key -> number, text, truth value or list of these.
        tensors: name -> its entry.

    Raises:
        ValueError: If the file is not a GGUF file, is cut short, or has tensors that overlap.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = pathlib.Path(path)
        if not self.path.exists():
            raise ValueError(f"{self.path}: no such file")
        refuse_pointer(self.path)
        size = self.path.stat().st_size
        if size < 24:
            raise ValueError(f"{self.path}: not a GGUF file, or cut short: {size} bytes")
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(self.path, data)
            count = cursor.begin()
            self.fields = cursor.fields()
            self.tensors = cursor.tensors(count)
            alignment = self.fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
            if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
                raise ValueError(f"{self.path}: general.alignment={alignment!r}; expected a power of two")
            self.start = -(-cursor.at // alignment) * alignment
        ranges = [(t.begin, t.begin + t.size, name) for name, t in self.tensors.items()]
        check_ranges(self.path, ranges, self.start, size)

    def read(self, name: str) -> np.ndarray:
        """A tensor as a float32 array.

        Raises:
            ValueError: If its type cannot be dequantised, or a value is not finite.
        """
        tensor = self.tensors[name]
        with open(self.path, "rb") as file:
            file.seek(self.start + tensor.begin)
            raw = np.fromfile(file, np.uint8, tensor.size)
        try:
            with np.errstate(all="ignore"):  # what a broken scale makes is looked at below
                value = gguf.dequantize(_typed(raw, tensor), tensor.kind).astype(np.float32, copy=False)
        except NotImplementedError:
            raise ValueError(f"{self.path}: tensor {name} is {tensor.kind.name}, which cannot be dequantised") from None
        check_finite(self.path, name, value)
        return value.reshape(tensor.shape)


def _typed(raw: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The bytes as `gguf.dequantize` takes them: floats as such, blocks as rows of bytes."""
    plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
    if tensor.kind in plain:
        return raw.view(plain[tensor.kind])
    return raw.reshape(*tensor.shape[:-1], -1)


class _Cursor:
    """Reads a file's header from its start to its end; nothing is read beyond the file."""

    def __init__(self, path: pathlib.Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def fail(self, why: str) -> ValueError:
        return ValueError(f"{self.path}: not a GGUF file, or cut short: {why}")

    def begin(self) -> int:
        """Checks the first bytes; returns the number of tensors."""
        magic, version = self.number("<I", "the magic number"), self.number("<I", "the version")
        if magic != gguf.GGUF_MAGIC:
            raise self.fail("it does not begin with GGUF")
        if version & 65535 == 0:
            raise ValueError(f"{self.path}: a big-endian GGUF file, which is not supported")
        if version not in VERSIONS:
            raise ValueError(f"{self.path}: GGUF version {version} is not supported; expected 2 or 3")
        return self.number("<Q", "the number of tensors")

    def fields(self) -> dict[str, Any]:
        """The metadata."""
        found: dict[str, Any] = {}
        for i in range(self.count("the number of keys", 12)):
            key = self.text(f"key {i}")
            if key in found:
                raise ValueError(f"{self.path}: metadata key {key!r} is there twice")
            found[key] = self.value(self.number("<I", key), key)
        return found

    def tensors(self, count: int) -> dict[str, Tensor]:
        """The tensors' entries."""
        if count > (len(self.data) - self.at) // 24:
            raise self.fail(f"{count} tensors do not fit into its {len(self.data)} bytes")
        found: dict[str, Tensor] = {}
        for i in range(count):
            name = self.text(f"the name of tensor {i}")
            where = f"tensor {name}"
            axes = self.number("<I", where)
            if name in found:
                raise ValueError(f"{self.path}: {where} is there twice")
            if not 1 <= axes <= MAX_AXES:
                raise ValueError(f"{self.path}: {where} has {axes} axes; expected 1 to {MAX_AXES}")
            shape = tuple(self.number("<Q", where) for _ in range(axes))[::-1]
            found[name] = self.tensor(where, shape, self.number("<I", where), self.number("<Q", where))
        return found

    def tensor(self, where: str, shape: tuple[int, ...], kind: int, begin: int) -> Tensor:
        """One entry, with its size in bytes."""
        try:
            stored = gguf.GGMLQuantizationType(kind)
            block, block_bytes = gguf.GGML_QUANT_SIZES[stored]
        except (ValueError, KeyError):
            raise ValueError(f"{self.path}: {where} has the unknown type {kind}") from None
        if shape[-1] % block:
            raise ValueError(f"{self.path}: {where} {shape} does not consist of whole blocks of {block} {stored.name}")
        return Tensor(stored, shape, begin, math.prod(shape) // block * block_bytes)

    def value(self, kind: int, key: str) -> Any:
        """A value of this type."""
        if kind == _STRING:
            return self.text(key)
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], key)
        if kind != _ARRAY:
            raise ValueError(f"{self.path}: metadata key {key!r} has the unknown type {kind}")
        inner = self.number("<I", key)
        if inner == _STRING:
            return [self.text(key) for _ in range(self.count(key, 8))]
        if inner not in _SCALARS:
            raise ValueError(
                f"{self.path}: metadata key {key!r} is an array of type {inner}; arrays in arrays and "
                "unknown types are not supported"
            )
        form = _SCALARS[inner]
        count = self.count(key, struct.calcsize(form))
        values = struct.unpack_from(f"<{count}{form[1:]}", self.data, self.at)
        self.at += count * struct.calcsize(form)
        return list(values)

    def count(self, what: str, least: int) -> int:
        """A number of things of at least this many bytes each, which must fit into the rest of the file."""
        count = self.number("<Q", what)
        if count > (len(self.data) - self.at) // least:
            raise self.fail(f"{what}: {count} entries do not fit into its {len(self.data)} bytes")
        return count

    def text(self, what: str) -> str:
        """A text, preceded by its length."""
        length = self.count(what, 1)
        self.at += length
        try:
            return self.data[self.at - length : self.at].decode("utf-8")
        except UnicodeDecodeError as e:
            raise ValueError(f"{self.path}: {what!r} is not UTF-8: {e}") from None

    def number(self, form: str, what: str) -> Any:
        """A number of this `struct` format."""
        size = struct.calcsize(form)
        if self.at + size > len(self.data):
            raise self.fail(f"it ends within {what}")
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return value
