"""Section `controls`: how much of a model's accuracy depends on the content of the texts.

The model is compared with rules that do not read the words (a coin, the longest or shortest
response, the most or least formatted one), and with itself when the prompt is removed or exchanged.
Accuracy that a rule reaches too is no evidence that the model understands the texts, and accuracy
that remains without the right prompt is no evidence that it judges the response as an answer to
that prompt.

Poliak et al. (2018), Hypothesis only baselines in natural language inference.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rm_jax.audit import figures, plots
from rm_jax.audit.comparisons import Comparison, comparisons, of_others, sampled
from rm_jax.audit.edits import in_form
from rm_jax.audit.scorer import Score, scores_of
from rm_jax.audit.section import Draw, Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.data.dialogue import plain
from rm_jax.metrics import agreement, correlation
from rm_jax.metrics.surface import characters, formatting
from rm_jax.types import Example, Text

# The text that replaces a removed prompt. It asks for nothing in particular. It is not empty, since
# a model has hardly seen an empty prompt: the readers of data refuse rows that have one, and only a
# response that fills the whole length leaves no room for its prompt.
NEUTRAL = "Please respond."
# Rule -> (measure of a response, whether the rule prefers the response with more of it).
RULES: dict[str, tuple[Callable[[str], float], bool]] = {
  "longest": (characters, True),
  "shortest": (characters, False),
  "most_formatted": (formatting, True),
  "least_formatted": (formatting, False),
}
# If a rule and the model choose alike on at least this share of the pairs, `says` states that the
# rule explains the model.
_EXPLAINS = 0.9
# `says` states that the model hardly reads the prompt only if at least this share of the accuracy
# above chance remains without the right prompt.
_REMAINS = 0.8


def neutral(prompt: Text) -> Text:
  """A prompt without content, in the form of the given one: 'Please respond.'.

  A string keeps its trailing white space, which separates it from the response. Messages become a
  single one of the user; system messages and earlier turns are dropped.
  """
  if isinstance(prompt, str):
    return NEUTRAL + prompt[len(prompt.rstrip()) :]
  return ({"role": "user", "content": NEUTRAL},)


def controls(
  score: Score, examples: Sequence[Example], *, sample: int = 500, seed: int = 0
) -> dict:
  """Accuracy on comparisons: of the model, of rules that read no words, of it with other prompts.

  The rules are applied to all comparisons. In a sample of the comparisons the model scores the
  responses again, with a neutral prompt (`neutral`) and with the prompt of another conversation
  (`comparisons.of_others`) in place of their own.

  Args:
    score: rows of (prompt, response) -> float [N].
    examples: those with comparisons are used; see `comparisons.compared`.
    sample: largest number of comparisons that are scored with other prompts.
    seed: of the sample, of the exchange of prompts, and of the intervals.

  Returns:
    {pairs: number of comparisons, conversations, model: its accuracy,
    rules: name in `RULES` or 'random' -> {accuracy, difference: accuracy of the model minus that of
      the rule on the same pairs, agrees: share of pairs on which rule and model choose alike},
    best_rule: name of the rule with the highest accuracy on these pairs,
    content: accuracy of the model minus that of the best rule. The rule is selected on the same
      pairs, which is slightly to the model's disadvantage,
    sample: {pairs, seed, neutral: the text, model: its accuracy on the sample, removed (neutral
      prompt), swapped (another's prompt): each {accuracy, difference: accuracy with the right
      prompt minus this one, agrees: share of pairs on which the choice is the same as with the
      right prompt, remains: share of the accuracy above 1/2 that remains}},
    says: a sentence}. All but counts, texts and the seed are figures (audit/figures.py). In
    accuracies and in `agrees` a tie counts half.

  Raises:
    ValueError: no comparison, a sample below 1 or of fewer than 2 conversations, or a score that is
      not finite.
  """
  pairs = comparisons(examples)
  few = sampled(pairs, sample, seed)
  others = of_others(few, pairs, seed)
  empty = [p._replace(prompt=neutral(p.prompt)) for p in few]
  swapped = [
    p._replace(prompt=in_form(other.prompt, p.prompt, "user"))
    for p, other in zip(few, others, strict=True)
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
  rules["random"] = _against(model_N, credits["random"], credits["random"], clusters, seed)
  for exact in ("accuracy", "agrees"):  # of a coin both are 1/2, whatever the data
    rules["random"][exact] = {"value": 0.5, "interval": [0.5, 0.5], "n": len(pairs)}
  for name, (measure, more) in RULES.items():
    value_N2 = _measured(pairs, measure) * (1 if more else -1)
    credits[name] = agreement.credit(*value_N2.T)
    rules[name] = _against(model_N, credits[name], _alike(all_N2, value_N2), clusters, seed)
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
      **_against(with_prompt_N, credit_N, _alike(few_N2, other_N2), few_clusters, seed),
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
  """[N]: 1 if both score the same response of a pair higher, 0 if not, 0.5 if either has a tie."""
  sides = np.sign(a_N2[:, 0] - a_N2[:, 1]) * np.sign(b_N2[:, 0] - b_N2[:, 1])
  return (1 + sides) / 2


def _against(model_N, other_N, alike_N, clusters: list[str], seed: int) -> dict:
  """Figures of a rule or control: its accuracy, the model's minus this, how often they agree.

  Args:
    model_N: the model's credit on each pair: 1 if it chooses right, 0.5 at a tie, else 0.
    other_N: credits of the rule or control.
    alike_N: as `_alike` returns it.
    clusters: N conversations.
    seed: of the intervals.
  """
  return {
    "accuracy": figures.share(other_N, clusters, seed=seed),
    "difference": _less(model_N, other_N, clusters, seed),
    "agrees": figures.share(alike_N, clusters, seed=seed),
  }


def _less(a_N, b_N, clusters: list[str], seed: int) -> dict:
  """The mean of a − b over the same pairs, as a figure."""
  found = agreement.paired_difference(a_N, b_N, clusters, seed=seed)
  return {"value": found.pop("difference"), **found, "n": len(a_N)}


def _remains(without_N, with_N, accuracy: dict, clusters: list[str], seed: int) -> dict:
  """(accuracy without the right prompt − 1/2) / (accuracy with it − 1/2), as a figure.

  Not defined if `accuracy`, the figure of the accuracy with the right prompt, has no interval, or
  one that begins at 1/2 or below.

  Args:
    without_N: the model's credit on each pair, with the neutral prompt or with another
      conversation's.
    with_N: its credit on the same pairs with the right prompt.
    accuracy: the mean of `with_N`, as a figure.
    clusters: N conversations.
    seed: of the interval.
  """
  if accuracy["interval"] is None:
    return figures.none(accuracy["why"], len(with_N))
  low, high = accuracy["interval"]
  if low <= 0.5:
    how = "not told from chance" if high >= 0.5 else "below chance"
    return figures.none(f"the accuracy with the prompt is {how}", len(with_N))

  def ratio(part_N, whole_N) -> float:
    below = whole_N.mean() - 0.5
    return float((part_N.mean() - 0.5) / below) if below else float("nan")

  if np.array_equal(without_N, with_N):
    # Every replicate gives a ratio of 1, of which `correlation.bootstrap` makes no interval. So the
    # interval of the paired difference, which allows for differences not seen in this sample, is
    # converted to one of the ratio.
    apart = agreement.paired_difference(with_N, without_N, clusters, seed=seed).pop("interval")
    ends = [1 - end / (with_N.mean() - 0.5) for end in reversed(apart)]
    return {"value": 1.0, "interval": sorted(ends), "n": len(with_N)}
  found = correlation.bootstrap(ratio, (without_N, with_N), clusters, seed=seed)
  del found["undefined"]
  return found | {"n": len(with_N)}


def _says(found: dict) -> str:
  """The finding in words: whether a rule explains the model, and whether it reads the prompt."""
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


def _measure(subject: Subject) -> dict[str, Any]:
  if why := subject.lacks_comparisons(conversations=2):
    return {"why": why}
  settings = subject.settings
  return controls(
    subject.scorer, subject.examples, sample=settings.edited_pairs, seed=settings.seed
  )


def _draw(found: Mapping[str, Any]) -> dict[str, Draw]:
  rows = [plots.Point("the model", found["model"]["value"], found["model"]["interval"])]
  for name, one in found["rules"].items():
    accuracy = one["accuracy"]
    label = name.replace("_", " ")
    rows.append(plots.Point(label, accuracy["value"], accuracy["interval"], plots.GREY))
  for name in ("removed", "swapped"):
    accuracy = found["sample"][name]["accuracy"]
    label = f"prompt {name}"
    rows.append(plots.Point(label, accuracy["value"], accuracy["interval"], plots.ORANGE))
  title = "Accuracy, beside what reads nothing"
  return {"controls": lambda: plots.points(title, rows, 0.5)}


def _render(page: Writer, found: View) -> None:
  page.picture("controls", "accuracies of the model and of rules that read nothing")
  named = [(name.replace("_", " "), one) for name, one in found["rules"].items()]
  named += [(f"prompt {name}", found["sample"][name]) for name in ("removed", "swapped")]
  page.table(
    ("control", "accuracy", "model minus control", "chooses as the model"),
    (
      (escaped(name), *(page.figure(one[k]) for k in ("accuracy", "difference", "agrees")))
      for name, one in named
    ),
  )
  page.add(f"<p>Other prompts: on {page.value(found['sample']['pairs'])} pairs.</p>")


SECTION = Section("controls", "What needs no reading", _measure, _render, draw=_draw)
