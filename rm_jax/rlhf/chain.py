"""A whole chain: its stages one after another, each run once, then its report.

WORKDIR/sft/            the policy after fine-tuning
WORKDIR/preferences/    pairs of its responses, judged
WORKDIR/reward/0/run/   the workdir of the reward model's training run; 1/ .. of an ensemble
WORKDIR/                stage.json, shaping.json, the files of `records`, checkpoints/, policy/ (the
                        optimised policy, a transformers folder), summary.json, report.png
"""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rm_jax.data.dialogue import key_of
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh
from rm_jax.policy.rollout import Rules
from rm_jax.pretrained.source import read_json
from rm_jax.rlhf import finetune, policies, preferences, report
from rm_jax.rlhf.fields import check, names_of, worlds
from rm_jax.rlhf.prompts import Prompts, Truth, drawn, fitting, read_prompts, truth_of, world_of
from rm_jax.rlhf.proxy import Proxy, open_proxy
from rm_jax.rlhf.records import evaluations
from rm_jax.rlhf.reinforce import evaluation_key, reinforce, stop_rule
from rm_jax.rlhf.runs import direct, reward_models
from rm_jax.rlhf.stages import SUMMARY, Places, Stage, digest_of, has_saved, plain, text_digest
from rm_jax.rlhf.watch import Watch
from rm_jax.shaping.chain import Chain, chain_of, plan
from rm_jax.storage.files import expanded, read_lines, write_json
from rm_jax.storage.remote import local, refuse
from rm_jax.train.writers import peak_memory_bytes
from rm_jax.types import Text
from rm_jax.workdir.folder import check_place, locked

SHAPING = "shaping.json"


def run(config: Any, workdir: str | Path, *, shared: Path | None = None) -> dict[str, Any]:
  """Runs a chain, or goes on with it; returns its summary.

  Args:
    config: see configs/rlhf.py.
    workdir: its folder, see the module.
    shared: a folder of fine-tuning, preferences and reward models that several chains share; None =
      they are in the workdir.

  Returns:
    what summary.json has: {method, seed, ..., and what `report.of_turns` says}.

  Raises:
    InputError, OSError: something is wrong with the config, files or data; a reward is not finite;
      or the workdir's stages were begun with another config, policy or reward model.
    Stopped: a signal came; the state is saved.
    NotFiniteError: updates were not finite.
  """
  refuse(workdir, "--workdir")
  check(config)
  workdir = Path(workdir)
  check_place(workdir)
  with locked(workdir):
    whole = Stage(workdir, {"config": plain(config, *config.keys()), "inputs": {}})
    whole.check(inputs=False)
    done = workdir / SUMMARY
    if done.exists():
      return read_json(done)
    return _Chain(config, Places(workdir, shared), make_mesh(config.mesh)).run()


class _Chain:
  """The stages of a chain, each a method; see `run`."""

  def __init__(self, config: Any, places: Places, mesh: Mesh):
    self.config, self.places, self.mesh = config, places, mesh
    self.workdir = places.workdir
    self.seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def _timed(self, name: str):
    began = time.perf_counter()
    yield
    self.seconds[name] = round(time.perf_counter() - began, 2)

  def run(self) -> dict[str, Any]:
    """Runs all stages; returns the summary."""
    config, workdir = self.config, self.workdir
    prompts = read_prompts(config, policies.policy_of(config, self.mesh))
    with self._timed("sft"):
      start, sft = self._finetuned(prompts)
    with self._timed("preferences"):
      pairs = self._preferences(start, sft["fingerprint"], prompts)
    names, about = names_of(config.reward.model), []
    if not names:
      with self._timed("reward"):
        names, about = reward_models(config, self.places, start, sft["fingerprint"], pairs)
    loaded = policies.load(config, self.mesh, start)
    if loaded.fingerprint != sft["fingerprint"]:
      raise InputError(
        f"{start}: its weights are not those that fine-tuning saved ({loaded.fingerprint}, "
        f"expected {sft['fingerprint']}); put these back, or give another --workdir"
      )
    proxy = open_proxy(
      names,
      loaded.policy,
      self.mesh,
      shaping=config.shaping,
      preferences=(lambda: preferences.examples_of(config, pairs["path"])) if pairs else None,
      fitted=self._fitted(),
      steps=config.reward.steps,
    )
    gold = None
    if config.reward.gold:
      gold = open_proxy(names_of(config.reward.gold), loaded.policy, self.mesh)
    inputs = {
      "policy": sft["fingerprint"],
      "reward": proxy.fingerprint,
      "prompts": text_digest([prompts.train, prompts.evaluation]),
    }
    if proxy.probe is not None:
      inputs["reward_says"] = proxy.probe
    if config.method == "dpo":
      inputs["preferences"] = pairs["digest"]
    if gold:
      inputs["gold"] = gold.fingerprint
      if gold.probe is not None:
        inputs["gold_says"] = gold.probe
    stage = Stage(workdir, {"config": plain(config, *config.keys()), "inputs": inputs})
    stage.check()
    stage.begin()
    if config.shaping:
      write_json(workdir / SHAPING, proxy.chain.record())
    watch = self._watch(loaded, proxy, gold, prompts)
    with self._timed(config.method):
      found, lines = self._optimised(loaded, watch, prompts, start, pairs)
    summary = {
      "method": config.method,
      "seed": config.seed,
      **found,
      "sft": sft,
      "preferences": pairs,
      "reward_models": about,
      "shaping": str(proxy.chain) if proxy.chain else "",
      "prompts": {
        "train": len(prompts.train),
        "evaluation": len(prompts.evaluation),
        "left_out": prompts.left_out,
      },
      "seconds": self.seconds,
      "peak_memory_bytes": peak_memory_bytes(),
    }
    report.draw(workdir / "report.png", summary, lines)
    write_json(workdir / SUMMARY, summary)
    return summary

  def _finetuned(self, prompts: Prompts) -> tuple[Path, dict[str, Any]]:
    """(folder of the policy after fine-tuning, the stage's results)."""
    texts, pretrained = self.config.sft.texts, self.config.policy.pretrained
    inputs = {"held": text_digest(prompts.evaluation), "texts": ""}
    if texts and not worlds(texts):
      folder = expanded(local(texts)).is_dir()
      inputs["texts_folder" if folder else "texts"] = digest_of(texts)
    if pretrained and (digest := digest_of(pretrained)):
      inputs["pretrained"] = digest
    stage = self.places.stage("sft", plain(self.config, *finetune.PARTS), inputs)
    found = finetune.finetune(self.config, stage, self.mesh, prompts.evaluation)
    return stage.folder / "model", found

  def _preferences(self, start: Path, policy: str, prompts: Prompts) -> dict[str, Any] | None:
    """The results of the preferences' stage; None where nothing needs preferences."""
    config = self.config
    if config.preferences.path:
      return preferences.given(config, prompts.evaluation)
    fits = config.shaping and plan(config.shaping, "--config.shaping").missing
    if config.reward.model and config.method != "dpo" and not fits:
      return None
    judge, known_by, temperature = self._judge(start)
    count = config.preferences.pairs
    asked = drawn(config, "preferences", count) if world_of(config) else prompts.train[:count]
    known = {key_of(prompt) for prompt in prompts.evaluation}
    asked = [prompt for prompt in asked if key_of(prompt) not in known]
    asked = fitting(asked, config, policies.policy_of(config, self.mesh, start))
    inputs = {"policy": policy, "prompts": text_digest(asked)} | known_by
    stage = self.places.stage("preferences", plain(config, *preferences.PARTS), inputs)
    return preferences.sampled(
      config,
      stage,
      lambda: policies.load(config, self.mesh, start),
      asked,
      judge,
      temperature=temperature,
    )

  def _fitted(self) -> Chain | None:
    """The chain of shaping of an optimisation that is gone on with; None before that.

    A file without such an optimisation is of one that was stopped before it saved anything, and is
    not read: its reward model may have been another one.
    """
    path = self.workdir / SHAPING
    if not (self.config.shaping and path.exists() and has_saved(self.workdir)):
      return None
    return chain_of(read_json(path), str(path))

  def _judge(self, start: Path) -> tuple[Truth, dict[str, Any], float]:
    """(who judges the pairs, the inputs that tell it from others, the temperature)."""
    config = self.config
    if (truth := truth_of(config)) is not None:
      return truth, {"judge": "world"}, config.world.judge_temperature
    names = names_of(config.reward.gold) or names_of(config.reward.model)
    proxy = open_proxy(names, policies.policy_of(config, self.mesh, start), self.mesh)
    known_by = {"judge": proxy.fingerprint}
    if proxy.probe is not None:
      known_by["judge_says"] = proxy.probe
    return _judge_by(proxy), known_by, 1.0

  def _watch(
    self, loaded: policies.Loaded, proxy: Proxy, gold: Proxy | None, prompts: Prompts
  ) -> Watch:
    config, sampling = self.config, self.config.sampling
    return Watch(
      loaded.policy,
      proxy,
      prompts.evaluation,
      loaded.params,
      loaded.policy.sampling(
        sampling.tokens, temperature=sampling.temperature, top_p=sampling.top_p
      ),
      config.data.evaluation_samples,
      Rules(**config.rules),
      self.mesh,
      config.rl.cells,
      truth_of(config),
      _judge_by(gold) if gold else None,
      config.reward.separator,
    )

  def _optimised(
    self,
    loaded: policies.Loaded,
    watch: Watch,
    prompts: Prompts,
    start: Path,
    pairs: dict[str, Any] | None,
  ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what the report says, lines of metrics.jsonl for its picture)."""
    config, workdir = self.config, self.workdir
    if config.method == "best_of_n":
      many = dataclasses.replace(watch, samples=config.best_of_n.samples)
      return report.of_best_of_n(many.look(loaded.nested, evaluation_key(config), drift=False)), []
    if config.method == "dpo":
      direct(config, workdir, loaded, watch, start, pairs["path"])
    else:
      reinforce(config, workdir, loaded, watch, prompts.train)
    means, lines = evaluations(workdir), read_lines(workdir / "evaluations.jsonl")
    acted = config.stop.acts and config.method != "dpo"
    found = report.of_turns(lines, means, stop_rule(config), acted=acted)
    return found, read_lines(workdir / "metrics.jsonl")


def _judge_by(proxy: Proxy) -> Truth:
  """A reward model's own scores, as a judge of texts."""

  def judge(asked: Sequence[Text], texts: Sequence[str]) -> np.ndarray:
    rows = [{"prompt": p, "response": t} for p, t in zip(asked, texts, strict=True)]
    return proxy(rows).raw

  return judge
