"""The training loop: it wires and delegates."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rm_jax.data.iterate import ahead
from rm_jax.train import evaluate, text
from rm_jax.train.checkpoints import Checkpoints
from rm_jax.train.datasets import Dataset, data_summary, load_data, load_shifted
from rm_jax.train.hosts import asked_to_stop, check_same, is_main, is_shared
from rm_jax.train.mesh import make_mesh
from rm_jax.train.progress import Clock, Signals
from rm_jax.train.remote import refuse
from rm_jax.train.run import Run, plan_shapes
from rm_jax.train.score import keep_features, score_groups
from rm_jax.train.setup import build_model
from rm_jax.train.shift import shift_report
from rm_jax.train.step import window_metrics
from rm_jax.train.workdir import check, claim, earlier_record, plain, resolve
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
    Stopped: on SIGTERM or SIGINT (of several processes SIGTERM), after a checkpoint.
    NotFiniteError: `train.max_skipped` steps in a row had no finite gradient.
  """
  began = time.perf_counter()
  refuse(workdir, "--workdir")
  workdir = Path(workdir)
  mesh = make_mesh(config.mesh)
  model = build_model(config, mesh, earlier=earlier_record(workdir))
  text.check(config.loss, model)
  train_set, heldout_set, report = load_data(config, model)
  shifted_set = load_shifted(config, model, heldout_set)
  config = resolve(config, len(train_set.groups), workdir)
  sets = {"training data": train_set, "held-out data": heldout_set}
  check_same(config=plain(config), **{name: one.fingerprint() for name, one in sets.items()})
  check(workdir, config)
  log.info("data: %s", report)
  run = Run(config, mesh, model, train_set)
  loop = _Loop(run, workdir, heldout_set)
  # Only now: a run that could not begin leaves nothing behind.
  if is_main():
    claim(workdir, config, model, {example.kind for example in train_set.examples})
  with jax.set_mesh(mesh):
    timing = loop.loop()
  if shifted_set:
    loop.report["shift"] = shift_report(
      model.network,
      run.state.all_params(),
      heldout_set,
      shifted_set,
      mesh=mesh,
      packing=run.packing,
    )
  summary = {
    "heldout": loop.report,
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
  if is_main():
    write_json(workdir / "summary.json", summary)
    lines = read_lines(workdir / "metrics.jsonl")
    draw_report(workdir / "report.png", lines, loop.report, loop.scores)
  return summary


class _Loop:
  """Drives a run: `loop` takes its steps, evaluates, writes and saves."""

  def __init__(self, run: Run, workdir: Path, heldout_set: Dataset):
    self.run, self.config, self.workdir = run, run.config, workdir
    self.heldout_set = heldout_set
    self.report: dict[str, Any] | None = None
    self.scores = ()
    self.skipped = 0  # steps in a row whose gradient was not finite
    self.heldout_shapes = plan_shapes(heldout_set.groups, 2048, run.packing)
    self.checkpoints = Checkpoints(
      workdir / "checkpoints",
      self.config.train.keep,
      adapters=bool(run.model.base),
      shared=is_shared(workdir),
    )
    self._resume()
    self.heldout_features = None
    model = self.config.model
    if model.frozen_layers and model.keep_features:
      groups = run.train_set.groups
      kept = keep_features(
        run.model.network,
        run.state.all_params(),
        {
          "train": (groups, plan_shapes(groups, 2048, run.packing)),
          "heldout": (heldout_set.groups, self.heldout_shapes),
        },
        mesh=run.mesh,
        packing=run.packing,
        limit_gib=model.keep_gib,
      )
      run.features, self.heldout_features = kept.get("train"), kept.get("heldout")

  def _position(self) -> dict[str, Any]:
    step = int(self.run.state.step)
    return {
      "seed": self.config.seed,
      "key": np.asarray(jax.random.key_data(self.run.key)).tolist(),
      "groups_seen": step * self.config.data.batch_groups,
      "data": self.run.train_set.fingerprint(),
    }

  def _resume(self) -> None:
    found = self.checkpoints.restore(self.run.state)
    if found is None:
      return
    self.run.state, position = found
    here = self._position()
    if position["data"] != here["data"]:
      raise ValueError(
        f"{self.workdir}: its training data were other ones ({position['data']}, now "
        f"{here['data']}); give the same data, or another --workdir"
      )
    log.info("resumed at step %d", int(self.run.state.step))

  def loop(self) -> dict[str, float | None]:
    """Runs the steps that are left, and leaves `report` and `scores`; returns their speed."""
    config = self.config.train
    first, last = int(self.run.state.step), config.steps
    writers = Writers(self.workdir, first, active=is_main())
    if first == 0:
      self._evaluate(writers, 0)
    clock = Clock(self.config.data.batch_groups)
    start = min(first, last)
    bar = tqdm(total=last, initial=start, desc="train", unit="step", disable=not is_main())
    pulse = None
    with Signals() as signals, bar:
      steps = range(first, last)
      for step, micros in zip(steps, ahead(self.run.prepare, steps), strict=True):
        with jax.transfer_guard("disallow"):
          before, pulse = pulse, self.run.step(micros)
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
        asked = asked_to_stop(signals.asked, done)
        if end or asked or done % config.checkpoint_every == 0:
          with clock.pause():
            self.checkpoints.save(self.run.state, self._position())
        if asked and not end:
          raise Stopped(
            f"stopped by signal {asked} after step {done}, which is saved in "
            f"{self.workdir}; the same command goes on from there",
            asked,
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
    window = jax.device_get(self.run.state.window)
    self.run.state = dataclasses.replace(self.run.state, window=self.run.zero_window())
    values = window_metrics(window, self.run.sources) | {
      "learning_rate": float(self.run.schedule(done - 1))
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
      self.run.model.network,
      self.run.state.all_params(),
      groups,
      mesh=self.run.mesh,
      packing=self.run.packing,
      shapes=self.heldout_shapes,
      features=self.heldout_features,
      progress="held out",
    )
    found = evaluate.evaluate(scores, examples, self.run.model.network.head.attributes)
    self.report, self.scores = found.report, found.scores
    if is_main():
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
