"""Reads the text of a compiled XLA program (HLO): its collectives, and how often each part runs.

The layers of a model are a loop, whose body is in the text once, and XLA's own `cost_analysis`
counts it once. Here `Program.times` and `Program.collectives` count a loop's body as many times as
the loop runs.
"""

import dataclasses
import re

import numpy as np

_ARRAY = re.compile(r"\b(pred|c64|c128|(?:bf|[suf])\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
KINDS = (*COLLECTIVES, "send")


@dataclasses.dataclass(frozen=True)
class Array:
  """An array in the text.

  Attributes:
    dtype: XLA's name, as 'bf16'.
    sizes: of its dimensions.
    bytes: its size, without the padding of its layout.
    main: whether it is in main memory (HBM), which is XLA's memory space 0; the other spaces are
      on the chip, or the host's.
  """

  dtype: str
  sizes: tuple[int, ...]
  bytes: float
  main: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction, one line of the text.

  Attributes:
    name: unique in the program.
    opcode: as 'fusion' or 'all-gather-start'.
    arrays: of its output, which may be a tuple.
    operands: names of the instructions whose outputs it takes; of a parameter its number, of a
      constant its value.
    rest: the text after the operands: its attributes.
    root: whether its output is that of its computation.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str
  root: bool


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation, with the bytes that one device sends for it.

  Attributes:
    kind: one of `KINDS`; 'send' is a transfer between slices, which XLA for TPU leaves to the
      hosts.
    arrays: of its output, on one device.
    bytes: of its output, on one device.
    wire_bytes: bytes that each device sends, if the devices form a ring.
    network_bytes: bytes that each device sends to other slices.
    times: how often it runs in one call of the program.
  """

  kind: str
  arrays: tuple[Array, ...]
  bytes: float
  wire_bytes: float
  network_bytes: float
  times: int


def arrays_of(shape: str) -> tuple[Array, ...]:
  """The arrays of a shape as XLA writes it: '(bf16[2,3]{1,0:S(1)}, u32[])'.

  S(n) in a layout is the memory space; without it, or as S(0), it is main memory.
  """
  out = []
  for dtype, sizes, layout in _ARRAY.findall(shape):
    dims = tuple(int(n) for n in sizes.split(",") if n)
    # The name has an element's number of bits (bf16, s4, f8e4m3fn); a Boolean, pred, is a byte.
    bits = 8 if dtype == "pred" else int(re.match(r"[a-z]+(\d+)", dtype)[1])
    elements = float(np.prod(dims)) if dims else 1.0
    out.append(Array(dtype, dims, bits / 8 * elements, not re.search(r"S\([1-9]\)", layout or "")))
  return tuple(out)


def _closing(text: str, start: int) -> int:
  """Index of the round bracket that closes the one at `start`; the last index if none does."""
  depth = 0
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if depth == 0:
      return i
  return len(text) - 1


def _instruction(line: str) -> Instruction | None:
  """The instruction of a line `%name = shape opcode(operands), attributes`; None for others."""
  head = _INSTRUCTION.match(line)
  if not head:
    return None
  rest = line[head.end() :]
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
  shape, rest = rest[:end], rest[end:].lstrip()
  opening = rest.find("(")
  if opening < 0:
    return None
  closing = _closing(rest, opening)
  inside = rest[opening + 1 : closing]
  operands = tuple(re.findall(r"%([\w.-]+)", inside)) or tuple(
    x.split()[-1] for x in inside.split(",") if x.strip()
  )
  opcode = rest[:opening].strip()
  if opcode == "parameter":
    operands = (inside,)
  return Instruction(
    head[2], opcode, arrays_of(shape), operands, rest[closing + 1 :], bool(head[1])
  )


class Program:
  """A compiled program.

  Args:
    text: of `Compiled.as_text()`.
    devices: number of devices that it is compiled for.
    slices: number of slices that the devices belong to, in equal parts and in order of their ids.

  Attributes:
    computations: name -> its instructions, by name and in order.
    times: name of a computation -> how often it runs in one call of the program; only the entry and
      what loops, calls and conditionals run, of which every branch counts.
  """

  def __init__(self, text: str, *, devices: int = 1, slices: int = 1):
    self.devices, self.slices = devices, slices
    self.computations: dict[str, dict[str, Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
      if (head := _COMPUTATION.match(line)) and " = " not in line.split("(")[0]:
        current = self.computations.setdefault(head[2], {})
        entry = head[2] if head[1] else entry
      elif current is not None and (one := _instruction(line)):
        current[one.name] = one
    self.times: dict[str, int] = {}
    if entry:
      self._walk(entry, 1)

  def _walk(self, name: str, times: int) -> None:
    """Counts `times` runs of a computation, and those of the computations that it calls."""
    self.times[name] = self.times.get(name, 0) + times
    body = self.computations.get(name, {})
    for one in body.values():
      if one.opcode in ("while", "call", "conditional"):
        count = times * (self._trips(one, body) if one.opcode == "while" else 1)
        for other in self._called(one):
          self._walk(other, count)

  def _called(self, one: Instruction) -> list[str]:
    """Names of the computations that an instruction refers to."""
    names = [x for _, text in _CALLED.findall(one.rest) for x in re.findall(r"[\w.-]+", text)]
    return [name for name in names if name in self.computations]

  def _inside(self, name: str) -> set[str]:
    """Names of the computations that a computation's instructions refer to, at any depth.

    These are the bodies of fusions and reductions, which run as part of their instruction. Loops,
    calls and branches are left out, because `_walk` follows them and counts how often they run.
    """
    found, waiting = set(), [name]
    while waiting:
      for one in self.computations[waiting.pop()].values():
        if one.opcode not in ("while", "call", "conditional"):
          new = set(self._called(one)) - found
          found |= new
          waiting += new
    return found

  def _trips(self, loop: Instruction, around: dict[str, Instruction]) -> int:
    """How often a loop runs: XLA's `known_trip_count`, else found from the loop's instructions.

    The loop's state is a tuple that contains a counter. The condition compares the counter with a
    constant, its end. The tuple that enters the loop has the counter's start, and the tuple that
    the body returns has 'counter + step', both at the counter's index. A start that is not found is
    taken to be 0, and a step that is not found, because it is inside a fusion, to be 1.

    Args:
      loop: the while instruction.
      around: instructions of the computation that the loop is in.
    """
    if noted := _TRIPS.search(loop.rest):
      return int(noted[1])
    names = [re.search(rf"{part}=%?([\w.-]+)", loop.rest) for part in ("condition", "body")]
    condition, body = (self.computations.get(name[1], {}) if name else {} for name in names)
    bounds = [x for one in condition.values() if (x := _number(one)) is not None]
    end = next((one for one in condition.values() if one.root), None)
    counter = condition.get(end.operands[0]) if end and end.operands else None
    place = re.search(r"index=(\d+)", counter.rest) if counter else None
    out = next((one for one in body.values() if one.root and one.opcode == "tuple"), None)
    step = start = None
    into = around.get(loop.operands[0])
    if place and into and into.opcode == "tuple":
      begin = around.get(into.operands[int(place[1])])
      while begin and begin.opcode in ("copy", "bitcast"):
        begin = around.get(begin.operands[0])
      start = _number(begin) if begin else None
    if place and out and (added := body.get(out.operands[int(place[1])])):
      found = [_number(body[name]) for name in added.operands if name in body]
      step = next((n for n in found if n), None) if added.opcode == "add" else None
    return max(1, -(-(max([1, *bounds]) - (start or 0)) // (step or 1)))

  def collectives(self) -> list[Collective]:
    """All collectives; the parts of one in several fusions share a channel and count once."""
    out = []
    for name, times in self.times.items():
      found: dict[str, Collective] = {}
      for part in [name, *sorted(self._inside(name))]:
        for one in self.computations[part].values():
          channel = re.search(r"channel_id=(\d+)", one.rest)
          key = f"channel {channel[1]}" if channel else f"{part} {one.name}"
          if key not in found and (made := self._collective(one, part, times)):
            found[key] = made
      out += found.values()
    return out

  def _collective(self, one: Instruction, part: str, times: int) -> Collective | None:
    """The collective that an instruction starts, or None.

    Args:
      one: the instruction.
      part: name of its computation.
      times: how often that computation runs.
    """
    if one.opcode == "send" and "megascale" in one.rest:  # between slices, through the hosts
      return Collective(
        "send", one.arrays[:1], one.arrays[0].bytes, 0.0, one.arrays[0].bytes, times
      )
    kind = one.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
      return None
    arrays = tuple(a for a in one.arrays if a.sizes) or one.arrays
    if one.opcode != kind and kind != "all-reduce":
      arrays = arrays[len(arrays) // 2 :]  # the output of a "-start" is (inputs, outputs)
    cut = _slice_of(one, self.computations[part]) if part not in self.times else None
    if kind == "all-reduce" and cut:
      kind, arrays = "reduce-scatter", cut.arrays
    groups = replica_groups(one.rest, self.devices)
    total = sum(a.bytes for a in arrays)
    sent = total * _wire(kind, groups.shape[1])
    return Collective(
      kind, arrays, total, sent, total * self._between(kind, groups, one.rest), times
    )

  def _between(self, kind: str, groups: np.ndarray, rest: str) -> float:
    """Bytes that a device sends to other slices for each byte of its output.

    The devices of a slice share the traffic between slices, so that each sends its part of it.
    """
    if self.slices == 1:
      return 0.0
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}?", rest):
      groups = np.asarray(re.findall(r"\d+", pairs[1]), int).reshape(-1, 2)
    where = groups // max(1, self.devices // self.slices)
    slices = max(len(set(row)) for row in where.tolist())
    if slices == 1:
      return 0.0
    return _wire(kind, slices) / (groups.shape[1] // slices)

  def kernels(self) -> dict[str, int]:
    """Target of custom calls -> number of such calls in the text."""
    found: dict[str, int] = {}
    for computation in self.computations.values():
      for one in computation.values():
        if target := re.search(r'custom_call_target="([^"]*)"', one.rest):
          found[target[1]] = found.get(target[1], 0) + 1
    return found


def is_part_of_collective(one: Instruction) -> bool:
  """Whether an instruction is, or starts, a collective, or is one of its asynchronous parts."""
  return one.opcode.removesuffix("-start") in COLLECTIVES or "AsyncCollective" in one.rest


def _number(one: Instruction) -> int | None:
  """The value of a scalar constant that is a whole number from 0 on; None for others."""
  plain = one.opcode == "constant" and not one.arrays[0].sizes and one.operands
  return int(one.operands[0]) if plain and one.operands[0].isdigit() else None


def _slice_of(one: Instruction, body: dict[str, Instruction]) -> Instruction | None:
  """The slice that is taken of an all-reduce's output, in the same computation; None if none is.

  XLA for TPU writes a reduce-scatter as a fusion of an all-reduce and such a slice.
  """
  names = {one.name}
  for other in body.values():
    if names & set(other.operands):
      if other.opcode in ("dynamic-slice", "slice"):
        return other
      if other.opcode in ("bitcast", "reshape", "copy", "convert", "get-tuple-element"):
        names.add(other.name)
  return None


def _wire(kind: str, n: int) -> float:
  """Bytes that a device sends for each byte of its output, if n devices form a ring."""
  return {
    "all-gather": (n - 1) / n,
    "all-reduce": 2 * (n - 1) / n,
    "reduce-scatter": n - 1.0,
    "all-to-all": (n - 1) / n,
    "collective-permute": 1.0,
  }[kind]


def replica_groups(text: str, devices: int) -> np.ndarray:
  """The groups of devices among which a collective runs: int [groups, devices of a group].

  Args:
    text: attributes of an instruction. XLA writes the groups as lists, {{0,1},{2,3}}; as a reshaped
      and perhaps transposed range, [2,2]<=[4] or [2,2]<=[2,2]T(1,0); or as axes of a mesh,
      mesh['a'=2,'b'=2] {'b'}. If there are none, all devices are one group.
    devices: number of devices.
  """
  everyone = np.arange(devices)[None]
  if lists := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", text):
    rows = [re.findall(r"\d+", row) for row in re.findall(r"\{([\d, ]+)\}", lists[1])]
    return np.asarray(rows, int) if rows else everyone
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
    shape, source = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
    ids = np.arange(int(np.prod(source))).reshape(source)
    if iota[3]:
      ids = ids.transpose([int(n) for n in iota[3].split(",")])
    return ids.reshape(shape)
  if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
    names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", mesh[1]), strict=True)
    over = [names.index(name) for name in re.findall(r"'(\w+)'", mesh[2])]
    ids = np.arange(int(np.prod([int(n) for n in sizes]))).reshape([int(n) for n in sizes])
    count = int(np.prod([int(sizes[i]) for i in over]))
    return np.moveaxis(ids, over, range(-len(over), 0)).reshape(-1, count)
  return everyone
