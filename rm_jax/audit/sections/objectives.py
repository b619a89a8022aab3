"""Section `objectives`: what each attribute of the model prefers, beside the reward made of them.

A model of several objectives, such as helpfulness and harmlessness, has a score for each. Each is
held against the judgements of every source: an attribute that disagrees with people who judged by
another objective is no error, but it is what the mix or the gate has to weigh (Bai et al. 2022,
Training a helpful and harmless assistant with RLHF, section 3.4, on this tension).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.comparisons import PREFERENCES, conversation_of
from rm_jax.audit.section import Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.heldout.evaluate import judged
from rm_jax.metrics import agreement
from rm_jax.types import Example


def objectives(
  rewards: Sequence[np.ndarray],
  scores: Sequence[np.ndarray],
  weights: Sequence[np.ndarray],
  examples: Sequence[Example],
  attributes: Sequence[str],
  *,
  seed: int = 0,
) -> dict[str, Any]:
  """The accuracy of each attribute's scores on each source's comparisons.

  Args:
    rewards: for each example float [K], of its responses.
    scores: for each example float [K, A], of each attribute.
    weights: for each example float [K, A], the attributes' weights in its rewards.
    examples: those that are pairs or rankings are used.
    attributes: A names.
    seed: of the intervals.

  Returns:
    {accuracy: name -> source, or 'all' for all together -> figure, of the reward (named 'reward')
    and each attribute; weight: attribute -> source -> mean weight; alike: [{first, second,
    figure}], for each two attributes the share of comparisons in which both prefer the same
    response, a tie of one counts half; objectives: source -> what its judgements are said to be
    about, attributes or 'reward'}. Sources without a decided comparison are left out. A source that
    is itself named 'all' is called 'all, a source', and an attribute 'reward' 'reward, an
    attribute'.

  Raises:
    ValueError: no decided comparison, or a score that is not finite.
  """
  called = _called(attributes, "reward", "an attribute")
  attributes = [called[name] for name in attributes]
  names = ("reward", *attributes)
  credit: list[np.ndarray] = []
  sign: list[np.ndarray] = []
  cluster, source, about = [], [], {}
  weight: dict[str, list[np.ndarray]] = {}
  for reward, of_attributes, of_weights, example in zip(
    rewards, scores, weights, examples, strict=True
  ):
    if example.kind not in PREFERENCES:
      continue
    every_KO = np.concatenate([np.asarray(reward)[:, None], of_attributes], axis=1)
    weight.setdefault(example.source, []).append(np.mean(of_weights, axis=0))
    objective = example.objective or "reward"
    about.setdefault(example.source, set()).add(called.get(example.objective, objective))
    for i, j in judged(example)[0]:
      credit.append(agreement.credit(every_KO[i], every_KO[j]))
      sign.append(np.sign(of_attributes[i] - of_attributes[j]))
      cluster.append(conversation_of(example))
      source.append(example.source)
  if not credit:
    raise ValueError("no comparison among the examples; expected pairs or rankings")
  credit_NO, sign_NA, source_N = np.stack(credit), np.stack(sign), np.asarray(source)

  def share(of: np.ndarray, where: np.ndarray) -> dict[str, Any]:
    at = np.flatnonzero(where)
    return figures.share(of[at], [cluster[i] for i in at], seed=seed)

  sources = _called(sorted(set(source)), "all", "a source")
  whole = np.ones(len(source_N), bool)
  return {
    "accuracy": {
      name: {key: share(credit_NO[:, o], source_N == one) for one, key in sources.items()}
      | {"all": share(credit_NO[:, o], whole)}
      for o, name in enumerate(names)
    },
    "weight": {
      name: {key: float(np.mean(weight[one], axis=0)[a]) for one, key in sources.items()}
      for a, name in enumerate(attributes)
    },
    "alike": [
      {
        "first": attributes[a],
        "second": attributes[b],
        "figure": share(1 - np.abs(sign_NA[:, a] - sign_NA[:, b]) / 2, whole),
      }
      for a in range(len(attributes))
      for b in range(a + 1, len(attributes))
    ],
    "objectives": {key: sorted(about[one]) for one, key in sources.items()},
  }


def _called(names: Sequence[str], taken: str, what: str) -> dict[str, str]:
  """Each name -> its key in the report: itself, or, of the name `taken`, it with `what` behind it.

  The key of that name is another one than all names.
  """
  key = taken
  while key == taken or key in names:
    key += f", {what}"
  return {name: key if name == taken else name for name in names}


def _measure(subject: Subject) -> dict[str, Any] | None:
  attributes = subject.scorer.attributes
  if not attributes:
    return None
  if why := subject.lacks_comparisons():
    return {"why": why}
  rows = [(e.prompt, response) for e in subject.examples for response in e.responses]
  ends = np.cumsum([len(e.responses) for e in subject.examples])[:-1]
  scores, weights = (np.split(x, ends) for x in subject.scorer.attribute_scores(rows))
  return objectives(
    subject.scores, scores, weights, subject.examples, attributes, seed=subject.settings.seed
  )


def _render(page: Writer, found: View) -> None:
  sources = [name for name in found["objectives"].value]
  page.add("<p>Accuracy of each attribute's own scores on each source's comparisons.</p>")
  page.table(
    ("", *map(escaped, sources), "all"),
    (
      (escaped(name), *(page.figure(one[source]) for source in (*sources, "all")))
      for name, one in found["accuracy"].items()
    ),
  )
  page.add("<p>Mean weight of each attribute in the reward.</p>")
  page.table(
    ("", *map(escaped, sources)),
    (
      (escaped(name), *(page.value(one[source]) for source in sources))
      for name, one in found["weight"].items()
    ),
  )
  page.table(
    ("two attributes", "prefer the same response"),
    (
      (
        f"{escaped(one['first'].value)} and {escaped(one['second'].value)}",
        page.figure(one["figure"]),
      )
      for one in found["alike"]
    ),
  )


SECTION = Section("objectives", "Objectives", _measure, _render)
