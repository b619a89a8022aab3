"""Looks at a policy: samples of fixed prompts, with what the proxy and the truth say of them.

Also the stop rule, which reads the lines of earlier evaluations.

Shape letters: P prompts, S samples of each, M tokens of a sample.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from rm_jax.metrics.drift import ks, ks_signed
from rm_jax.policy.experience import packing_of, shapes_of
from rm_jax.policy.generate import Sampling
from rm_jax.policy.rollout import Rollout, Rules, StepReward, groups_of, roll_out
from rm_jax.policy.text import Policy
from rm_jax.policy.update import evaluate
from rm_jax.rlhf.prompts import Truth
from rm_jax.rlhf.proxy import Proxy, Scored
from rm_jax.types import Text

# What an evaluation keeps for each prompt, beside the means of everything.
KEPT = ("proxy", "reward", "truth", "gold", "kl")


class Asked:
  """A reward function for `roll_out`, which keeps what the proxy has said of each response.

  Args:
    proxy: see `Proxy`. If it scores steps, a whole response earns 0 beside what they earn.
  """

  def __init__(self, proxy: Proxy):
    self._proxy = proxy
    self._scored: Scored | None = None

  def __call__(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The shaped rewards of rows."""
    if self._proxy.step_members:
      return np.zeros(len(rows))
    self._scored = self._proxy(rows)
    return self._scored.shaped

  @property
  def step_reward(self) -> StepReward | None:
    """As `roll_out` takes it; None if the proxy does not score steps."""
    return self._steps if self._proxy.step_members else None

  def _steps(self, rows: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    found, self._scored = self._proxy.steps(rows)
    return found

  def of(self, rollout: Rollout) -> Scored:
    """What was said of a rollout's responses, [P, S] each.

    The raw score of a response that was not asked about, since it is empty, is what it earned. What
    one has earned in steps is their sum.
    """
    asked_PS = ~np.isnan(rollout.scores)
    earned_PS = rollout.rewards.astype(np.float64)
    if rollout.process is not None:
      earned_PS += rollout.process.sum(axis=-1, dtype=np.float64)
    raw_PS = earned_PS.copy()
    apart_PS, caught_PS = np.full(raw_PS.shape, np.nan), np.zeros(raw_PS.shape, bool)
    if asked_PS.any():
      raw_PS[asked_PS] = self._scored.raw
      apart_PS[asked_PS], caught_PS[asked_PS] = self._scored.disagreement, self._scored.caught
    return Scored(raw_PS, earned_PS, apart_PS, caught_PS)


@dataclasses.dataclass(frozen=True)
class Watch:
  """How policies are looked at.

  Attributes:
    policy: see `Policy`.
    proxy: see `Proxy`.
    prompts: P texts.
    reference: parameters, path -> array, from which the divergence is measured.
    sampling, samples, rules: as `roll_out` takes them.
    mesh: the devices.
    cells: about the most tokens of a micro-batch on each device.
    truth: true rewards, where they are known.
    gold: those of a better reward model, where there is one.
    separator: text that ends a step, where the proxy scores steps.
  """

  policy: Policy
  proxy: Proxy
  prompts: list[Text]
  reference: dict[str, jax.Array]
  sampling: Sampling
  samples: int
  rules: Rules
  mesh: Mesh
  cells: int = 16_384
  truth: Truth | None = None
  gold: Truth | None = None
  separator: str = "\n"

  def look(self, params: dict, key: jax.Array, *, drift: bool = True) -> "Seen":
    """Samples responses of a policy and measures them.

    Args:
      params: of the policy, nested, on the mesh.
      key: random key; with the same one two policies are compared on the same draws.
      drift: whether the responses' likelihood under the reference is measured.

    Raises:
      InputError, ValueError: as `roll_out`.
    """
    asked = Asked(self.proxy)
    options = dict(samples=self.samples, sampling=self.sampling, mesh=self.mesh, rules=self.rules)
    options |= dict(step_reward=asked.step_reward, separator=self.separator)
    # Fewer prompts at once where each has many samples, whose keys and values take memory.
    at_once = max(1, min(32, 256 // self.samples))
    rollout = roll_out(self.policy, params, self.prompts, asked, key, at_once=at_once, **options)
    values_PS = self.measured(rollout, asked)
    if not drift:
      return Seen(rollout, values_PS)
    return Seen(rollout, values_PS | self._against_reference(rollout))

  def measured(self, rollout: Rollout, asked: Asked) -> dict[str, np.ndarray]:
    """Name -> [P, S], of a rollout: see `Seen.values`; without 'kl'."""
    said, made = asked.of(rollout), rollout.samples
    values_PS = {
      "proxy": said.raw,
      "reward": said.shaped,
      "disagreement": said.disagreement,
      "filtered": said.caught,
      "length": made.length,
      "ended": made.ended,
      "empty": np.isnan(rollout.scores),
      # The mean over a response's tokens of −log π, weighed below by their number.
      "entropy": -made.logp.sum(-1) / np.maximum(made.length, 1),
    }
    written_PS = ~np.isnan(rollout.scores)
    for name, judge in (("truth", self.truth), ("gold", self.gold)):
      if judge:
        # A reward model is not asked about empty responses; the truth is known of all.
        of_PS = written_PS if name == "gold" else np.ones_like(written_PS)
        value_PS = np.full(of_PS.shape, self.rules.empty, np.float64)
        at = np.argwhere(of_PS)
        asked_texts = [rollout.texts[p][s] for p, s in at]
        value_PS[of_PS] = judge([rollout.prompts[p] for p, _ in at], asked_texts)
        values_PS[name] = value_PS
    return {name: np.asarray(x, np.float64) for name, x in values_PS.items()}

  def _against_reference(self, rollout: Rollout) -> dict[str, np.ndarray]:
    """'kl' and 'surprise' of each response, float64 [P, S]."""
    packing = packing_of(self.mesh, self.cells)
    longest = max(map(len, rollout.prompt_ids))
    reference_PSM, _ = evaluate(
      self.policy.text_model.network,
      unflatten_dict(self.reference, sep="/"),
      groups_of(rollout),
      tokens=self.sampling.tokens,
      shapes=shapes_of(longest, self.samples, self.sampling.tokens, packing),
      packing=packing,
      mesh=self.mesh,
    )
    made = rollout.samples
    written = np.arange(made.tokens.shape[-1]) < made.length[..., None]
    less_PS = np.where(written, reference_PSM, 0).sum(-1, dtype=np.float64)
    return {
      "kl": np.where(written, made.logp - reference_PSM, 0).sum(-1, dtype=np.float64),
      "surprise": -less_PS / np.maximum(made.length, 1),
    }


@dataclasses.dataclass(frozen=True)
class Seen:
  """What an evaluation found.

  Attributes:
    rollout: the responses.
    values: name -> float64 [P, S]: 'proxy', the reward model's score; 'reward', after shaping and
      `Rules`; 'truth' and 'gold' where there are such; 'kl'; 'surprise', the mean over its tokens
      of −log π_ref; 'disagreement' (NaN without an ensemble); 'length' in tokens; 'entropy' a
      token; 'ended', 'empty' and 'filtered', 0 or 1.
  """

  rollout: Rollout
  values: dict[str, np.ndarray]

  def means(self) -> dict[str, float | None]:
    """See `means_of`."""
    return means_of(self.values)

  def by_prompt(self) -> dict[str, list[float]]:
    """Name of `KEPT` -> the mean of each prompt's samples."""
    return {name: self.values[name].mean(1).tolist() for name in KEPT if name in self.values}


def means_of(values: Mapping[str, np.ndarray]) -> dict[str, float | None]:
  """The means of [P, S] over what is not NaN; None where all is.

  Entropy and surprise are means over tokens, all others over responses.
  """
  found: dict[str, float | None] = {}
  for name, x_PS in values.items():
    known = ~np.isnan(x_PS)
    weight_PS = values["length"] if name in ("entropy", "surprise") else np.ones(x_PS.shape)
    total = float(weight_PS[known].sum())
    found[name] = float((weight_PS * x_PS)[known].sum() / total) if total else None
  return found


def drift_of(start: Mapping[str, Sequence[float]], now: Mapping[str, np.ndarray]) -> dict:
  """How far responses have left those before the first turn.

  Args:
    start: 'proxy' and 'surprise' of all responses before the first turn; a chain that was begun
      before surprise was kept has the first alone.
    now: `Seen.values`.

  Returns:
    {drift: the Kolmogorov-Smirnov distance of the proxy's scores from those of the start, in
    [0, 1]; surprise_drift: that of the surprise, in [-1, 1]: positive where responses are less
    likely under the reference than those of the start are, 1 where all are less likely than every
    one of those}.
  """
  found = {"drift": float(ks(np.asarray(start["proxy"]), now["proxy"].reshape(-1))[0])}
  if "surprise" in start and "surprise" in now:
    then, new = np.asarray(start["surprise"]), now["surprise"].reshape(-1)
    found["surprise_drift"] = float(ks_signed(then, new)[0])
  return found


@dataclasses.dataclass(frozen=True)
class StopRule:
  """Says stop where the proxy rises while a sign says that it should not be trusted.

  Attributes:
    patience: evaluations in a row at which that must be so.
    disagreement: sign: the members' disagreement is above this multiple of the first evaluation's;
      0 = not looked at.
    drift: sign: the distance of the scores (`drift_of`) is at least this; 0 = not looked at.
    surprise: sign: that of the surprise is at least this; 0 = not looked at.
  """

  patience: int = 2
  disagreement: float = 1.5
  drift: float = 0.9
  surprise: float = 0.75

  def says(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where it says stop first.

    Args:
      lines: of the evaluations in order, each with 'step', 'proxy', 'disagreement' (None without an
        ensemble), 'drift' and 'surprise_drift' (may be missing).

    Returns:
      {turn, why: the signs in words}; None if it never does.
    """
    row = 0
    for before, line in itertools.pairwise(lines):
      signs = self.signs(lines[0], line)
      row = row + 1 if signs and line["proxy"] > before["proxy"] else 0
      if row >= self.patience:
        return {"turn": line["step"], "why": "; ".join(signs)}
    return None

  def signs(self, first: Mapping[str, Any], line: Mapping[str, Any]) -> list[str]:
    """The signs that an evaluation shows, in words."""
    found = []
    apart, least = line.get("disagreement"), first.get("disagreement")
    if self.disagreement and apart is not None and least is not None:
      limit = self.disagreement * least
      if apart > limit:
        found.append(f"the members disagree by {apart:.3g}, and by {least:.3g} at the start")
    drift, far = line.get("drift"), line.get("surprise_drift")
    if self.drift and drift is not None and drift >= self.drift:
      found.append(f"the scores have left those of the start (distance {drift:.3g})")
    if self.surprise and far is not None and far >= self.surprise:
      found.append(f"the start would hardly have written the responses (distance {far:.3g})")
    return found
