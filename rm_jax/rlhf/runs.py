"""The ordinary training runs of a chain: the reward model's, and DPO's.

DPO trains the implicit reward on the preferences (`model.reward='implicit'`). Each checkpoint of
its run is a policy, which is looked at as the turns of the other methods are.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from rm_jax.errors import InputError
from rm_jax.models.lora import is_base
from rm_jax.rlhf import policies
from rm_jax.rlhf.records import Records
from rm_jax.rlhf.reinforce import evaluation_key
from rm_jax.rlhf.stages import Places, plain
from rm_jax.rlhf.watch import Watch
from rm_jax.train import loop
from rm_jax.workdir.checkpoints import Checkpoints
from rm_jax.workdir.folder import locked

_ALL = 1_000_000  # checkpoints that are kept: none is removed
_APART = 10_000  # between the seeds of an ensemble's runs


@contextlib.contextmanager
def _of(part: str) -> Iterator[None]:
  """Has errors of a training run say whose fields they name."""
  try:
    yield
  except InputError as error:
    raise type(error)(f"of --config.{part}: {error}") from error


def reward_models(
  config: Any, places: Places, start: Path, policy: str, pairs: dict[str, Any]
) -> tuple[list[str], list[dict[str, Any]]]:
  """Trains the reward model, or each member of an ensemble, on the preferences.

  Args:
    config: the chain's.
    places: of the stages; each run is in the folder run/ of its own.
    start: folder of the policy, from which the runs start with reward.from_policy.
    policy: its fingerprint.
    pairs: results of the preferences' stage.

  Returns:
    (the workdirs of the runs; for each its stage's results: {heldout: accuracy on held-out pairs,
    None without any, steps}).

  Raises:
    As `train.loop.train`, and `Stage.done`.
  """
  found, about = [], []
  for member in range(config.reward.members):
    seed = config.seed + _APART * member
    inputs = {"preferences": pairs["digest"], "seed": seed}
    if config.reward.from_policy:
      inputs["policy"] = policy
    parts = plain(config, "reward.run", "reward.from_policy")
    stage = places.stage(f"reward/{member}", parts, inputs)
    folder = stage.folder / "run"
    if (done := stage.done()) is None:
      with locked(stage.folder):
        if (done := stage.done()) is None:  # else another process was at work on it
          stage.begin()
          with _of("reward.run"):
            summary = loop.train(_reward_run(config, seed, start, pairs["path"]), folder)
          accuracy = (summary["heldout"] or {}).get("accuracy")
          done = stage.finish({"heldout": accuracy, "steps": summary["train"]["steps"]})
    found.append(str(folder))
    about.append(done)
  return found, about


def _reward_run(config: Any, seed: int, start: Path, preferences: str) -> ConfigDict:
  run = config.reward.run.copy_and_resolve_references().unlock()
  if config.reward.from_policy:
    run.model.update(policies.saved(start))
  run.data.train, run.seed, run.mesh = preferences, seed, config.mesh
  return run


def _dpo_run(config: Any, start: Path, preferences: str) -> ConfigDict:
  """The config of the training run.

  Args:
    config: the chain's.
    start: folder of the policy, which is the reference too.
    preferences: file of pairs.
  """
  run = config.dpo.copy_and_resolve_references().unlock()
  for name in ("frozen_layers", "lora", "dtype", "attention", "remat"):
    run.model[name] = config.policy[name]
  run.model.update(policies.saved(start))
  run.data.train, run.seed, run.mesh = preferences, config.seed, config.mesh
  run.train.keep = _ALL
  return run


def direct(
  config: Any, folder: Path, loaded: policies.Loaded, watch: Watch, start: Path, preferences: str
) -> None:
  """Trains by DPO, or goes on with it, and looks at each checkpoint; see the module.

  Args:
    config: the chain's.
    folder: of the chain; the training run is in its run/.
    loaded: the policy at the start.
    watch: how policies are looked at.
    start, preferences: as `_dpo_run` takes them.

  Raises:
    As `train.loop.train`; InputError as `Watch.look`.
  """
  run = folder / "run"
  if not (run / "summary.json").exists():
    with _of("dpo"):
      loop.train(_dpo_run(config, start, preferences), run)
  model = loaded.policy.text_model
  base = {p: x for p, x in loaded.params.items() if model.base and is_base(p)}
  abstract = {
    path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    for path, x in loaded.params.items()
    if path not in base
  }
  # The checkpoints are looked at in one go: of an interrupted one all are looked at again.
  records = Records(folder, 0, texts=config.rl.texts)
  records.evaluation(0, watch.look(loaded.nested, evaluation_key(config)), texts=True)
  checkpoints = Checkpoints(run / "checkpoints", _ALL)
  steps = checkpoints.steps()
  for step in steps:
    params = unflatten_dict(checkpoints.restore_params(abstract, base, step=step), sep="/")
    records.evaluation(step, watch.look(params, evaluation_key(config)), texts=step == steps[-1])
  records.close()
  checkpoints.close()
  policies.save(loaded, params, folder / "policy")
