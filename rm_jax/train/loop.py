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
from rm_jax.heldout.shift import separation
from rm_jax.parallel.fingerprint import checksums
from rm_jax.parallel.hosts import asked_to_stop, broadcast_json, check_same, is_main, is_shared
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.reference import check_reference, load_reference, start_record
from rm_jax.reward.score import KeptFeatures, likelihoods_of, score_outputs
from rm_jax.reward.setup import build_model
from rm_jax.storage.files import read_lines, write_json
from rm_jax.storage.remote import refuse
from rm_jax.train import text_penalty
from rm_jax.train.best import SPLIT, Best, measured
from rm_jax.train.datasets import check_mapped, data_summary, load_data, load_shifted
from rm_jax.train.fields import check_fields
from rm_jax.train.progress import Clock, Signals
from rm_jax.train.run import Run, plan_shapes
from rm_jax.train.window import window_metrics
from rm_jax.train.writers import Writers, draw_report, peak_memory_bytes
from rm_jax.workdir.checkpoints import CheckpointError, Checkpoints
from rm_jax.workdir.folder import check, check_place, claim, earlier_record, locked, plain, resolve

log = logging.getLogger(__name__)

SHIFTED = "shifted"  # the data of data.shifted


class NotFiniteError(UserError, RuntimeError):
  """Too many steps in a row, or all, were skipped, or an update made parameters not finite.

  `Run.skipped` says when a step is skipped.
  """


class Stopped(UserError, RuntimeError):
  """A signal asked the run to stop; its state is saved."""

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.signum = signum


def train(config: Any, workdir: str | Path, *, kept: KeptFeatures | None = None) -> dict[str, Any]:
  """Trains as a config says, or resumes the run in `workdir`; returns the summary.

  Args:
    config: see configs/base.py.
    workdir: folder for config.json, metrics.jsonl, timing.jsonl, tensorboard/, model/,
      checkpoints/, best/ (with train.best), summary.json and report.png.
    kept: the frozen layers' output of earlier runs of the process, which is used where this run
      would compute the same, and replaced where not.

  Raises:
    ValueError, OSError: something is wrong with the config, files or data.
    CheckpointError: as `Checkpoints.save` and `Checkpoints.restore`.
    Stopped: SIGTERM or SIGINT (see `Signals`; with several processes only SIGTERM) came while steps
      were taken, before the last one. The state is saved.
    NotFiniteError: `train.max_skipped` steps in a row, or all steps, were skipped; or an update
      made parameters not finite.
  """
  began = time.perf_counter()
  refuse(workdir, "--workdir")
  check_fields(config)
  workdir = Path(workdir)
  check_mapped(config)
  mesh = make_mesh(config.mesh)
  check_place(workdir)
  model = build_model(config, mesh, earlier=earlier_record(workdir))
  text_penalty.check(config.loss, model)
  check_reference(config.model, model)
  data = load_data(config, model)
  shifted = load_shifted(config, model, data.heldout) or TokenDataset([], [])
  config = resolve(config, len(data.train.groups), workdir)
  sets = {
    "training data": data.train,
    "held-out data": data.heldout,
    "validation data": data.validation,
    "shifted data": shifted,
  }
  check_same(config=plain(config), **{name: one.fingerprint() for name, one in sets.items()})
  with locked(workdir):
    check(workdir, config)
    log.info("data: %s", data.report)
    run = Run(config, mesh, model, data.train)
    judged = {SPLIT: data.validation, "heldout": data.heldout, SHIFTED: shifted}
    loop = _Loop(run, workdir, judged, kept or KeptFeatures())
    # Only now, so that a run that cannot begin writes no config and no model.
    if is_main():
      claim(workdir, config, run.model, {example.kind for example in data.train.examples})
    with jax.set_mesh(mesh):
      timing = loop.run_steps()
    if shifted.groups:
      loop.report["shift"] = loop.shift()
    about = data_summary(data, model.network.head.attributes)
    return _finish(loop, {"wall_seconds": round(time.perf_counter() - began, 2), **timing}, about)


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
  if loop.validation:
    kept = {key: value for key, value in loop.validation.items() if key not in ("step", "split")}
    summary[SPLIT] = kept
  if loop.chosen:
    summary["best"] = loop.chosen
  if skipped:
    log.warning(
      "%d of %d steps were skipped, for something of them was not finite; metrics.jsonl says when",
      skipped,
      steps,
    )
  # Losses have a few parameters each, except for a language-model head, which is left out.
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
    judged: the data that it is evaluated on, each of which may be empty: 'heldout', what it is
      reported on; `SPLIT`, what its best checkpoint is chosen by; `SHIFTED`, see `shift`.
    kept: see `train`.

  Attributes:
    report: the last held-out report; at the end that of the model that is served. None before, and
      without held-out data.
    scores: the scores that it was made of, for the picture: see `draw_report` in writers.py.
    chosen: at the end, of the best checkpoint {step, measure, value}; None where none is chosen or
      it cannot be read.
    validation: at the end, the line of metrics.jsonl on the validation data of the model that is
      served; None without such data.
  """

  def __init__(
    self,
    run: Run,
    workdir: Path,
    judged: dict[str, TokenDataset],
    kept: KeptFeatures,
  ):
    self.run, self.config, self.workdir = run, run.config, workdir
    self.judged = judged
    # What is evaluated as the run goes on. Where there are validation data, the held-out ones are
    # looked at once, at the end.
    self.watched = SPLIT if judged[SPLIT].groups else "heldout"
    self.report: dict[str, Any] | None = None
    self.scores = ()
    self.chosen: dict[str, Any] | None = None
    self.validation: dict[str, Any] | None = None
    self._served: dict[str, Any] | None = None
    self.skipped = 0  # steps in a row that were skipped
    self.hashed = {"data": run.train_set, "heldout": judged["heldout"], SPLIT: judged[SPLIT]}
    # Hashes of all tokens and labels, computed once.
    self.data = {name: one.fingerprint() for name, one in self.hashed.items()}
    self.shapes = {
      name: plan_shapes(data.groups, 2048, run.packing) for name, data in self.judged.items()
    }
    options = dict(adapters=bool(run.model.base), shared=is_shared(workdir))
    train = self.config.train
    self.checkpoints = Checkpoints(workdir / "checkpoints", train.keep, **options)
    self.best = Best(workdir, train.best, train.patience, **options) if train.best else None
    refers = "reference" in run.model.network.needs
    start = run.state.all_params() if refers and self.config.model.reference == "start" else None
    self._resume()
    self.sets = {"train": run.train_set, **self.judged}
    self.shapes["train"] = None
    self.features: dict[str, Any] = {}
    self.references: dict[str, Any] = {}
    model = self.config.model
    keeps = model.frozen_layers and model.keep_features
    if keeps or start is not None:
      self.shapes["train"] = plan_shapes(run.train_set.groups, 2048, run.packing)
    if keeps:
      self.features = kept.get(
        run.model.network,
        run.state.all_params(),
        {name: (one.groups, self.shapes[name]) for name, one in self.sets.items()},
        # The weights of a mix of objectives are not trained either, and no part of these layers.
        frozen=checksums({p: x for p, x in run.state.frozen.items() if p.startswith("backbone/")}),
        mesh=run.mesh,
        packing=run.packing,
        limit_gib=model.keep_gib,
      )
      run.features = self.features.get("train")
    if refers:
      self._keep_references(start)

  def _keep_references(self, start: dict[str, Any] | None) -> None:
    """Runs the reference of an implicit reward once over all data, and keeps its log-likelihoods.

    Args:
      start: the parameters before the first step, if they are the reference; None: it is the
        checkpoint that model.reference names, which is not kept in memory.

    Raises:
      InputError: a run that is resumed had another reference, the reference cannot be used (see
        `load_reference`), or a log-likelihood is not finite.
    """
    run = self.run
    known = (earlier_record(self.workdir) or {}).get("implicit", {}).get("reference")
    saved = known["fingerprint"] if known else ""
    if start is None:
      loaded = load_reference(run.model, run.mesh, self.config.model.reference, saved=saved)
      record = loaded.record
    else:
      record = start_record(run.model, start, saved)
    if known and known != dataclasses.asdict(record):
      raise InputError(
        f"{self.workdir}: its reward is relative to the reference {known}, and now it would be to "
        f"{dataclasses.asdict(record)}; give the same checkpoint, unchanged, or another --workdir"
      )
    run.model = dataclasses.replace(run.model, reference=record)
    for name, data in self.sets.items():
      progress = f"reference, {name}"
      if start is None:
        found = loaded.likelihoods(data.groups, run.mesh, progress=progress)
      else:
        found = likelihoods_of(
          run.model.network,
          start,
          data.groups,
          mesh=run.mesh,
          packing=run.packing,
          shapes=self.shapes[name],
          features=self.features.get(name),
          progress=progress,
        )
      bad = [i for i, one in enumerate(found) if not np.isfinite(one).all()]
      if bad:
        raise InputError(
          f"{data.examples[bad[0]].origin}: the reference {record.name} gives the log-likelihoods "
          f"{found[bad[0]].tolist()}, and {len(bad)} of {len(found)} examples have such; expected "
          "finite numbers"
        )
      self.references[name] = found
    run.references = self.references["train"]

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
    for key, name in (("data", "training"), ("heldout", "held-out"), (SPLIT, SPLIT)):
      # Old checkpoints have no fingerprint of held-out or validation data: these are not compared.
      saved = position.get(key, self.data[key])
      if saved != self.data[key] and saved != self.hashed[key].fingerprint(saved):
        raise InputError(
          f"{self.workdir}: its {name} data were other ones ({saved}, now "
          f"{self.data[key]}); give the same data, or another --workdir"
        )
    self.skipped = position.get("skipped", 0)
    window = jax.device_get(self.run.state.window)
    if not all(np.isfinite(x).all() for x in window.values()):
      # Saved by a version that did not skip steps that are not finite. The sums would never be
      # finite again.
      log.warning("%s: its metrics since the last line are not finite: left out", self.workdir)
      self.run.state = dataclasses.replace(self.run.state, window=self.run.zero_window())
    log.info("resumed at step %d", int(self.run.state.step))

  def run_steps(self) -> dict[str, float | None]:
    """Takes the steps that are left, sets the attributes, and returns {'pairs_per_second'}.

    Raises NotFiniteError, Stopped and CheckpointError as `train`.
    """
    config = self.config.train
    first, last = int(self.run.state.step), config.steps
    writers = Writers(self.workdir, first, active=is_main())
    if not first or not first % config.eval_every or first >= last:
      self._judge(writers, first)
    if self._exhausted():
      last = first
    seen = int(jax.device_get(self.run.state.window["tokens"]))  # before a run was resumed
    clock = Clock(self.config.data.batch_groups, seen)
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
        # A step that is to be evaluated too is saved first: an evaluation that fails, or is killed,
        # then costs no step.
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
            self._judge(writers, done)
            if self._exhausted() and not end:
              tqdm.write(f"stopped after step {done}: no new best in {config.patience} evaluations")
              self._check(pulse, done)
              self.checkpoints.save(self.run.state, self._position())
              break
    # Of a resumed run too: its state was saved before this error was raised the first time.
    if (steps := int(self.run.state.step)) and self.run.skipped() == steps:
      raise NotFiniteError(
        f"all {steps} steps were skipped, for their gradient or loss was not finite: the "
        "model is as it was; lower --config.optimizer.learning_rate, or look at the data"
      )
    self._report_served()
    writers.close()
    self.checkpoints.close()
    return {"pairs_per_second": clock.pairs_per_second()}

  def _lines(self) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl so far on the data that are watched, the same in every process."""
    lines = read_lines(self.workdir / "metrics.jsonl") if is_main() else []
    return broadcast_json([line for line in lines if line.get("split") == self.watched])

  def _exhausted(self) -> bool:
    return self.best is not None and self.best.exhausted(self._lines())

  def _judge(self, writers: Writers, step: int) -> None:
    """Evaluates the state on the data that are watched, and keeps it if it is the best.

    Not if that was done at this step already, so that a resumed run writes the same lines as one
    that was never interrupted.
    """
    split, lines = self.watched, self._lines()
    if not self.judged[split].groups or any(x["step"] == step for x in lines):
      return
    found = self._evaluate(split, self.run.state.all_params())
    short, mark = _short(found.report, whole=split == SPLIT), ""
    if split == "heldout":
      self.report, self.scores = found.report, found.scores
    elif self.best and self.best.keep(self.run.state, short, lines):
      mark = "; the best so far"
    if is_main():
      said = evaluate.summary_line(found.report)
      if split == SPLIT:
        said = said.replace("held-out", split, 1)
      tqdm.write(f"step {step}: {said}{mark}")
    writers.write("metrics", step, short, split=split)

  def served_params(self) -> dict[str, Any]:
    """At the end, the parameters that are served: the best checkpoint's, or else the latest."""
    return self._served if self.chosen else self.run.state.all_params()

  def _report_served(self) -> None:
    """Sets the attributes as they are of the model that is served."""
    if self.watched == SPLIT:
      self.validation = self._lines()[-1]
    if self.best and (line := self.best.chosen(self._lines())):
      try:
        self._served = self.best.restore(self.run.state, line)
        self.validation = line
        self.chosen = {
          "step": self.best.checkpoints.step,
          "measure": self.best.measure,
          "value": measured(line, self.best.measure),
        }
      except CheckpointError as error:  # `workdir.load` then reads the latest as well
        log.warning("the report is of the latest checkpoint: %s", error)
      self.best.checkpoints.close()
    if self.report is None and self.judged["heldout"].groups:
      found = self._evaluate("heldout", self.served_params())
      self.report, self.scores = found.report, found.scores
      if is_main() and self.watched == SPLIT:
        which = f"best, step {self.chosen['step']}" if self.chosen else "at the end"
        tqdm.write(f"{which}: {evaluate.summary_line(self.report)}")

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
        f"{self.skipped} steps up to {step} had a gradient or loss that is not finite, and "
        "changed nothing; lower --config.optimizer.learning_rate, or look at the data of these "
        "steps"
      )

  def _log(self, writers: Writers, bar: tqdm, clock: Clock, done: int) -> None:
    window = jax.device_get(self.run.state.window)
    self.run.state = dataclasses.replace(self.run.state, window=self.run.zero_window())
    values = window_metrics(window, self.run.sources)
    # The schedule is a function of the number of updates, and a skipped step makes none.
    rate = float(self.run.schedule(done - self.run.skipped() - 1))
    values["learning_rate"] = None if values["gradient_norm"] is None else rate
    writers.write("metrics", done, values)
    speed = clock.window(values["tokens"]) | {"peak_memory_bytes": peak_memory_bytes()}
    writers.write("timing", done, speed)
    known = "" if values["accuracy"] is None else f"accuracy {values['accuracy']:.3f}, "
    loss = "none, all steps were skipped" if values["loss"] is None else f"{values['loss']:.4f}"
    bar.set_postfix_str(f"loss {loss}, {known}{speed['tokens_per_second']:.0f} tokens/s")

  def shift(self) -> dict[str, Any]:
    """Of the model that is served, at the end: {report: on the shifted data}; for an ensemble also
    the figures of `separation`, whether its members disagree more on these than on held-out data.
    """
    params, network = self.served_params(), self.run.model.network
    found = {"report": self._evaluate(SHIFTED, params).report}
    if network.head.ensemble:
      names = "heldout", SHIFTED
      scores = [[outputs for _, outputs in self._scores(name, params)] for name in names]
      found |= separation(scores, [self.judged[name] for name in names])
    return found

  def _scores(self, split: str, params: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """`score_outputs` of one of the data sets of `judged`."""
    return score_outputs(
      self.run.model.network,
      params,
      self.judged[split].groups,
      mesh=self.run.mesh,
      packing=self.run.packing,
      shapes=self.shapes[split],
      features=self.features.get(split),
      references=self.references.get(split),
      progress="held out" if split == "heldout" else split,
    )

  def _evaluate(self, split: str, params: dict[str, Any]) -> evaluate.Evaluation:
    """Evaluates parameters on one of the data sets of `judged`."""
    examples, both = self.judged[split].examples, self._scores(split, params)
    scores = [
      outputs if e.kind == "attributes" else rewards
      for e, (rewards, outputs) in zip(examples, both, strict=True)
    ]
    outputs = [outputs for _, outputs in both]
    pairs = zip(scores, outputs, strict=True)
    bad = sum(not all(np.isfinite(one).all() for one in pair) for pair in pairs)
    if bad:
      # The weights are finite (checked after each step) and yet scores overflow. That is reported
      # but does not stop the run: it may recover, or stop by itself.
      why = f"the scores of {bad} of {len(scores)} examples are not finite"
      report = {"kind": "comparison", "n": 0, "why": why, "not_finite": bad}
      return evaluate.Evaluation(report, ())
    return evaluate.evaluate(scores, examples, self.run.model.network.head.attributes, outputs)


def _short(report: dict[str, Any], *, whole: bool = False) -> dict[str, Any]:
  """The figures of a report that metrics.jsonl has.

  `whole` adds those by source, by question (`best_of`) and on first errors.
  """
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
    "not_finite",
  )
  out = {name: report[name] for name in names if name in report}
  if whole:
    out |= {name: report[name] for name in ("sources", "best_of", "first_error") if name in report}
  if "objectives" in report:
    out["objectives"] = {name: _short(one) for name, one in report["objectives"].items()}
  return out
