"""The first stage of a chain: supervised fine-tuning of the policy, and its start where it is not.

The folder has metrics.jsonl, tensorboard/, checkpoints/ and, once done, model/, from which every
later stage reads the policy.
"""

import logging
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from rm_jax.batch.iterate import step_groups
from rm_jax.data.report import Report
from rm_jax.policy.experience import lay, packing_of
from rm_jax.policy.sft import Likelihood, mean_loss, tokenised
from rm_jax.policy.update import compile_update, start, take_step
from rm_jax.rlhf import policies
from rm_jax.rlhf.prompts import texts_of
from rm_jax.rlhf.stages import Stage
from rm_jax.train.loop import NotFiniteError, Stopped
from rm_jax.train.optimizer import applied, make_optimizer, make_schedule
from rm_jax.train.progress import Signals
from rm_jax.train.writers import Writers
from rm_jax.types import Text
from rm_jax.workdir.checkpoints import Checkpoints
from rm_jax.workdir.folder import locked

log = logging.getLogger(__name__)

# Which part of the chain's config decides what fine-tuning gives.
PARTS = ("seed", "policy", "sft", "world", "data.max_length")


def finetune(config: Any, stage: Stage, mesh: Mesh, held: list[Text]) -> dict[str, Any]:
  """Fine-tunes the policy on sft.texts, or goes on with it; saves it as `stage.folder`/model.

  Without sft.texts the policy is saved as it is.

  Args:
    config: the chain's.
    stage: see `Stage`.
    mesh: the devices.
    held: prompts whose texts are left out.

  Returns:
    the stage's results: {fingerprint: of the policy, steps, loss: on the texts that were not
    trained on, None without any}.

  Raises:
    Stopped: a signal came; the state is saved.
    NotFiniteError: a step was not finite.
    DataError, InputError: the texts or the policy cannot be used.
  """
  if (done := stage.done()) is not None:
    return done
  with locked(stage.folder):
    if (done := stage.done()) is not None:  # another process was at work on it
      return done
    stage.begin()
    loaded = policies.load(config, mesh)
    if not config.sft.texts:
      policies.save(loaded, loaded.nested, stage.folder / "model")
      return stage.finish(_results(config, stage, mesh, steps=0, loss=None))
    return _train(config, stage, loaded, held)


def _results(config: Any, stage: Stage, mesh: Mesh, **results: Any) -> dict[str, Any]:
  # Of the policy as later stages read it: with adapters merged, and new ones.
  saved = policies.load(config, mesh, stage.folder / "model")
  return {"fingerprint": saved.fingerprint, **results}


def rated(optimizer: Any, steps: int) -> ConfigDict:
  """The `optimizer` part of a config with its automatic fields filled in, for so many steps."""
  found = ConfigDict(optimizer.to_dict())
  if not found.decay_steps:
    found.decay_steps = steps
  if found.warmup_steps < 0:
    found.warmup_steps = round(0.03 * found.decay_steps)
  return found


def _train(config: Any, stage: Stage, loaded: policies.Loaded, held: list[Text]) -> dict[str, Any]:
  c, mesh, network = config.sft, loaded.mesh, loaded.policy.text_model.network
  packing, report = packing_of(mesh, config.rl.cells), Report()
  rows = texts_of(config, held)
  report.rows = len(rows)
  aside = min(c.heldout, len(rows) // 2)
  texts = tokenised(loaded.policy, rows[aside:], report, packing)
  apart = tokenised(loaded.policy, rows[:aside], report, packing) if aside else None
  log.info("texts to fine-tune on: %s", report)
  count = len(texts.groups)
  last = max(1, round(c.epochs * count / c.batch))
  settings = rated(c.optimizer, last)
  schedule = make_schedule(settings)
  optimizer = make_optimizer(settings, schedule)
  state = start(loaded.params, optimizer, mesh, freeze=policies.frozen(config, c.optimizer))
  compiled = compile_update(network, Likelihood(), optimizer)
  adapters = bool(loaded.policy.text_model.base)
  checkpoints = Checkpoints(stage.folder / "checkpoints", adapters=adapters)
  if found := checkpoints.restore(state):
    state, _ = found
  first, every = int(state.step), (np.arange(count),)
  writers = Writers(stage.folder, first, active=True)

  def heldout() -> float | None:
    return mean_loss(network, state.all_params(), apart, mesh) if apart else None

  if not first and (loss := heldout()) is not None:
    writers.write("metrics", 0, {"loss": loss}, split="heldout")
  bar = tqdm(total=last, initial=first, desc="fine-tuning", unit="step")
  with Signals() as signals, bar:
    for step in range(first, last):
      chosen = step_groups(step, every, (1.0,), size=c.batch, seed=config.seed).tolist()
      laid = lay(texts.groups, chosen, shapes=texts.shapes, packing=packing)
      state, metrics = take_step(compiled, state, laid, texts.arrays, mesh)
      if metrics["skipped"]:
        raise NotFiniteError(
          f"{stage.folder}: step {step + 1} of fine-tuning has a loss or gradient that is not "
          "finite; lower --config.sft.optimizer.learning_rate, in another --workdir if "
          "checkpoints are saved"
        )
      done, end = step + 1, step + 1 == last
      if end or done % c.log_every == 0:
        rate = float(schedule(int(applied(state.optimizer)) - 1))
        writers.write("metrics", done, {**metrics, "learning_rate": rate})
        bar.set_postfix_str(f"loss {metrics['loss']:.4f}")
      if end and (loss := heldout()) is not None:
        writers.write("metrics", done, {"loss": loss}, split="heldout")
      if end or signals.asked or done % c.checkpoint_every == 0:
        checkpoints.save(state, {"seed": config.seed})
      bar.update()
      if signals.asked and not end:
        raise Stopped(
          f"stopped by signal {signals.asked} after step {done} of fine-tuning, which is saved in "
          f"{stage.folder}; the same command goes on from there",
          signals.asked,
        )
  writers.close()
  checkpoints.close()
  policies.save(loaded, state.all_params(), stage.folder / "model")
  return stage.finish(_results(config, stage, mesh, steps=last, loss=heldout()))
