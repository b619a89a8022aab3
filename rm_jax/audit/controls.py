"""Content-blind controls: how much of a model's accuracy needs what the texts say.

Beside the model stand rules that read nothing (a coin, the longest response, the most formatted),
and the model itself with the prompt taken away or exchanged. What a rule reaches too is no sign of
understanding; what is left without the right prompt is no judgement of an answer.

Poliak et al. (2018), Hypothesis only baselines in natural language inference.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.texts import (
  Comparison,
  Score,
  comparisons,
  elsewhere,
  in_form,
  sampled,
  scores_of,
)
from rm_jax.data.dialogue import plain
from rm_jax.metrics import agreement, correlation
from rm_jax.metrics.surface import characters, formatting
from rm_jax.types import Example, Text

# A prompt can't be empty, and templates and cuts want one: what stands for none asks for nothing.
NEUTRAL = "Please respond."
# Rule -> (measure of a response, whether more of it is preferred).
RULES: dict[str, tuple[Callable[[str], float], bool]] = {
  "longest": (characters, True),
  "shortest": (characters, False),
  "most_formatted": (formatting, True),
  "least_formatted": (formatting, False),
}
_EXPLAINS = 0.9  # share of pairs on which a rule and the model choose alike that is called the same
_REMAINS = 0.8  # share of the accuracy above chance, without the prompt, that is called all but all


def neutral(prompt: Text) -> Text:
  """What stands for a prompt that was taken away: 'Please respond.', of one user.

  A string keeps the white space at its end, by which it was set off from the response. Messages
  lose all turns, a system's too.
  """
  if isinstance(prompt, str):
    return NEUTRAL + prompt[len(prompt.rstrip()) :]
  return ({"role": "user", "content": NEUTRAL},)


def controls(
  score: Score, examples: Sequence[Example], *, sample: int = 500, seed: int = 0
) -> dict:
  """The model's accuracy on comparisons beside rules that read nothing, and without its prompts.

  The rules see all comparisons. Scored anew are those of a sample: after a neutral prompt
  (`neutral`), and after the prompt of another conversation (`elsewhere`).

  Args:
    score: rows of (prompt, response) -> float [N].
    examples: those with comparisons are used: see `texts.comparisons`.
    sample: comparisons that are scored with other prompts; all where there are no more.
    seed: of sample and exchange.

  Returns:
    {pairs, conversations, model: its accuracy,
    rules: name -> {accuracy, difference: the model's less the rule's on the same pairs, agrees:
      share of pairs in which rule and model choose alike, ties half},
    best_rule, content: the model's accuracy less that of the best rule (best on these very pairs,
      so it is chosen a little to the model's disadvantage),
    sample: {pairs, seed, neutral, model: its accuracy on the sample, removed, swapped: each
      {accuracy, difference: the model's with the prompt less without it, agrees, remains: share of
      the accuracy above 1/2 that is left}},
    says: a sentence}. Each a figure of `figures`.

  Raises:
    ValueError: no comparison, fewer than 2 conversations, or a score that is not finite.
  """
  pairs = comparisons(examples)
  few = sampled(pairs, sample, seed)
  partner = elsewhere([p.conversation for p in few], seed)
  empty = [p._replace(prompt=neutral(p.prompt)) for p in few]
  swapped = [
    p._replace(prompt=in_form(few[j].prompt, p.prompt, "user"))
    for p, j in zip(few, partner, strict=True)
  ]
  parts = (pairs, few, empty, swapped)
  rows = [(p.prompt, text) for part in parts for p in part for text in (p.chosen, p.rejected)]
  score_N2 = scores_of(score, rows).reshape(-1, 2)
  all_N2, few_N2, empty_N2, swapped_N2 = np.split(
    score_N2, np.cumsum([len(part) for part in parts])[:-1]
  )
  clusters = [p.conversation for p in pairs]
  model_N = agreement.credit(*all_N2.T)
  rules, credits = {}, {"random": agreement.coin(len(pairs))}
  rules["random"] = _beside(model_N, credits["random"], credits["random"], clusters, seed)
  for exact in ("accuracy", "agrees"):  # a coin's, whatever the data
    rules["random"][exact] = {"value": 0.5, "interval": [0.5, 0.5], "n": len(pairs)}
  for name, (measure, more) in RULES.items():
    value_N2 = _measured(pairs, measure) * (1 if more else -1)
    credits[name] = agreement.credit(*value_N2.T)
    rules[name] = _beside(model_N, credits[name], _alike(all_N2, value_N2), clusters, seed)
  best = max(credits, key=lambda name: credits[name].mean())
  few_clusters = [p.conversation for p in few]
  with_prompt_N = agreement.credit(*few_N2.T)
  entry = {
    "pairs": len(few),
    "seed": seed,
    "neutral": NEUTRAL,
    "model": figures.share(with_prompt_N, few_clusters, seed=seed),
  }
  for name, other_N2 in (("removed", empty_N2), ("swapped", swapped_N2)):
    credit_N = agreement.credit(*other_N2.T)
    entry[name] = {
      **_beside(with_prompt_N, credit_N, _alike(few_N2, other_N2), few_clusters, seed),
      "remains": _remains(credit_N, with_prompt_N, entry["model"], few_clusters, seed),
    }
  found = {
    "pairs": len(pairs),
    "conversations": len(set(clusters)),
    "model": figures.share(model_N, clusters, seed=seed),
    "rules": rules,
    "best_rule": best,
    "content": _less(model_N, credits[best], clusters, seed),
    "sample": entry,
  }
  return {**found, "says": _says(found)}


def _measured(pairs: Sequence[Comparison], measure: Callable[[str], float]) -> np.ndarray:
  return np.array(
    [[measure(plain(p.chosen)), measure(plain(p.rejected))] for p in pairs], np.float64
  )


def _alike(a_N2: np.ndarray, b_N2: np.ndarray) -> np.ndarray:
  """Credit of choosing the same of two: 1, 0, or 0.5 where either has no choice."""
  sides = np.sign(a_N2[:, 0] - a_N2[:, 1]) * np.sign(b_N2[:, 0] - b_N2[:, 1])
  return (1 + sides) / 2


def _beside(model_N, other_N, alike_N, clusters: list[str], seed: int) -> dict:
  return {
    "accuracy": figures.share(other_N, clusters, seed=seed),
    "difference": _less(model_N, other_N, clusters, seed),
    "agrees": figures.share(alike_N, clusters, seed=seed),
  }


def _less(a_N, b_N, clusters: list[str], seed: int) -> dict:
  found = agreement.paired_difference(a_N, b_N, clusters, seed=seed)
  return {"value": found.pop("difference"), **found, "n": len(a_N)}


def _remains(without_N, with_N, accuracy: dict, clusters: list[str], seed: int) -> dict:
  if accuracy["interval"] is None:
    return figures.none(accuracy["why"], len(with_N))
  low, high = accuracy["interval"]
  if low <= 0.5 <= high:
    return figures.none("the accuracy with the prompt is not told from chance", len(with_N))

  def ratio(part_N, whole_N) -> float:
    below = whole_N.mean() - 0.5
    return float((part_N.mean() - 0.5) / below) if below else float("nan")

  if np.array_equal(without_N, with_N):
    # No resample differs: how many may yet choose otherwise is the paired difference's to say.
    apart = agreement.paired_difference(with_N, without_N, clusters, seed=seed).pop("interval")
    ends = [1 - end / (with_N.mean() - 0.5) for end in reversed(apart)]
    return {"value": 1.0, "interval": sorted(ends), "n": len(with_N)}
  found = correlation.bootstrap(ratio, (without_N, with_N), clusters, seed=seed)
  del found["undefined"]
  return found | {"n": len(with_N)}


def _says(found: dict) -> str:
  model, best = found["model"], found["best_rule"]
  rule = max(RULES, key=lambda name: found["rules"][name]["agrees"]["value"])
  agrees = found["rules"][rule]["agrees"]
  if agrees["value"] >= _EXPLAINS:
    kind = "length" if rule in ("longest", "shortest") else "formatting"
    return (
      f"a {kind} rule explains it: {rule} agrees with the model on {agrees['value']:.0%} of pairs"
    )
  if found["content"]["interval"] is None:
    return (
      f"whether it beats a rule that reads nothing is not told: {found['content']['why']}; "
      f"accuracy {figures.shown(model)}, {best} {figures.shown(found['rules'][best]['accuracy'])}"
    )
  if found["content"]["interval"][0] <= 0:
    return (
      f"no better than a rule that reads nothing: accuracy {figures.shown(model)}, {best} "
      f"{figures.shown(found['rules'][best]['accuracy'])}"
    )
  beats = f"beats {best} by {figures.shown(found['content'])}"
  untold = ""
  for name, words in (("swapped", "with another prompt"), ("removed", "without the prompt")):
    remains = found["sample"][name]["remains"]
    if remains["interval"] is None:
      untold = untold or f"whether it reads the prompt is not told: {remains['why']}"
      continue
    low, high = remains["interval"]
    left = f"{remains['value']:.0%} [{low:.0%}, {high:.0%}] of its accuracy above chance is left"
    if remains["value"] >= _REMAINS and low >= 0.5:
      return f"{beats}, yet hardly reads the prompt: {left} {words}"
    if high >= _REMAINS:
      untold = f"of {found['sample']['pairs']} pairs it is not told whether it reads the prompt: "
      untold += f"{left} {words}"
  return f"the content counts: {beats}" + (f"; {untold}" if untold else "")
