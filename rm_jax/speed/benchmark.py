"""Measures the speed of training and scoring, with the training loop's own step.

The same groups are laid into rows in several ways (`MODES`), and the modes are timed in turns, so
that whatever slows the machine for a while slows all of them alike.
"""

import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from tqdm import tqdm

from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.group import Group
from rm_jax.batch.iterate import ahead
from rm_jax.data.report import DataError
from rm_jax.errors import InputError
from rm_jax.models.network import reads_marks_alone
from rm_jax.models.numerics import precision
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.score import run_groups
from rm_jax.reward.setup import TextModel, build_model
from rm_jax.speed.flops import (
  Work,
  forward_flops,
  head_flops,
  layer_weights,
  sliding_windows,
  step_flops,
  work,
)
from rm_jax.train.datasets import load_data
from rm_jax.train.fields import SIZE, check_fields, each
from rm_jax.train.run import Run
from rm_jax.train.writers import peak_memory_bytes
from rm_jax.workdir.folder import resolve

log = logging.getLogger(__name__)

# Name of a layout -> its `data.share` (prompts stored once) and `data.pack` (several groups a row).
MODES = {
  "padded": {"share": False, "pack": False},
  "packed": {"share": False, "pack": True},
  "packed_shared": {"share": True, "pack": True},
}
_FIELDS = {
  "benchmark.modes": each(lambda x: x in MODES, f"names of {', '.join(MODES)}"),
  "benchmark.steps": SIZE,
  "benchmark.turns": SIZE,
}


@jax.jit
def _square(x: jax.Array) -> jax.Array:
  return jnp.matmul(x, x, precision=precision(x.dtype))


def matmul_flops(dtype: str, *, seconds: float = 1.0, sizes: Sequence[int] = ()) -> float:
  """Floating-point operations per second of the fastest product of square matrices, on one device.

  Args:
    dtype: of the matrices; in float32 they are multiplied at full precision, as in the backbone.
    seconds: about how long to measure each size.
    sizes: rows of the matrices; () = 1024 and 2048 on a CPU, 4096 and 8192 on other devices.
  """
  best = 0.0
  for n in sizes or ((1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)):
    # Random numbers: with equal numbers a GPU draws less power and runs at a higher clock rate.
    x = jax.random.normal(jax.random.key(n), (n, n), dtype)
    _square(x).block_until_ready()
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
      _square(x).block_until_ready()
      best = max(best, 2.0 * n**3 / (time.perf_counter() - began))
  return best


def count_comparisons(group: Group) -> int:
  """Number of pairs of responses that a pair or a ranking compares, ties too; 0 for other kinds."""
  if group.kind not in ("pair", "ranking"):
    return 0
  pairs, ties = group.comparisons()
  return int(np.triu((pairs + pairs.T + ties) > 0, 1).sum())


def _bytes(tree: Any) -> int:
  """Bytes of a pytree of arrays on the device that holds most of it."""
  held: dict[Any, int] = {}
  for x in jax.tree.leaves(tree):
    for shard in x.addressable_shards:
      held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
  return max(held.values(), default=0)


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
  """(seconds that a call took, its result)."""
  began = time.perf_counter()
  out = function()
  return time.perf_counter() - began, out


class _Mode:
  """A run in one of `MODES`: compiled on creation, and timed in turns with the other modes."""

  def __init__(self, config: Any, mesh: Mesh, model: TextModel, data: TokenDataset, steps: int):
    self.run = Run(config, mesh, model, data)
    if "reference" in model.network.needs:
      # The reference's log-likelihoods, which training computes once, before its steps. Zeros will
      # do, since no figure of the benchmark depends on the values.
      self.run.references = [np.zeros(len(g.marks), np.float32) for g in data.groups]
    if config.model.frozen_layers and config.model.keep_features:
      # Likewise the output of the frozen layers. A view of one zero takes no memory.
      zero = np.zeros((), jnp.dtype(model.network.dtype))
      share, width = self.run.packing.share, model.network.backbone.width
      self.run.features = [np.broadcast_to(zero, (g.columns(share), width)) for g in data.groups]
    self.steps = list(range(steps))
    self.turns: list[dict[str, float]] = []
    self.compiled = self._compile()

  def _compile(self) -> dict[str, float]:
    """Compiles a step's programs twice: first anew, then from JAX's cache.

    These are `apply`, and for each shape `accumulate` and, where the objective needs it, `ahead`.

    Returns:
      number of programs, seconds of each time, and an estimate of the peak of device memory.
    """
    run = self.run
    first: dict[Any, Any] = {}
    for step in self.steps:
      for micro, placed in zip(run.micros(step), run.prepare(step), strict=True):
        first.setdefault(micro.shape, placed)
    gradients, sums = run.compiled.zeros()
    ahead = None
    if run.objective.looks_ahead:
      batch, key = next(iter(first.values()))
      sums_ahead = jax.eval_shape(run.compiled.ahead, run.state, batch, key)
      ahead = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums_ahead)

    def programs() -> list[Any]:
      lowered = [run.compiled.apply.lower(run.state, gradients, sums, ahead)]
      for batch, key in first.values():
        lowered.append(run.compiled.accumulate.lower(run.state, gradients, sums, batch, key, ahead))
        if ahead is not None:
          lowered.append(run.compiled.ahead.lower(run.state, batch, key))
      return [program.compile() for program in lowered]

    jax.clear_caches()  # of what another mode has traced
    cold, compiled = _timed(programs)
    jax.clear_caches()
    cached, _ = _timed(programs)
    batch = max(_bytes(batch) for batch, _ in first.values())
    scratch = max(program.memory_analysis().temp_size_in_bytes for program in compiled)
    return {
      "programs": len(compiled),
      "compile_seconds": cold,
      "compile_cached_seconds": cached,
      # Parameters and optimiser state; gradients; three batches, one in use and two prepared ahead;
      # and the temporaries of the largest program.
      "peak_memory_bytes": _bytes(run.state) + _bytes(gradients) + 3 * batch + scratch,
    }

  def turn(self, peak: float) -> None:
    """Runs all steps once, with batches prepared ahead as in training, and records the speed.

    Args:
      peak: operations per second of a matrix product on the devices, measured just before.
    """
    run = self.run
    batches = ahead(run.prepare, self.steps)
    micros = next(batches)  # prepared before the clock starts, as in the middle of a run
    jax.block_until_ready(run.state)
    began = time.perf_counter()
    while micros is not None:
      run.step(micros)
      micros = next(batches, None)
    jax.block_until_ready(run.state)
    seconds = time.perf_counter() - began
    planned = [micro for step in self.steps for micro in run.micros(step)]
    cells = sum(micro.shape.rows * micro.shape.columns for micro in planned)
    groups = [run.train_set.groups[i] for micro in planned for row in micro.rows for i in row]
    what = _work(run, groups)
    alone, _ = _timed(lambda: [jax.block_until_ready(run.prepare(step)) for step in self.steps])
    alone_at_marks = _alone(run, training=True)
    flops = step_flops(run.model.network, what, last_at_marks=alone_at_marks) / seconds
    self.turns.append(
      {
        "pairs_per_second": sum(map(count_comparisons, groups)) / seconds,
        "groups_per_second": len(groups) / seconds,
        "tokens_per_second": what.tokens / seconds,
        "flops_per_second": flops,
        "mfu": flops / peak,
        "step_seconds": seconds / len(self.steps),
        "pad_share": 1 - what.tokens / cells,
        "host_groups_per_second": len(groups) / alone,
      }
    )

  def report(self) -> dict[str, Any]:
    """Medians over the turns, the range of pairs per second, and the compilation's figures."""
    out = {name: statistics.median(t[name] for t in self.turns) for name in self.turns[0]}
    speeds = [t["pairs_per_second"] for t in self.turns]
    return out | {"pairs_per_second_range": [min(speeds), max(speeds)]} | self.compiled


def _work(run: Run, groups: list[Group]) -> Work:
  network = run.model.network
  sliding = sliding_windows(network.backbone)
  return work(groups, share=run.packing.share, causal=network.causal, sliding=sliding)


def _alone(run: Run, *, training: bool) -> bool:
  """Whether the last layer computes its output at marks only (see `models.network`).

  A text penalty reads all columns in training, and no score depends on it.
  """
  network = run.model.network
  whole = network.implicit or (training and run.objective.text)
  with jax.set_mesh(run.mesh):
    return not whole and reads_marks_alone(
      spans="starts" in run.fields, trained=network.frozen < network.backbone.layers
    )


def _scoring(run: Run, peak: float) -> dict[str, float]:
  """Speed of scoring all groups, timed on the second call, when all programs are compiled."""
  groups = run.train_set.groups
  params = run.state.all_params()

  def score():
    for _ in run_groups(
      run.model.network,
      "score",
      params,
      groups,
      mesh=run.mesh,
      packing=run.packing,
      references=run.references,
    ):
      pass

  score()
  seconds, _ = _timed(score)
  network, backbone = run.model.network, run.model.network.backbone
  what = _work(run, groups)
  flops = forward_flops(backbone, backbone.layers, what, last_at_marks=_alone(run, training=False))
  return {
    "responses_per_second": sum(len(g.ids) for g in groups) / seconds,
    "tokens_per_second": what.tokens / seconds,
    "mfu": (flops + head_flops(network, what)) / seconds / peak,
  }


def benchmark(config: Any) -> dict[str, Any]:
  """Times training and scoring.

  Args:
    config: an experiment's with a part `benchmark`, as configs/benchmark.py has it.

  Returns:
    {'modes': {mode: figures}, 'scoring': figures, 'peak_flops', 'devices', 'model', 'data' ...}.
    MFU is the model's operations per second (see speed/flops.py) divided by those of a plain matrix
    product on all devices, which is measured before each round of turns, one of every mode;
    'peak_flops' is the median of these measurements. The states of all modes are in memory at the
    same time.

  Raises:
    InputError, OSError: the config, its files or its data cannot be used.
  """
  check_fields(config, _FIELDS)
  options = config.benchmark
  mesh = make_mesh(config.mesh)
  model = build_model(config, mesh)
  data, _, _, report = load_data(config, model)
  causal = model.network.causal
  names = [mode for mode in options.modes if causal or not MODES[mode]["share"]]
  if not names:
    raise InputError(
      f"benchmark.modes is {tuple(options.modes)}, and an encoder shares no prompts; add 'packed'"
    )
  if len(data.groups) < config.data.batch_groups:
    raise DataError(
      f"{config.data.train}: {len(data.groups)} groups are left, and a step takes "
      f"data.batch_groups={config.data.batch_groups}. {report}"
    )
  log.info("data: %s", report)
  # Several CPU devices share the cores of one machine, so together they are as fast as one.
  devices = 1 if jax.default_backend() == "cpu" else mesh.size

  def peak() -> float:
    return matmul_flops(config.model.dtype, seconds=0.5) * devices

  peaks: list[float] = []
  modes: dict[str, _Mode] = {}
  bar = tqdm(total=len(names) * (1 + options.turns) + 1, desc="benchmark", unit="part")
  with bar, jax.set_mesh(mesh):
    for name in names:
      bar.set_postfix_str(f"{name}: compiling")
      one = ml_collections.ConfigDict(config.to_dict())
      one.data.update(MODES[name])
      one = resolve(one, len(data.groups))
      with _fresh_cache():
        modes[name] = _Mode(one, mesh, model, data, options.steps)
      bar.update()
    bar.set_postfix_str("first turns")
    for mode in modes.values():  # warm-up: the first turn is slower, and is not counted
      mode.turn(peak=1.0)
      mode.turns.clear()
    # In turns, so that a slow phase of the machine slows all modes and the peak alike.
    for _ in range(options.turns):
      peaks.append(peak())
      for name, mode in modes.items():
        bar.set_postfix_str(name)
        mode.turn(peaks[-1])
        bar.update()
    bar.set_postfix_str("scoring")
    scoring = _scoring(modes[names[-1]].run, peak())
    bar.update()
  backbone = model.network.backbone
  return {
    "modes": {name: mode.report() for name, mode in modes.items()},
    "scoring": scoring,
    "peak_flops": statistics.median(peaks),
    "peak_flops_range": [min(peaks), max(peaks)],
    "peak_process_bytes": peak_memory_bytes(),
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "model": {
      "layer_weights": layer_weights(backbone) * backbone.layers,
      "embedding_weights": backbone.vocab * backbone.width,
      "dtype": config.model.dtype,
    },
    "data": {
      "kept": report.kept,
      "dropped": dict(sorted(report.dropped.items())),
      "steps": options.steps,
      "turns": options.turns,
      "groups_a_step": config.data.batch_groups,
    },
  }


@contextlib.contextmanager
def _fresh_cache() -> Iterator[None]:
  """A context in which JAX's compilation cache is a new folder, and keeps every program."""
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
  )
  before = {name: getattr(jax.config, name) for name in names}
  with tempfile.TemporaryDirectory() as folder:
    for name, value in zip(names, (folder, 0.0, -1), strict=True):
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
      yield
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()


def table(report: dict[str, Any]) -> str:
  """The main figures of `benchmark` as text."""
  head = f"{'':14} {'pairs/s':>16} {'tokens/s':>9} {'MFU':>6} {'padding':>8} {'memory':>9}  compile"
  lines = [head]
  for name, mode in report["modes"].items():
    low, high = mode["pairs_per_second_range"]
    lines.append(
      f"{name:14} {mode['pairs_per_second']:6.2f} [{low:.2f}, {high:.2f}]"
      f" {mode['tokens_per_second']:9.0f} {mode['mfu']:6.1%} {mode['pad_share']:8.1%}"
      f" {mode['peak_memory_bytes'] / 2**30:5.2f} GiB"
      f"  {mode['compile_seconds']:.1f} s, again {mode['compile_cached_seconds']:.1f} s"
    )
  scoring = report["scoring"]
  lines.append(
    f"scoring: {scoring['responses_per_second']:.1f} responses/s, "
    f"{scoring['tokens_per_second']:.0f} tokens/s, MFU {scoring['mfu']:.1%}"
  )
  lines.append(f"a matrix product alone: {report['peak_flops'] / 1e9:.0f} GFLOP/s")
  return "\n".join(lines)
