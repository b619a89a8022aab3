"""The training loop: it wires and delegates."""

import dataclasses
import functools
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rm_jax.data.iterate import ahead, bootstrap_counts, step_groups
from rm_jax.data.pack import Packing, assemble, optional_fields, pack, plan
from rm_jax.train import evaluate, text
from rm_jax.train.checkpoints import Checkpoints
from rm_jax.train.datasets import Dataset, data_summary, load_data, load_shifted
from rm_jax.train.mesh import (
  like_parameters,
  make_mesh,
  place_batch,
  replicated,
  rows_multiple,
)
from rm_jax.train.objective import Objective
from rm_jax.train.optimizer import frozen_patterns, make_optimizer, make_schedule, split_frozen
from rm_jax.train.progress import Clock, Signals
from rm_jax.train.score import keep_features, score_groups
from rm_jax.train.setup import Model, build_model, init_params
from rm_jax.train.shift import shift_report
from rm_jax.train.step import (
  TrainState,
  make_accumulate,
  make_apply,
  make_moments,
  window_metrics,
  zero_sums,
  zero_window,
)
from rm_jax.train.workdir import check, claim, resolve
from rm_jax.train.writers import Writers, draw_report, peak_memory_bytes, read_lines, write_json

log = logging.getLogger(__name__)


class NotFiniteError(RuntimeError):
  """Too many steps in a row whose gradient was not finite."""


class Stopped(RuntimeError):
  """A signal asked the run to stop; its state is saved."""

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.signum = signum


def train(config: Any, workdir: str | Path) -> dict[str, Any]:
  """Trains as a config says, or goes on where `workdir` stopped; returns the summary.

  Args:
    config: see configs/base.py.
    workdir: gets config.json, metrics.jsonl, timing.jsonl, tensorboard/, model/, checkpoints/,
      summary.json and report.png.

  Raises:
    ValueError: config, files or data are not as they should be; nothing was overwritten.
    Stopped: on SIGTERM or SIGINT, after a checkpoint.
    NotFiniteError: `train.max_skipped` steps in a row had no finite gradient.
  """
  began = time.perf_counter()
  workdir = Path(workdir)
  mesh = make_mesh(config.mesh)
  model = build_model(config)
  text.check(config.loss, model)
  train_set, heldout_set, report = load_data(config, model)
  shifted_set = load_shifted(config, model, heldout_set)
  config = resolve(config, len(train_set.groups), workdir)
  main = jax.process_index() == 0
  check(workdir, config)
  log.info("data: %s", report)
  run = _Run(config, workdir, mesh, model, train_set, heldout_set)
  # Only now: a run that could not begin leaves nothing behind.
  if main:
    claim(workdir, config, model)
  with jax.set_mesh(mesh):
    timing = run.loop()
  if shifted_set:
    run.report["shift"] = shift_report(
      model.network,
      run.state.all_params(),
      heldout_set,
      shifted_set,
      mesh=mesh,
      packing=run.packing,
    )
  summary = {
    "heldout": run.report,
    "train": {
      "steps": int(run.state.step),
      "wall_seconds": round(time.perf_counter() - began, 2),
      **timing,
      "peak_memory_bytes": peak_memory_bytes(),
      "trained_parameters": sum(p.size for p in run.state.params.values()),
      "frozen_parameters": sum(p.size for p in run.state.frozen.values()),
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    },
    "data": data_summary(report, train_set, heldout_set, model.network.head.attributes),
  }
  # A few numbers each; but for a language-model head.
  own = {path: x for path, x in run.state.loss_params().items() if path != text.HEAD}
  if own:
    summary["train"]["loss_params"] = {path: np.asarray(x).tolist() for path, x in own.items()}
  if main:
    write_json(workdir / "summary.json", summary)
    lines = read_lines(workdir / "metrics.jsonl")
    draw_report(workdir / "report.png", lines, run.report, run.scores)
  return summary


class _Run:
  """A run's parts, put together once; `loop` drives them."""

  def __init__(
    self,
    config: Any,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    model: Model,
    train_set: Dataset,
    heldout_set: Dataset,
  ):
    self.config, self.workdir, self.mesh, self.model = config, workdir, mesh, model
    self.train_set, self.heldout_set = train_set, heldout_set
    self.report: dict[str, Any] | None = None
    self.objective = Objective(config.loss, {e.kind for e in train_set.examples})
    self.skipped = 0  # steps in a row whose gradient was not finite
    self.scores = ()
    data = config.data
    self.packing = Packing(
      share=data.share and model.network.causal,
      pack=data.pack,
      cells=data.cells,
      multiple=rows_multiple(mesh),
      row_lengths=tuple(data.row_lengths),
    )
    self.lengths = [g.columns(self.packing.share) for g in train_set.groups]
    self.members = None
    if config.model.members > 1 and config.model.bootstrap:
      self.members = bootstrap_counts(len(train_set.groups), config.model.members, config.seed)
    self.parts, self.rates = train_set.parts(data.batch_groups)
    self.sources = sorted({g.source for g in train_set.groups})
    self.fields = optional_fields(train_set.groups)
    if self.objective.text:
      self.fields |= {"previous"}
    self.shapes = self._plan(train_set, data.batch_groups)
    self.heldout_shapes = self._plan(heldout_set, 2048)
    self.key = jax.random.key(config.seed)
    self.schedule = make_schedule(config.optimizer)
    optimizer = make_optimizer(config.optimizer, self.schedule)
    self.state = self._start(optimizer)
    self.checkpoints = Checkpoints(workdir / "checkpoints", config.train.keep)
    self._resume()
    self._compile(optimizer)
    self.features = {"train": None, "heldout": None}
    if config.model.frozen_layers and config.model.keep_features:
      sets = {
        "train": (train_set.groups, self._plan(train_set, 2048)),
        "heldout": (heldout_set.groups, self.heldout_shapes),
      }
      self.features |= keep_features(
        model.network,
        self.state.all_params(),
        sets,
        mesh=mesh,
        packing=self.packing,
        limit_gib=config.model.keep_gib,
      )

  def _plan(self, dataset: Dataset, step_groups: int):
    if not dataset.groups:
      return None
    lengths = [g.columns(self.packing.share) for g in dataset.groups]
    marks = max(len(g.marks) for g in dataset.groups)
    return plan(lengths, marks, step_groups, self.packing)

  def _start(self, optimizer) -> TrainState:
    params = init_params(self.model, self.mesh, jax.random.fold_in(self.key, 0), training=True)
    own = self.objective.init_params(jax.random.fold_in(self.key, 2))
    params |= jax.device_put(own, replicated(self.mesh))
    if self.objective.text:
      params |= text.load_head(self.model, self.mesh)
    trained, frozen = split_frozen(params, frozen_patterns(self.config))
    # Without out_shardings, jit would put a whole copy of Adam's moments on every device.
    shapes = jax.eval_shape(optimizer.init, trained)
    shardings = like_parameters(shapes, trained, self.mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(trained)
    zero = jax.device_put(zero_window(len(self.sources)), replicated(self.mesh))
    step = jax.device_put(jnp.zeros((), jnp.int32), replicated(self.mesh))
    return TrainState(step, trained, frozen, opt_state, zero)

  def _position(self) -> dict[str, Any]:
    step = int(self.state.step)
    return {
      "seed": self.config.seed,
      "key": np.asarray(jax.random.key_data(self.key)).tolist(),
      "groups_seen": step * self.config.data.batch_groups,
      "data": self.train_set.fingerprint(),
    }

  def _resume(self) -> None:
    found = self.checkpoints.restore(self.state)
    if found is None:
      return
    self.state, position = found
    here = self._position()
    if position["data"] != here["data"]:
      raise ValueError(
        f"{self.workdir}: its training data were other ones ({position['data']}, now "
        f"{here['data']}); give the same data, or another --workdir"
      )
    log.info("resumed at step %d", int(self.state.step))

  def _compile(self, optimizer) -> None:
    config, network = self.config, self.model.network
    dropout = config.model.dropout
    everywhere = replicated(self.mesh)
    params = {path: x.sharding for path, x in self.state.params.items()}
    state = jax.tree.map(lambda x: x.sharding, self.state)
    sums = dict.fromkeys(zero_sums(1), everywhere)
    self.zeros = jax.jit(
      lambda: (
        {p: jnp.zeros(x.shape, x.dtype) for p, x in self.state.params.items()},
        zero_sums(len(self.sources)),
      ),
      out_shardings=(params, sums),
    )
    self.accumulate = jax.jit(
      make_accumulate(network, self.objective, sources=len(self.sources), dropout=dropout),
      donate_argnums=(1, 2),
      out_shardings=(params, sums),
    )
    self.moments = jax.jit(
      make_moments(network, self.objective, dropout=dropout), out_shardings=everywhere
    )
    apply = make_apply(optimizer)

    def applied(state, gradients, sums, total):
      new = apply(state, gradients, sums, total)
      skipped = new.window["skipped"] - state.window["skipped"]
      return new, {"skipped": skipped}

    self.apply = jax.jit(
      applied,
      donate_argnums=(0,),
      out_shardings=(state, {"skipped": everywhere}),
    )

  def _prepare(self, step: int):
    """A step's micro-batches on the devices, each with its key; runs ahead, in a thread."""
    data = self.config.data
    chosen = step_groups(
      step, self.parts, self.rates, size=data.batch_groups, seed=self.config.seed
    )
    micros = pack(chosen, self.lengths, self.shapes)
    key = jax.random.fold_in(jax.random.fold_in(self.key, 1), step)
    placed = []
    for micro, micro_key in zip(micros, jax.random.split(key, len(micros)), strict=True):
      batch, _ = assemble(
        micro,
        self.train_set.groups,
        share=self.packing.share,
        fields=self.fields,
        sources=self.sources,
        features=self.features["train"],
        members=self.members,
      )
      placed.append((place_batch(batch, self.mesh), micro_key))
    return step, placed

  def _step(self, micros) -> dict[str, jax.Array]:
    """Dispatches a step; what it returns is on its way."""
    gradients, sums = self.zeros()
    total = None
    if self.objective.decorrelation:
      parts = [self.moments(self.state, batch, key) for batch, key in micros]
      total = functools.reduce(jnp.add, parts)  # not `sum`, whose 0 comes from the host
    for batch, key in micros:
      gradients, sums = self.accumulate(self.state, gradients, sums, batch, key, total)
    self.state, pulse = self.apply(self.state, gradients, sums, total)
    return pulse

  def loop(self) -> dict[str, float | None]:
    """Runs the steps that are left, and leaves `report` and `scores`; returns their speed."""
    config = self.config.train
    first, last = int(self.state.step), config.steps
    writers = Writers(self.workdir, first, active=jax.process_index() == 0)
    if first == 0:
      self._evaluate(writers, 0)
    clock = Clock(self.config.data.batch_groups)
    bar = tqdm(total=last, initial=min(first, last), desc="train", unit="step")
    pulse = None
    with Signals() as signals, bar:
      for step, micros in ahead(self._prepare, range(first, last)):
        with jax.transfer_guard("disallow"):
          before, pulse = pulse, self._step(micros)
          # The step before is read now that this one is under way: devices never wait for the host.
          self._check(before, step)
        done = step + 1
        clock.tick(done)
        end = done >= last
        if end or done % config.log_every == 0:
          self._log(writers, bar, clock, done)
        bar.update()
        if end or done % config.eval_every == 0:
          with clock.pause():
            self._evaluate(writers, done)
        if end or signals.asked or done % config.checkpoint_every == 0:
          with clock.pause():
            self.checkpoints.save(self.state, self._position())
        if signals.asked and not end:
          raise Stopped(
            f"stopped by signal {signals.asked} after step {done}, which is saved in "
            f"{self.workdir}; the same command goes on from there",
            signals.asked,
          )
    if self.report is None:
      self._evaluate(None, last)
    writers.close()
    self.checkpoints.close()
    return {"pairs_per_second": clock.pairs_per_second()}

  def _check(self, pulse: dict[str, jax.Array] | None, step: int) -> None:
    if pulse is None:
      return
    self.skipped = self.skipped + 1 if jax.device_get(pulse["skipped"]) else 0
    if self.skipped >= self.config.train.max_skipped:
      raise NotFiniteError(
        f"{self.skipped} steps up to {step} had no finite gradient, and changed nothing; lower "
        "--config.optimizer.learning_rate, or look at the data of these steps"
      )

  def _log(self, writers: Writers, bar: tqdm, clock: Clock, done: int) -> None:
    window = jax.device_get(self.state.window)
    zero = jax.device_put(zero_window(len(self.sources)), replicated(self.mesh))
    self.state = dataclasses.replace(self.state, window=zero)
    values = window_metrics(window, self.sources) | {
      "learning_rate": float(self.schedule(done - 1))
    }
    writers.write("metrics", done, values)
    speed = clock.window(values["tokens"]) | {"peak_memory_bytes": peak_memory_bytes()}
    writers.write("timing", done, speed)
    known = "" if values["accuracy"] is None else f"accuracy {values['accuracy']:.3f}, "
    bar.set_postfix_str(
      f"loss {values['loss']:.4f}, {known}{speed['tokens_per_second']:.0f} tokens/s"
    )

  def _evaluate(self, writers: Writers | None, step: int) -> None:
    """Held-out agreement now: `report` and `scores`, and a line in the metrics."""
    groups, examples = self.heldout_set.groups, self.heldout_set.examples
    if not groups:
      return
    scores = score_groups(
      self.model.network,
      self.state.all_params(),
      groups,
      mesh=self.mesh,
      packing=self.packing,
      shapes=self.heldout_shapes,
      features=self.features["heldout"],
      progress="held out",
    )
    found = evaluate.evaluate(scores, examples, self.model.network.head.attributes)
    self.report, self.scores = found.report, found.scores
    tqdm.write(f"step {step}: {evaluate.summary_line(self.report)}")
    if writers is not None:
      names = (
        "accuracy",
        "interval",
        "loss",
        "margin",
        "n",
        "ties",
        "spearman",
        "auroc",
        "kendall",
        "attributes",
      )
      values = {name: self.report[name] for name in names if name in self.report}
      writers.write("metrics", step, values, split="heldout")
