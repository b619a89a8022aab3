"""The layout of a GGUF file: its keys, and where each tensor's bytes are; counts are checked.

The `gguf` package's own reader does not check whether the file holds as much as a count in it says:
with one wrong byte it allocates arrays until there is no memory left, and missing or surplus bytes
shift every weight after them. Here each count is compared with the bytes that are left, and the
tensors with the length of the file, as llama.cpp does (ggml/src/gguf.cpp).
"""

import dataclasses
import math
import os
import pathlib
import struct
from typing import Any

import numpy as np
from gguf.constants import (
  GGML_QUANT_SIZES,
  GGUF_DEFAULT_ALIGNMENT,
  GGUF_MAGIC,
  GGMLQuantizationType,
  GGUFValueType,
)
from gguf.quants import quant_shape_to_byte_shape

from rm_jax.errors import InputError

_VERSIONS = (2, 3)
_MOST_DIMS = 4  # the most dimensions of a tensor, as in ggml
# The most keys, and the most tensors, that a file may have: far more than any model. Each takes a
# few hundred bytes of memory while the header is read, before its content is checked.
_MOST_ENTRIES = 65_536
_SCALARS = {
  GGUFValueType.UINT8: "B",
  GGUFValueType.INT8: "b",
  GGUFValueType.UINT16: "H",
  GGUFValueType.INT16: "h",
  GGUFValueType.UINT32: "I",
  GGUFValueType.INT32: "i",
  GGUFValueType.FLOAT32: "f",
  GGUFValueType.BOOL: "?",
  GGUFValueType.UINT64: "Q",
  GGUFValueType.INT64: "q",
  GGUFValueType.FLOAT64: "d",
}
_DTYPES = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor is.

  Attributes:
    name: GGUF's.
    kind: the dtype or quantisation in which it is stored.
    shape: outermost dimension first, as in NumPy; the file has the reverse order.
    start: its first byte in the file.
    nbytes: as stored.
  """

  name: str
  kind: GGMLQuantizationType
  shape: tuple[int, ...]
  start: int
  nbytes: int


class File:
  """One GGUF file, mapped into memory; values of keys and tensors are read when asked for.

  Attributes:
    tensors: name -> where it is, in the file's order.

  Args:
    path: of the file.

  Raises:
    OSError: it cannot be read.
    InputError: it is not GGUF; it has a version or a type that we do not read; or it is damaged: a
      count, length, name or offset in it is not possible, a name stands twice, or the file is
      longer or shorter than its header and tensors.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    if self.path.stat().st_size == 0:
      raise InputError("the file is empty")
    self._data = np.memmap(path, mode="r").view(np.ndarray)
    self._buffer = memoryview(self._data)
    self._at = 0
    self._what = "the header"
    if self._number("I") != GGUF_MAGIC:
      raise InputError("it does not begin with 'GGUF'")
    version = self._number("I")
    if version not in _VERSIONS:
      # In a big-endian file the bytes of the version are reversed: its low 16 bits are 0.
      order = " (big-endian)" if version & 0xFFFF == 0 and version else ""
      raise InputError(f"its version is {version}{order}; we read {_VERSIONS}, little-endian")
    tensors, keys = self._count("Q", "tensors"), self._count("Q", "keys")
    self._values: dict[str, tuple[GGUFValueType, int]] = {}  # key -> its type, where its value is
    for i in range(keys):
      self._what = f"key {i}"
      key = self._text()
      if key in self._values:
        raise InputError(f"key {key} stands twice")
      self._what = f"key {key}"
      kind = self._kind()
      self._values[key] = kind, self._at
      self._skip(kind)
    self.tensors: dict[str, Tensor] = {}
    found = [self._tensor(i) for i in range(tensors)]
    self._lay_out(found)

  def key_names(self) -> list[str]:
    """Names of the keys, in the file's order."""
    return list(self._values)

  def __contains__(self, key: str) -> bool:
    return key in self._values

  def get(self, key: str, default: Any = None) -> Any:
    """A key's value: bool, int, float, str or a list of such; the default where it is missing.

    Raises InputError, with the file's name, for a text that is not UTF-8, or a bool (outside lists)
    that is stored as another number than 0 or 1.
    """
    if key not in self._values:
      return default
    kind, self._at = self._values[key]
    self._what = f"{self.path}: key {key}"
    if kind in _SCALARS:
      return self._number(_SCALARS[kind])
    if kind == GGUFValueType.STRING:
      return self._text()
    kind, count = self._kind(), self._number("Q")
    if kind == GGUFValueType.STRING:
      return [self._text() for _ in range(count)]
    return list(struct.unpack(f"<{count}{_SCALARS[kind]}", self._bytes(count * self._size(kind))))

  def data(self, name: str) -> np.ndarray:
    """A tensor's bytes as `gguf.dequantize` takes them, a view into the file."""
    tensor = self.tensors[name]
    raw = self._data[tensor.start : tensor.start + tensor.nbytes]
    if tensor.kind in _DTYPES:
      return raw.view(_DTYPES[tensor.kind]).reshape(tensor.shape)
    return raw.reshape(quant_shape_to_byte_shape(tensor.shape, tensor.kind))

  def _bytes(self, count: int) -> memoryview:
    end = self._at + count
    if end > len(self._buffer):
      left = len(self._buffer) - self._at
      raise InputError(f"{self._what} wants {count} bytes and {left} are left")
    found = self._buffer[self._at : end]
    self._at = end
    return found

  def _number(self, code: str) -> Any:
    raw = self._bytes(struct.calcsize(f"<{code}"))
    if code == "?" and raw[0] > 1:
      raise InputError(f"{self._what}: a bool is stored as {raw[0]}")
    return struct.unpack(f"<{code}", raw)[0]

  def _count(self, code: str, of: str) -> int:
    count = self._number(code)
    if count > _MOST_ENTRIES:
      raise InputError(f"it says that it has {count} {of}; expected at most {_MOST_ENTRIES}")
    return count

  def _text(self) -> str:
    try:
      return str(self._bytes(self._number("Q")), "utf-8")
    except UnicodeDecodeError as error:
      raise InputError(f"{self._what}: not UTF-8 ({error.reason})") from error

  def _kind(self) -> GGUFValueType:
    number = self._number("I")
    try:
      return GGUFValueType(number)
    except ValueError as error:
      raise InputError(f"{self._what} is of type {number}, which is none") from error

  @staticmethod
  def _size(kind: GGUFValueType) -> int:
    return struct.calcsize(f"<{_SCALARS[kind]}")

  def _skip(self, kind: GGUFValueType) -> None:
    """Moves past a value, and checks that the file holds all of it."""
    if kind in _SCALARS:
      self._bytes(self._size(kind))
    elif kind == GGUFValueType.STRING:
      self._bytes(self._number("Q"))
    else:
      kind, count = self._kind(), self._number("Q")
      if kind in _SCALARS:
        self._bytes(count * self._size(kind))
      elif kind == GGUFValueType.STRING:
        for _ in range(count):
          self._bytes(self._number("Q"))
      else:
        raise InputError(f"{self._what} is an array of arrays, which we do not read")

  def _tensor(self, i: int) -> Tensor:
    """The next tensor of the table; its `start` is still relative to where the data begin."""
    self._what = f"tensor {i}"
    name = self._text()
    self._what = f"tensor {name}"
    dims = self._number("I")
    if not 1 <= dims <= _MOST_DIMS:
      raise InputError(f"{self._what} has {dims} dimensions; expected 1 to {_MOST_DIMS}")
    shape = tuple(self._number("Q") for _ in range(dims))[::-1]
    number, start = self._number("I"), self._number("Q")
    try:
      kind = GGMLQuantizationType(number)
    except ValueError as error:
      raise InputError(f"{self._what} is stored as type {number}, which is none") from error
    block, nbytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
      raise InputError(
        f"{self._what} has rows of {shape[-1]}, no multiple of {kind.name}'s {block}"
      )
    return Tensor(name, kind, shape, start, math.prod(shape) // block * nbytes)

  def _lay_out(self, found: list[Tensor]) -> None:
    """Checks that tensors follow one another, each aligned, to the file's end; fills `tensors`."""
    header = self._at
    align = self.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    kind = self._values.get("general.alignment", (GGUFValueType.UINT32, 0))[0]
    if kind != GGUFValueType.UINT32 or not align or align & (align - 1):
      raise InputError(f"key general.alignment is {align}; expected a power of two as uint32")
    start = padded = header + -header % align
    end = header  # where a file without tensors ends
    for tensor in found:
      if tensor.name in self.tensors:
        raise InputError(f"tensor {tensor.name} stands twice")
      if tensor.start != padded - start:
        raise InputError(
          f"tensor {tensor.name} is said to be at {tensor.start}; expected {padded - start}, where "
          "the one before it ends"
        )
      self.tensors[tensor.name] = dataclasses.replace(tensor, start=padded)
      end = padded + tensor.nbytes
      padded = end + -end % align
    size = len(self._buffer)
    # Not every writer pads after the last tensor.
    if size not in (end, padded):
      raise InputError(f"it is {size} bytes long; its header and tensors take {end}")
