"""Compiled text of XLA -> bytes that a program reads from and writes to main memory."""

import re

from rm_jax.speed.hlo import Array, Instruction, Program, underway

# Nothing is read or written: names for what is there, and what runs other computations.
_FREE = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "call",
  "conditional",
  "after-all",
  "partition-id",
  "replica-id",
  "iota",
  "broadcast",
}


def main_memory_bytes(program: Program) -> float:
  """Bytes that a call reads from and writes to main memory; what stays on the chip is not in it.

  Of a stack of layers from which a fusion takes a slice, or into which it writes one, only the
  slice counts.
  """
  total = 0.0
  for name, times in program.times.items():
    body = program.computations.get(name, {})
    total += times * sum(_moved(program, one, body) for one in body.values())
  # What comes from other devices is written as well.
  arrays = ((c.times, a) for c in program.collectives() for a in c.arrays)
  return total + sum(times * a.bytes for times, a in arrays if a.main)


def _moved(program: Program, one: Instruction, body: dict[str, Instruction]) -> float:
  if one.opcode in _FREE or one.opcode.endswith("-done") or underway(one):
    return 0.0
  if one.opcode == "slice-start":  # its output is what it slices, the slice and a flag
    source, taken = one.arrays[:2]
    return taken.bytes * (source.main + taken.main)
  out = sum(a.bytes for a in one.arrays if a.main)
  if one.opcode.endswith("-start"):
    return out
  operands = [body[name] for name in one.operands if name in body]
  sizes = [sum(a.bytes for a in x.arrays if a.main) for x in operands]
  if one.opcode == "dynamic-slice":
    return 2 * out
  if one.opcode == "dynamic-update-slice":
    return 2 * sum(sizes[1:2])
  inner = _fused(program, one)
  if inner:
    # One operand may be several arrays; parameters are counted by operands.
    taken = [_taken(program, inner, number) for number in range(len(operands))]
    sizes = [n if t is None else min(n, t) for n, t in zip(sizes, taken, strict=True)]
    out = min(out, _given(program, inner, one.arrays))
  return out + sum(sizes)


def _fused(program: Program, one: Instruction) -> dict[str, Instruction]:
  called = re.search(r"calls=%?([\w.-]+)", one.rest)
  return program.computations.get(called[1], {}) if called else {}


def _taken(program: Program, inner: dict[str, Instruction], number: int) -> float | None:
  """Bytes that a fusion takes of a parameter of which it needs a part; None where it needs all.

  It may slice it, write a slice into it, hand it on, or have it on its way to other devices.
  """
  parameters = (x for x in inner.values() if x.opcode == "parameter")
  names = {x.name for x in parameters if x.operands == (str(number),)}
  taken = 0.0
  for one in inner.values():  # in order: a use stands behind what it uses
    if not names & set(one.operands) or one.opcode == "parameter":
      continue
    if one.opcode == "bitcast":
      names.add(one.name)
    elif one.opcode == "dynamic-slice":
      taken += sum(a.bytes for a in one.arrays)
    elif one.opcode == "fusion":
      for place, name in enumerate(one.operands):
        more = _taken(program, _fused(program, one), place) if name in names else 0.0
        if more is None:
          return None
        taken += more
    elif not (
      underway(one)
      or (one.opcode == "tuple" and one.root)
      or (one.opcode == "dynamic-update-slice" and one.operands[0] in names)
    ):
      return None
  return taken


def _given(program: Program, inner: dict[str, Instruction], arrays: tuple[Array, ...]) -> float:
  """Bytes that a fusion writes of its output: of a stack into which it writes a slice, the slice.

  Args:
    inner: its computation.
    arrays: of its output.
  """
  root = next(x for x in inner.values() if x.root)
  if underway(root):  # what comes from other devices is counted as theirs
    return 0.0
  parts = [inner.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
  if len(parts) != len(arrays):
    return sum(a.bytes for a in arrays if a.main)
  total = 0.0
  for part, array in zip(parts, arrays, strict=True):
    while part and part.opcode == "bitcast":
      part = inner.get(part.operands[0])
    if not array.main or (part and (part.opcode == "parameter" or underway(part))):
      continue
    if part and part.opcode == "dynamic-update-slice" and part.operands[1] in inner:
      total += sum(a.bytes for a in inner[part.operands[1]].arrays)
    elif part and part.opcode == "fusion" and len(part.arrays) == 1:
      total += _given(program, _fused(program, part), (array,))
    else:
      total += array.bytes
  return total
