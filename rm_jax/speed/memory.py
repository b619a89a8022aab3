"""Bytes that a compiled XLA program reads from and writes to main memory (HBM)."""

import re

from rm_jax.speed.hlo import Array, Instruction, Program, is_part_of_collective

# Opcodes that are taken to move no bytes themselves: they name arrays, give a single number, run
# other computations, or are fused into what reads them.
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
  """Bytes that one call of a program reads from and writes to main memory.

  Arrays in the chip's own memory do not count. If a fusion reads a slice of a stack of layers, or
  writes one into it, only the slice counts.
  """
  total = 0.0
  for name, times in program.times.items():
    body = program.computations.get(name, {})
    total += times * sum(_moved(program, one, body) for one in body.values())
  # What collectives receive from other devices is written to memory, too.
  arrays = ((c.times, a) for c in program.collectives() for a in c.arrays)
  return total + sum(times * a.bytes for times, a in arrays if a.main)


def _moved(program: Program, one: Instruction, body: dict[str, Instruction]) -> float:
  """Bytes that an instruction reads and writes; 0 for collectives: see `main_memory_bytes`.

  Args:
    program: its program.
    one: the instruction.
    body: instructions of its computation.
  """
  if one.opcode in _FREE or one.opcode.endswith("-done") or is_part_of_collective(one):
    return 0.0
  if one.opcode == "slice-start":  # its output is (the sliced array, the slice, a flag)
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
    # An operand that is a tuple is one parameter of the fusion.
    taken = [_bytes_read(program, inner, number) for number in range(len(operands))]
    sizes = [n if t is None else min(n, t) for n, t in zip(sizes, taken, strict=True)]
    out = min(out, _bytes_written(program, inner, one.arrays))
  return out + sum(sizes)


def _fused(program: Program, one: Instruction) -> dict[str, Instruction]:
  """Instructions of a fusion's computation; {} if the instruction is not a fusion."""
  called = re.search(r"calls=%?([\w.-]+)", one.rest)
  return program.computations.get(called[1], {}) if called else {}


def _bytes_read(program: Program, inner: dict[str, Instruction], number: int) -> float | None:
  """Bytes that a fusion reads of one of its parameters; None if it reads all of it.

  It reads a part, or nothing, if all it does with the parameter is to take a dynamic slice of it,
  to write a slice into it, to return it, or to send it to other devices.

  Args:
    program: its program.
    inner: instructions of the fusion's computation.
    number: of the parameter.
  """
  parameters = (x for x in inner.values() if x.opcode == "parameter")
  names = {x.name for x in parameters if x.operands == (str(number),)}
  taken = 0.0
  for one in inner.values():  # in the order of the text, operands before their uses
    if not names & set(one.operands) or one.opcode == "parameter":
      continue
    if one.opcode == "bitcast":
      names.add(one.name)
    elif one.opcode == "dynamic-slice":
      taken += sum(a.bytes for a in one.arrays)
    elif one.opcode == "fusion":
      for place, name in enumerate(one.operands):
        more = _bytes_read(program, _fused(program, one), place) if name in names else 0.0
        if more is None:
          return None
        taken += more
    elif not (
      is_part_of_collective(one)
      or (one.opcode == "tuple" and one.root)
      or (one.opcode == "dynamic-update-slice" and one.operands[0] in names)
    ):
      return None
  return taken


def _bytes_written(
  program: Program, inner: dict[str, Instruction], arrays: tuple[Array, ...]
) -> float:
  """Bytes that a fusion writes; if it writes a slice into an array, only the slice.

  Args:
    program: its program.
    inner: instructions of the fusion's computation.
    arrays: of its output.
  """
  root = next(x for x in inner.values() if x.root)
  if is_part_of_collective(root):  # counted among the collectives
    return 0.0
  parts = [inner.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
  if len(parts) != len(arrays):
    return sum(a.bytes for a in arrays if a.main)
  total = 0.0
  for part, array in zip(parts, arrays, strict=True):
    while part and part.opcode == "bitcast":
      part = inner.get(part.operands[0])
    if not array.main or (part and (part.opcode == "parameter" or is_part_of_collective(part))):
      continue
    if part and part.opcode == "dynamic-update-slice" and part.operands[1] in inner:
      total += sum(a.bytes for a in inner[part.operands[1]].arrays)
    elif part and part.opcode == "fusion" and len(part.arrays) == 1:
      total += _bytes_written(program, _fused(program, part), (array,))
    else:
      total += array.bytes
  return total
