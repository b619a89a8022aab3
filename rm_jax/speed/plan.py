"""Plans a run: compiles its real step for given devices, present or not, and reports its cost.

The figures come from the following. Memory, operations and bytes are of one device; numbers of
parameters, the layout, and tokens per second are of all devices together:

- memory: XLA's `memory_analysis` of each program, and the arrays that are in memory while it runs
  without being its arguments;
- collectives and bytes of main memory: the compiled text (`hlo`, `memory`), in which a loop's body
  counts as many times as it runs; XLA's `cost_analysis` counts it once;
- custom kernels: the calls that stand in the compiled text; one inside a loop counts once;
- operations: computed from shapes, including those inside attention kernels. The model's operations
  (`flops.step_flops`), which MFU is about, are for tokens without padding; the executed operations
  include padding, what rematerialisation computes again, and the forward pass of `moments`, for
  what an objective needs to know of the whole step before the gradients;
- seconds: a roofline. For each program the largest of its times for operations, main memory,
  collectives and the network between slices, each by the chip's peak figures (`chips`). It is a
  lower bound: a real step is slower.
"""

import math
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from rm_jax.errors import InputError
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import count_slices, make_mesh, parse_mesh
from rm_jax.reward.architecture import build_network, planned_architecture
from rm_jax.speed.abstract import Layout, lower_step, planned_layout, topology_devices
from rm_jax.speed.advice import advice
from rm_jax.speed.chips import Chip, chip_of
from rm_jax.speed.flops import Work, forward_flops, head_flops, step_flops
from rm_jax.speed.hlo import KINDS, Program
from rm_jax.speed.memory import main_memory_bytes
from rm_jax.train.fields import check_fields
from rm_jax.workdir.folder import resolve

# Micro-batches in a device's memory: the one in use and two prepared ahead (`batch.iterate.ahead`).
_BATCHES = 3
# Prefixes of the targets of attention's custom calls: Pallas', which only attention uses here, and
# cuDNN's.
_ATTENTION = ("tpu_custom_call", "__cudnn$fmha")


def shard_bytes(tree: Any) -> float:
  """Bytes of a pytree of abstract arrays with shardings, on one device."""
  return float(
    sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
  )


def executed_flops(network: Network, layout: Layout, *, kept: bool = False) -> dict[str, float]:
  """Operations of a micro-batch on all devices, including padding and rematerialisation.

  Attention counts as half of the square of each window if it is causal, whatever a layer's sliding
  window: XLA computes the square and masks it. Attention's backward pass computes the logits again,
  as does that of a language-model head (`losses.likelihood`), and with remat 'full' every trained
  layer runs a second forward pass.

  Args:
    network: the model's.
    layout: of the step.
    kept: whether the frozen layers' output is kept, so that no step runs them.

  Returns:
    {'accumulate', 'moments': operations of that program, which runs once for each micro-batch}. A
    step that does not look ahead (see `train.objective`) has no 'moments', which is a forward pass.
  """
  B, T = layout.shape.rows, layout.shape.columns
  windows = layout.shape.windows or ((T, 1),)
  square = sum(count * (L * (L + 1) // 2 if network.causal else L * L) for L, count in windows)
  predicted = layout.work.predicted // layout.micros
  linear, attention = Work(tokens=B * T, predicted=predicted), Work(visible=B * square)
  backbone, trained = network.backbone, network.backbone.layers - network.frozen
  again = forward_flops(backbone, trained, attention) / 2 + head_flops(network, linear)
  if network.remat == "full":
    again += forward_flops(backbone, trained, Work(B * T, B * square))
  forward = forward_flops(backbone, backbone.layers, Work(B * T, B * square))
  frozen = forward_flops(backbone, network.frozen, Work(B * T, B * square)) if kept else 0.0
  return {
    "accumulate": step_flops(network, linear) + step_flops(network, attention) + again - frozen,
    "moments": forward + head_flops(network, linear) - frozen,
  }


def _compile(lowered: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
  """Compiles lowered programs, by name.

  Returns:
    (compiled programs; seconds of each compilation; bytes of the programs that XLA refused because
    they exceed the device's memory, as its error message gives them).
  """
  programs, seconds, refused = {}, {}, {}
  with tqdm(total=len(lowered), desc="plan", unit="program") as bar:
    for name, program in lowered.items():
      bar.set_postfix_str(f"compiling {name}")
      began = time.perf_counter()
      try:
        programs[name] = program.compile()
      except jax.errors.JaxRuntimeError as error:
        found = re.search(r"\((\d+\.?\d*)([KMGT])\) exceeds", str(error)) or re.search(
          r"Used (\d+\.?\d*)([KMGT]) of", str(error)
        )
        if "RESOURCE_EXHAUSTED" not in str(error) or not found:
          raise
        refused[name] = float(found[1]) * 1024.0 ** ("KMGT".index(found[2]) + 1)
      seconds[name] = round(time.perf_counter() - began, 1)
      bar.update()
  return programs, seconds, refused


def _memory(state, gradients, batch, programs, refused, chip: Chip | None) -> dict[str, Any]:
  """The report's figures of memory, in bytes on one device."""
  parts = {
    "parameters": shard_bytes([state.params, state.frozen]),
    "optimizer": shard_bytes(state.optimizer),
    "gradients": gradients,
    "batches": _BATCHES * shard_bytes(batch),
  }
  analyses = {name: program.memory_analysis() for name, program in programs.items()}
  arguments = sum(parts.values())
  if "apply" in analyses:  # XLA's own count includes the padding of small last axes
    arguments = max(arguments, analyses["apply"].argument_size_in_bytes + parts["batches"])
  temporaries = max([*refused.values(), *(x.temp_size_in_bytes for x in analyses.values())])
  # Outputs that are not written into the memory of a donated argument.
  outputs = max([0, *(x.output_size_in_bytes - x.alias_size_in_bytes for x in analyses.values())])
  total = arguments + temporaries + outputs
  hbm = chip.hbm_bytes if chip else None
  return {
    "arguments_bytes": int(arguments),
    "temporaries_bytes": int(temporaries),
    "outputs_bytes": int(outputs),
    "total_bytes": int(total),
    "hbm_bytes": hbm and int(hbm),
    "fits": None if hbm is None else bool(total <= hbm and not refused),
    "parts": {name: int(value) for name, value in parts.items()},
  }


def _stacked(state: Any, mesh: Mesh) -> set[tuple[int, ...]]:
  """Shapes that the parameters of all layers together would have, gathered over 'fsdp'.

  An all-gather of such a shape gathers all layers at once, where one at a time would do. Sizes of 1
  are left out and the others sorted, since XLA transposes and reshapes.
  """
  found = set()
  for path, x in (state.params | state.frozen).items():
    spec = x.sharding.spec
    if ("/layers/" in path or "/lower/" in path) and "fsdp" in spec and x.shape[0] > 1:
      sizes = [
        n // (mesh.shape["tensor"] if over == "tensor" else 1)
        for n, over in zip(x.shape, spec, strict=True)
      ]
      found.add(_without_ones(sizes))
  return found


def _without_ones(sizes: Iterable[int]) -> tuple[int, ...]:
  return tuple(sorted(n for n in sizes if n != 1))


def _traffic(text: Program) -> dict[str, Any]:
  """The bytes of a program: of main memory, and of each kind of collective."""
  kinds = {
    kind: {"count": 0, "bytes": 0.0, "wire_bytes": 0.0, "network_bytes": 0.0} for kind in KINDS
  }
  for one in text.collectives():
    kinds[one.kind]["count"] += one.times
    for name in ("bytes", "wire_bytes", "network_bytes"):
      kinds[one.kind][name] += one.times * getattr(one, name)
  return {
    "bytes": main_memory_bytes(text),
    "collectives": {kind: x for kind, x in kinds.items() if x["count"]},
  }


def _total(programs: dict[str, Any], name: str) -> float:
  return sum(x[name] for x in programs["collectives"].values())


def _roofline(traffic, flops, layout: Layout, network, chip: Chip, steps: int, devices: int):
  """Lower bound on the seconds of a step by the chip's peak figures, and what follows from it."""
  # Float32 at full precision is six passes in bfloat16 on a TPU.
  peak = chip.bf16_flops / (6 if network.dtype == "float32" else 1)
  parts = dict.fromkeys(("compute", "memory", "links", "network"), 0.0)
  total = 0.0
  for name, moved in traffic.items():
    runs = 1 if name == "apply" else layout.micros
    mine = {
      "compute": flops.get(name, 0.0) / peak,
      "memory": moved["bytes"] / chip.hbm_bandwidth,
      "links": _total(moved, "wire_bytes") / chip.link_bandwidth,
      "network": _total(moved, "network_bytes") / chip.network_bandwidth,
    }
    total += runs * max(mine.values())
    parts = {key: parts[key] + runs * mine[key] for key in parts}
  model_flops = step_flops(network, layout.work) / devices
  return {
    "step_seconds": total,
    "bound": max(parts, key=parts.get),
    "parts_seconds": parts,
    "mfu": model_flops / total / chip.bf16_flops,
    "tokens_per_second": layout.work.tokens / total,
    "steps": steps or None,
    "hours": steps * total / 3600 if steps else None,
  }


def plan(
  config: Any,
  *,
  topology: str,
  mesh: str = "",
  slices: int = 1,
  tokens: int = 0,
  kind: str = "pair",
  responses: int = 2,
  folder: Path | None = None,
) -> dict[str, Any]:
  """Compiles a config's step for a topology and reports what it takes of each device.

  Args:
    config: see configs/base.py. If `model.config` is set, the architecture is taken from it and
      `model.pretrained` is not read. Data are never read.
    topology: see `topology_devices` in speed/abstract.py.
    mesh: see `parse_mesh` in parallel/mesh.py; '' = the config's.
    slices: number of slices of that topology, joined by the data centre's network.
    tokens: columns (tokens) of a group; 0 = data.max_length, or the longest of data.row_lengths
      where that is less.
    kind: of the feedback.
    responses: number of responses of a group; where loss.outcome has baseline='batch', one of them
      is the response to another prompt.
    folder: where the text of each compiled program is written, as NAME.txt; None = nowhere.

  Returns:
    a dictionary for JSON: 'memory', 'step', 'roofline' (None if the chip is not in
    speed/chips.py, or XLA refused a program that exceeds its memory), 'advice' ...

  Raises:
    InputError, OSError: the config, a file that it names, the topology or the mesh cannot be used.
  """
  check_fields(config)
  devices = topology_devices(topology, slices)
  over = make_mesh(parse_mesh(mesh) if mesh else config.mesh, devices)
  network = build_network(config, planned_architecture(config), mesh=over)
  if kind == "attributes" and not network.head.attributes:
    raise InputError(
      "--kind=attributes and model.attributes is empty; expected the names of those that the "
      "feedback rates, as in --config.model.attributes=\"('helpfulness',)\""
    )
  longest = min(config.data.max_length, max(config.data.row_lengths, default=math.inf))
  layout = planned_layout(config, network, over, tokens=tokens or longest, marks=responses)
  chip, slices = chip_of(devices[0]), count_slices(devices)
  # The length of the learning-rate schedule is a constant in the program. It does not change the
  # cost, so any number of groups will do.
  settled = resolve(config, config.data.batch_groups)
  lowered, state, batch = lower_step(settled, network, over, layout, kind=kind)
  programs, seconds, refused = _compile(lowered)
  gradients = shard_bytes(state.params)  # one for each trained parameter, float32 too
  memory = _memory(state, gradients, batch, programs, refused, chip)
  for name, program in programs.items() if folder else ():
    (folder / f"{name}.txt").write_text(program.as_text())
  texts = {
    name: Program(program.as_text(), devices=over.size, slices=slices)
    for name, program in programs.items()
  }
  traffic = {name: _traffic(text) for name, text in texts.items()}
  flops = {
    name: value / over.size
    for name, value in executed_flops(network, layout, kept=batch.hidden is not None).items()
    if name in lowered
  }
  gathers = [c for t in texts.values() for c in t.collectives() if c.kind == "all-gather"]
  arrays = [a for c in gathers for a in c.arrays]
  stacks = _stacked(state, over)
  largest = max(arrays, key=lambda a: a.bytes, default=None)
  kernels: dict[str, int] = {}
  for text in texts.values():
    for name, count in text.kernels().items():
      kernels[name] = kernels.get(name, 0) + count
  own = [count for name, count in kernels.items() if name.startswith(_ATTENTION)]

  def of_step(value) -> float:
    return sum(
      value(moved) * (1 if name == "apply" else layout.micros) for name, moved in traffic.items()
    )

  complete = not refused
  report = {
    "topology": topology,
    "slices": slices,
    "devices": f"{over.size} x {devices[0].device_kind}",
    "mesh": dict(over.shape),
    "parameters": sum(math.prod(x.shape) for x in (state.params | state.frozen).values()),
    "trained_parameters": sum(math.prod(x.shape) for x in state.params.values()),
    "layout": {
      "rows": layout.shape.rows,
      "columns": layout.shape.columns,
      "groups_a_row": layout.shape.groups,
      "micro_batches": layout.micros,
      "tokens_a_step": layout.work.tokens,
    },
    "memory": memory,
    "step": {
      "model_flops": step_flops(network, layout.work) / over.size,
      "executed_flops": sum(flops.values()) * layout.micros,
      "bytes": of_step(lambda moved: moved["bytes"]) if complete else None,
      "collective_bytes": of_step(lambda moved: _total(moved, "bytes")) if complete else None,
      "wire_bytes": of_step(lambda moved: _total(moved, "wire_bytes")) if complete else None,
      "network_bytes": of_step(lambda moved: _total(moved, "network_bytes")) if complete else None,
    },
    "programs": traffic,
    "roofline": _roofline(traffic, flops, layout, network, chip, config.train.steps, over.size)
    if chip and complete
    else None,
    "largest_all_gather": largest
    and {"dtype": largest.dtype, "sizes": list(largest.sizes), "bytes": int(largest.bytes)},
    "whole_stacks_gathered": sorted(
      {f"{a.dtype}{list(a.sizes)}" for a in arrays if _without_ones(a.sizes) in stacks}
    ),
    "attention": {"backend": network.attention, "custom_calls": sum(own)},
    "kernels": kernels,
    "compile_seconds": seconds,
  }
  return report | {"advice": advice(config, report)}


def _gib(value: float) -> str:
  return f"{value / 2**30:.2f} GiB"


def table(report: dict[str, Any]) -> str:
  """The main figures of a report of `plan`, and its advice, as lines of text."""
  memory, step, line = report["memory"], report["step"], report["layout"]
  mesh = ", ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
  of = "" if memory["hbm_bytes"] is None else f" of {_gib(memory['hbm_bytes'])}"
  fits = {True: "fits", False: "does not fit", None: "this device is not in the table"}
  parts = ", ".join(f"{name} {_gib(value)}" for name, value in memory["parts"].items())
  out = [
    f"{report['devices']} ({report['slices']} slice{'s' * (report['slices'] > 1)}), mesh {mesh}; "
    f"{report['parameters'] / 1e9:.3g} billion parameters, "
    f"{report['trained_parameters'] / 1e9:.3g} trained",
    f"a step: {line['tokens_a_step']:,} tokens in {line['micro_batches']} micro-batches of "
    f"{line['rows']} rows of {line['columns']}",
    f"memory a chip: {_gib(memory['total_bytes'])}{of}, {fits[memory['fits']]}: arguments "
    f"{_gib(memory['arguments_bytes'])} ({parts}), temporaries {_gib(memory['temporaries_bytes'])}",
    f"a step on each chip: {step['executed_flops'] / 1e12:.1f} TFLOP, of them the model's "
    f"{step['model_flops'] / 1e12:.1f}",
  ]
  if step["bytes"] is not None:
    out[-1] += (
      f"; {step['bytes'] / 1e9:.1f} GB of main memory; collectives "
      f"{step['collective_bytes'] / 1e9:.2f} GB, sent {step['wire_bytes'] / 1e9:.2f} GB, between "
      f"slices {step['network_bytes'] / 1e9:.3f} GB"
    )
  if report["roofline"]:
    roof = report["roofline"]
    seconds = ", ".join(f"{name} {value:.3f}" for name, value in roof["parts_seconds"].items())
    speed = f"MFU {roof['mfu']:.1%}, {roof['tokens_per_second']:,.0f} tokens/s"
    hours = "" if roof["hours"] is None else f", {roof['hours']:.2f} h for {roof['steps']} steps"
    out.append(
      f"roofline: at least {roof['step_seconds']:.3f} s a step, bound by {roof['bound']} "
      f"({seconds}){hours}; at most {speed}"
    )
  if largest := report["largest_all_gather"]:
    stacks = report["whole_stacks_gathered"]
    out.append(
      f"largest all-gather: {largest['dtype']}{largest['sizes']}, {largest['bytes'] / 1e6:.0f} MB; "
      + (f"whole stacks are gathered: {', '.join(stacks)}" if stacks else "no whole stack")
    )
  names = ", ".join(f"{name} x {n}" for name, n in sorted(report["kernels"].items()))
  attention = report["attention"]
  out.append(
    f"attention: {attention['backend']}, in {attention['custom_calls']} custom calls; "
    f"of all custom calls: {names or 'none'}"
  )
  out.append("compiled in " + ", ".join(f"{n} {s} s" for n, s in report["compile_seconds"].items()))
  return "\n".join(out + report["advice"])
