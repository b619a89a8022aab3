"""Turns of PPO, GRPO or RLOO on a chain's prompts, evaluated, saved, and watched by a stop rule."""

import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rm_jax.batch.iterate import step_groups
from rm_jax.metrics.monitor import DriftMonitor
from rm_jax.parallel.mesh import place_whole
from rm_jax.policy.optimise import Method, Optimisation, grpo, minibatches, ppo, rloo
from rm_jax.policy.update import start, value_params
from rm_jax.rlhf import policies
from rm_jax.rlhf.finetune import rated
from rm_jax.rlhf.records import Records
from rm_jax.rlhf.watch import Asked, StopRule, Watch, means_of
from rm_jax.train.loop import NotFiniteError, Stopped
from rm_jax.train.optimizer import make_optimizer, make_schedule
from rm_jax.train.progress import Signals
from rm_jax.train.writers import peak_memory_bytes
from rm_jax.types import Text
from rm_jax.workdir.checkpoints import Checkpoints

log = logging.getLogger(__name__)

# Of the figures of a turn's responses, those that `Optimisation.turn` does not give itself.
_MORE = ("proxy", "truth", "gold", "disagreement", "filtered")
_LEAST, _LEVEL = 20, 0.01  # of the monitor of drift: scores of a window, chance of a false alarm


def method_of(config: Any) -> Method:
  """The method that a chain's config describes. Raises InputError as `Method`."""
  rl = config.rl
  common = dict(samples=rl.samples, epochs=rl.epochs, minibatch=rl.minibatch, clip=rl.clip)
  target = rl.target_kl or None
  if config.method == "ppo":
    options = dict(gamma=rl.gamma, lam=rl.lam, value=rl.value, value_clip=rl.value_clip or None)
    return ppo(estimator=rl.estimator or "k1", target_kl=target, **options, **common)
  if config.method == "grpo":
    return grpo(estimator=rl.estimator or "k3", scale=rl.scale, mean=rl.mean, **common)
  return rloo(estimator=rl.estimator or "k1", target_kl=target, **common)


def stop_rule(config: Any) -> StopRule:
  """The stop rule of a chain's config."""
  stop = config.stop
  return StopRule(stop.patience, stop.disagreement, stop.drift, stop.surprise)


def evaluation_key(config: Any) -> jax.Array:
  """The key of all evaluations, so that policies are compared on the same draws."""
  return jax.random.fold_in(jax.random.key(config.data.evaluation_seed), 5)


def reinforce(
  config: Any, folder: Path, loaded: policies.Loaded, watch: Watch, prompts: list[Text]
) -> None:
  """Optimises a policy, or goes on with it; writes the files of `records`, checkpoints/, policy/.

  Args:
    config: the chain's.
    folder: of the chain.
    loaded: the policy at the start, which is the reference too.
    watch: how it is looked at, and what its rewards are.
    prompts: on which it is optimised.

  Raises:
    Stopped: a signal came; the state is saved.
    NotFiniteError: rl.max_skipped turns in a row had no step that is finite.
    InputError: as `Optimisation.turn`; a reward that is not finite is one.
  """
  rl, method, seed = config.rl, method_of(config), config.seed
  optimisation = _begin(config, method, loaded, watch, prompts)
  adapters = bool(loaded.policy.text_model.base)
  checkpoints = Checkpoints(folder / "checkpoints", rl.keep, adapters=adapters)
  position: dict[str, Any] = {"turn": 0, "skipped": 0, "monitor": None}
  if found := checkpoints.restore(optimisation.state):
    optimisation.state, position = found
    optimisation.coefficient = position["coefficient"]
    log.info("resumed after turn %d", position["turn"])
  first, skipped = position["turn"], position["skipped"]
  records = Records(folder, first, texts=rl.texts)
  if not first:
    seen = watch.look(optimisation.params(), evaluation_key(config))
    records.evaluation(0, seen, texts=True)
  monitor = _monitor(records.start()["proxy"], rl.prompts * rl.samples)
  if monitor and position["monitor"]:
    monitor.resume(position["monitor"])
  rule, parts = stop_rule(config), (np.arange(len(prompts)),)
  key = jax.random.fold_in(jax.random.key(seed), 4)
  ended = config.stop.acts and rule.says(records.evaluations()) is not None
  bar = tqdm(total=rl.turns, initial=first, desc=config.method, unit="turn")
  with Signals() as signals, bar:
    for turn in range(first, 0 if ended else rl.turns):
      began = time.perf_counter()
      chosen = step_groups(turn, parts, (1.0,), size=rl.prompts, seed=seed)
      asked = Asked(watch.proxy)
      rollout, said = optimisation.turn(
        [prompts[i] for i in chosen],
        asked,
        jax.random.fold_in(key, turn),
        step_reward=asked.step_reward,
        separator=watch.separator,
      )
      values = watch.measured(rollout, asked)
      means = means_of(values)
      said |= {name: means[name] for name in _MORE if name in means}
      if asked.step_reward:  # the rewards of whole responses, which `turn` tells, are not all
        said["reward"] = means["reward"]
        del said["score"]
      if monitor:
        alarms = monitor.update(values["proxy"].reshape(-1))
        said |= {"drift_alarms": len(alarms), "drift_tests": monitor.tests}
      skipped = skipped + 1 if said["skipped"] == 1 else 0
      done = turn + 1
      seconds = round(time.perf_counter() - began, 3)
      records.turn(done, said, {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes()})
      bar.set_postfix_str(f"proxy {said['proxy']:.3f}, KL {said['kl']:.2f}")
      bar.update()
      if skipped >= rl.max_skipped:
        raise NotFiniteError(
          f"{folder}: in {skipped} turns up to {done} no step's loss and gradient were finite; "
          "look at the rewards in metrics.jsonl, or lower --config.optimizer.learning_rate in "
          "another --workdir"
        )
      end = done == rl.turns
      if end or done % rl.eval_every == 0:
        seen = watch.look(optimisation.params(), evaluation_key(config))
        records.evaluation(done, seen, texts=end or done % rl.texts_every == 0)
        verdict = rule.says(records.evaluations())
        if verdict and verdict["turn"] == done:
          tqdm.write(f"turn {done}: the stop rule says stop: {verdict['why']}")
        ended = config.stop.acts and verdict is not None
      if end or ended or signals.asked or done % rl.checkpoint_every == 0:
        position = {
          "turn": done,
          "seed": seed,
          "coefficient": optimisation.coefficient,
          "skipped": skipped,
          "monitor": monitor.state() if monitor else None,
        }
        checkpoints.save(optimisation.state, position)
      if end or ended:
        break
      if signals.asked:
        raise Stopped(
          f"stopped by signal {signals.asked} after turn {done}, which is saved in {folder}; the "
          "same command goes on from there",
          signals.asked,
        )
  records.close()
  checkpoints.close()
  policies.save(loaded, optimisation.params(), folder / "policy")


def _begin(
  config: Any, method: Method, loaded: policies.Loaded, watch: Watch, prompts: list[Text]
) -> Optimisation:
  rl, mesh, policy = config.rl, loaded.mesh, loaded.policy
  each = len(minibatches(rl.prompts, method, np.random.default_rng(0)))
  settings = rated(config.optimizer, each * rl.turns)
  optimizer = make_optimizer(settings, make_schedule(settings))
  flat = dict(loaded.params)
  if method.critic:
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    critic = value_params(policy.text_model.network.backbone.width, key)
    flat |= place_whole(jax.device_get(critic), mesh)
  return Optimisation(
    policy,
    method,
    start(flat, optimizer, mesh, freeze=policies.frozen(config, config.optimizer)),
    loaded.params,
    optimizer,
    watch.sampling,
    mesh,
    longest=max(map(len, policy.prompt_ids(prompts, watch.sampling.tokens))),
    coefficient=rl.coefficient,
    rules=watch.rules,
    cells=rl.cells,
  )


def _monitor(scores: list[float], window: int) -> DriftMonitor | None:
  """A monitor of the turns' scores; None where the first evaluation has too few to compare with."""
  if len(scores) < _LEAST:
    return None
  return DriftMonitor(scores, level=_LEVEL, window=min(max(window, _LEAST), len(scores)))
