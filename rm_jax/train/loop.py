"""The training loop: wires data, model and run together, evaluates, logs and checkpoints."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.iterate import ahead
from rm_jax.errors import InputError, UserError
from rm_jax.heldout import evaluate
from rm_jax.heldout.shift import shift_report
from rm_jax.parallel.hosts import asked_to_stop, broadcast_json, check_same, is_main, is_shared
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.score import keep_features, score_groups
from rm_jax.reward.setup import build_model
from rm_jax.storage.files import read_lines, write_json
from rm_jax.storage.remote import refuse
from rm_jax.train import text_penalty
from rm_jax.train.datasets import data_summary, load_data, load_shifted
from rm_jax.train.fields import check_fields
from rm_jax.train.progress import Clock, Signals
from rm_jax.train.run import Run, plan_shapes
from rm_jax.train.window import window_metrics
from rm_jax.train.writers import Writers, draw_report, peak_memory_bytes
from rm_jax.workdir.checkpoints import Checkpoints
from rm_jax.workdir.folder import check, check_place, claim, earlier_record, locked, plain, resolve

log = logging.getLogger(__name__)


class NotFiniteError(UserError, RuntimeError):
  """Too many steps in a row, or all, had a gradient, loss or update that is not finite."""


class Stopped(UserError, RuntimeError):
  """A signal asked the run to stop; its state is saved."""

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.signum = signum


def train(config: Any, workdir: str | Path) -> dict[str, Any]:
  """Trains as a config says, or resumes the run in `workdir`; returns the summary.

  Args:
    config: see configs/base.py.
    workdir: folder for config.json, metrics.jsonl, timing.jsonl, tensorboard/, model/,
      checkpoints/, summary.json and report.png.

  Raises:
    ValueError: something is wrong with the config, files or data; nothing was overwritten.
    Stopped: after SIGTERM or SIGINT (with several processes only SIGTERM) and a checkpoint.
    NotFiniteError: `train.max_skipped` steps in a row, or all steps, were skipped, because their
      gradient, loss or update was not finite.
  """
  began = time.perf_counter()
  refuse(workdir, "--workdir")
  check_fields(config)
  workdir = Path(workdir)
  mesh = make_mesh(config.mesh)
  check_place(workdir)
  model = build_model(config, mesh, earlier=earlier_record(workdir))
  text_penalty.check(config.loss, model)
  train_set, heldout_set, report = load_data(config, model)
  shifted_set = load_shifted(config, model, heldout_set)
  config = resolve(config, len(train_set.groups), workdir)
  sets = {"training data": train_set, "held-out data": heldout_set}
  check_same(config=plain(config), **{name: one.fingerprint() for name, one in sets.items()})
  with locked(workdir):
    check(workdir, config)
    log.info("data: %s", report)
    run = Run(config, mesh, model, train_set)
    loop = _Loop(run, workdir, heldout_set)
    # Only now, so that a run that cannot begin leaves no files.
    if is_main():
      claim(workdir, config, model, {example.kind for example in train_set.examples})
    with jax.set_mesh(mesh):
      timing = loop.run_steps()
    if shifted_set:
      loop.report["shift"] = shift_report(
        model.network,
        run.state.all_params(),
        heldout_set,
        shifted_set,
        mesh=mesh,
        packing=run.packing,
      )
    data = data_summary(report, train_set, heldout_set, model.network.head.attributes)
    return _finish(loop, {"wall_seconds": round(time.perf_counter() - began, 2), **timing}, data)


def _finish(loop: "_Loop", timing: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
  """Writes the summary and the picture of a finished run; returns the summary."""
  run, workdir = loop.run, loop.workdir
  steps, skipped = int(run.state.step), run.skipped()
  summary = {
    "heldout": loop.report,
    "train": {
      "steps": steps,
      "skipped_steps": skipped,
      **timing,
      "peak_memory_bytes": peak_memory_bytes(),
      "trained_parameters": sum(p.size for p in run.state.params.values()),
      "frozen_parameters": sum(p.size for p in run.state.frozen.values()),
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    },
    "data": data,
  }
  if skipped:
    log.warning(
      "%d of %d steps were skipped, for something of them was not finite; metrics.jsonl says when",
      skipped,
      steps,
    )
  # Losses have a few numbers each, except for a language-model head, which is left out.
  own = {path: x for path, x in run.state.loss_params().items() if path != text_penalty.HEAD}
  if own:
    summary["train"]["loss_params"] = {path: np.asarray(x).tolist() for path, x in own.items()}
  if is_main():
    write_json(workdir / "summary.json", summary)
    lines = read_lines(workdir / "metrics.jsonl")
    draw_report(workdir / "report.png", lines, loop.report, loop.scores)
  return summary


class _Loop:
  """Drives a run: `run_steps` takes its steps, evaluates, logs and saves.

  Args:
    run: the run; if there is a checkpoint in `workdir`, its state is replaced by that.
    workdir: the run's folder.
    heldout_set: what it is evaluated on.

  Attributes:
    report: the last held-out report.
    scores: its scores, for the picture.
  """

  def __init__(self, run: Run, workdir: Path, heldout_set: TokenDataset):
    self.run, self.config, self.workdir = run, run.config, workdir
    self.heldout_set = heldout_set
    self.report: dict[str, Any] | None = None
    self.scores = ()
    self.skipped = 0  # steps in a row that were skipped
    # Hashes of all tokens and labels, computed once.
    self.data = {"data": run.train_set.fingerprint(), "heldout": heldout_set.fingerprint()}
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
      "skipped": self.skipped,
      **self.data,
    }

  def _resume(self) -> None:
    found = self.checkpoints.restore(self.run.state)
    if found is None:
      return
    self.run.state, position = found
    for key, name in (("data", "training"), ("heldout", "held-out")):
      # Old checkpoints have no fingerprint of the held-out data; there it is not compared.
      if position.get(key, self.data[key]) != self.data[key]:
        raise InputError(
          f"{self.workdir}: its {name} data were other ones ({position[key]}, now "
          f"{self.data[key]}); give the same data, or another --workdir"
        )
    self.skipped = position.get("skipped", 0)
    window = jax.device_get(self.run.state.window)
    if not all(np.isfinite(x).all() for x in window.values()):
      # From a version that did not skip such steps: the sums would never be finite again.
      log.warning("%s: its metrics since the last line are not finite: left out", self.workdir)
      self.run.state = dataclasses.replace(self.run.state, window=self.run.zero_window())
    log.info("resumed at step %d", int(self.run.state.step))

  def run_steps(self) -> dict[str, float | None]:
    """Takes the steps that are left; sets `report` and `scores`, and returns the speed."""
    config = self.config.train
    first, last = int(self.run.state.step), config.steps
    writers = Writers(self.workdir, first, active=is_main())
    if self._unjudged(first):
      self._evaluate(writers, first)
    clock = Clock(self.config.data.batch_groups)
    start = min(first, last)
    bar = tqdm(total=last, initial=start, desc="train", unit="step", disable=not is_main())
    pulse = None
    with Signals() as signals, bar:
      steps = range(first, last)
      for step, micros in zip(steps, ahead(self.run.prepare, steps), strict=True):
        with jax.transfer_guard("disallow"):
          before, pulse = pulse, self.run.step(micros)
          # The previous step's result is fetched after this step was dispatched, so that devices do
          # not wait for the host.
          self._check(before, step)
        done = step + 1
        clock.tick()
        end = done >= last
        if end or done % config.log_every == 0:
          self._log(writers, bar, clock, done)
        bar.update()
        asked = asked_to_stop(signals.asked, done)
        # Saved before it is evaluated: an evaluation that fails, or is killed, costs no step.
        if end or asked or done % config.checkpoint_every == 0:
          with clock.pause():
            pulse = self._check(pulse, done)
            self.checkpoints.save(self.run.state, self._position())
        if asked and not end:
          raise Stopped(
            f"stopped by signal {asked} after step {done}, which is saved in "
            f"{self.workdir}; the same command goes on from there",
            asked,
          )
        if end or done % config.eval_every == 0:
          with clock.pause():
            self._evaluate(writers, done)
    # Of a resumed run too: its state was saved before this error was raised the first time.
    if (steps := int(self.run.state.step)) and self.run.skipped() == steps:
      raise NotFiniteError(
        f"all {steps} steps were skipped, for their gradient, loss or update was not finite: the "
        "model is as it was; lower --config.optimizer.learning_rate, or look at the data"
      )
    if self.report is None:
      self._evaluate(None, last)
    writers.close()
    self.checkpoints.close()
    return {"pairs_per_second": clock.pairs_per_second()}

  def _unjudged(self, step: int) -> bool:
    """Whether the step that the run starts from should have been evaluated and was not.

    So a resumed run writes the same lines as one that was never interrupted.
    """
    if step and step % self.config.train.eval_every and step < self.config.train.steps:
      return False
    lines = read_lines(self.workdir / "metrics.jsonl") if is_main() else []
    return not broadcast_json(any(x.get("split") == "heldout" and x["step"] == step for x in lines))

  def _check(self, pulse: dict[str, jax.Array] | None, step: int) -> None:
    if pulse is None:
      return
    pulse = jax.device_get(pulse)
    if not pulse["finite"] and not pulse["skipped"]:
      raise NotFiniteError(
        f"the update of step {step} is not finite, though its gradient is, and is not kept: the "
        "checkpoint before it is the run's last; lower --config.optimizer.learning_rate, which is "
        f"{self.config.optimizer.learning_rate}, or the decays"
      )
    self.skipped = self.skipped + 1 if pulse["skipped"] else 0
    if self.skipped >= self.config.train.max_skipped:
      raise NotFiniteError(
        f"{self.skipped} steps up to {step} had a gradient, loss or update that is not finite, and "
        "changed nothing; lower --config.optimizer.learning_rate, or look at the data of these "
        "steps"
      )

  def _log(self, writers: Writers, bar: tqdm, clock: Clock, done: int) -> None:
    window = jax.device_get(self.run.state.window)
    self.run.state = dataclasses.replace(self.run.state, window=self.run.zero_window())
    values = window_metrics(window, self.run.sources)
    # The schedule is a function of the number of updates, which skipped steps are not.
    rate = float(self.run.schedule(done - self.run.skipped() - 1))
    values["learning_rate"] = None if values["gradient_norm"] is None else rate
    writers.write("metrics", done, values)
    speed = clock.window(values["tokens"]) | {"peak_memory_bytes": peak_memory_bytes()}
    writers.write("timing", done, speed)
    known = "" if values["accuracy"] is None else f"accuracy {values['accuracy']:.3f}, "
    loss = "none, all steps were skipped" if values["loss"] is None else f"{values['loss']:.4f}"
    bar.set_postfix_str(f"loss {loss}, {known}{speed['tokens_per_second']:.0f} tokens/s")

  def _evaluate(self, writers: Writers | None, step: int) -> None:
    """Evaluates on the held-out data: sets `report` and `scores`, and writes a line of metrics."""
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
    bad = sum(not np.isfinite(one).all() for one in scores)
    if bad:
      # The weights are finite (checked after each step) and yet scores overflow. That is reported
      # and no error: the run may recover, or stop by itself.
      why = f"the scores of {bad} of {len(scores)} examples are not finite"
      self.report, self.scores = {"kind": "comparison", "n": 0, "why": why}, ()
    else:
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
        "why",
      )
      values = {name: self.report[name] for name in names if name in self.report}
      writers.write("metrics", step, values, split="heldout")
