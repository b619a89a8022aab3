"""The sections `agreement` and `compare`, and topics."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from rm_jax.audit import page
from rm_jax.audit.run import audit
from rm_jax.audit.scorer import example_scores
from rm_jax.audit.sections.agreement import SECTION, _lists, agreement
from rm_jax.audit.sections.compare import SECTION as AGAINST
from rm_jax.audit.sections.compare import compare
from rm_jax.audit.topics import topics
from rm_jax.types import Example
from tests.audit.planted import Counting, length, pair
from tests.audit.test_page import Fake


def test_each_text_is_scored_once():
  score = Counting(length)
  examples = [pair(0, "p", "aa", "b"), pair(1, "p", "aa", "ccc"), pair(2, "q", "aa", "b")]
  scores = example_scores(score, examples)
  assert [s.tolist() for s in scores] == [[2, 1], [2, 3], [2, 1]]
  (rows,) = score.calls
  assert len(rows) == 5


def test_slices_are_shares_of_their_own_pairs():
  # The longer response is chosen in 3 of 4 pairs of source x and in 1 of 4 of y. The scorer prefers
  # the longer one, so these are its accuracies.
  chosen = {"x": ("aaa", "aaaa", "aaaaa", "a"), "y": ("a", "a", "a", "aaaa")}
  examples = [
    pair(f"{source}{i}", f"{source} {i}", text, "bb", source=source)
    for source, texts in chosen.items()
    for i, text in enumerate(texts)
  ]
  report = agreement(example_scores(length, examples), examples)
  assert report["accuracy"] == 4 / 8
  by = {one["name"]: one["value"] for one in report["by"]["source"]}
  assert by == {"x": 3 / 4, "y": 1 / 4}
  gap = report["by"]["length_gap"]
  assert sum(one["n"] for one in gap) == 8
  assert gap[0]["value"] < 0.5 < gap[-1]["value"]
  assert "human_margin" not in report["by"]


def test_ties_of_people_and_of_the_model_are_counted():
  tied = Example("p", ("a", "b"), (0.5, 0.5), "ranking", conversation="t")
  examples = [pair(0, "p", "aa", "bb"), pair(1, "q", "aaa", "bb"), tied]
  report = agreement(example_scores(length, examples), examples)
  assert report["ties"] == {"people": 1, "model": 1}
  assert report["accuracy"] == (0.5 + 1) / 2


def test_margins_that_people_gave_have_slices():
  examples = [pair(i, f"p{i}", "a" * (3 if i < 5 else 1), "bb", margin=float(i)) for i in range(10)]
  report = agreement(example_scores(length, examples), examples)
  margins = report["by"]["human_margin"]
  assert [one["n"] for one in margins] == [2, 2, 2, 2, 2]
  assert [one["value"] for one in margins] == [1.0, 1.0, 0.5, 0.0, 0.0]


def lists():
  rng = np.random.default_rng(0)
  return [
    Example(
      f"p{i}",
      tuple("a" * int(n) for n in rng.permutation(np.arange(1, 7))),
      tuple(rng.integers(0, 4, 6).astype(float)),
      "ranking",
      conversation=f"c{i}",
    )
    for i in range(30)
  ]


def test_lists_have_rank_correlations_as_scipy_has_them():
  examples = lists()
  scores = example_scores(length, examples)
  found = agreement(scores, examples)["correlation"]
  taus = [stats.kendalltau(s, e.labels)[0] for s, e in zip(scores, examples, strict=True)]
  assert found["kendall"]["within"]["value"] == pytest.approx(np.mean(taus))
  pooled = stats.spearmanr(np.concatenate(scores), np.concatenate([e.labels for e in examples]))[0]
  assert found["spearman"]["pooled"]["value"] == pytest.approx(pooled)
  assert 0 < found["ndcg"]["value"] < 1
  assert found["pick"]["n"] + found["pick"]["undefined"] == 30


def test_the_page_shows_each_correlation(tmp_path):
  report = audit(Fake(length), lists(), sections=[SECTION])
  page.write(tmp_path, {"about": {"model": "m", "data": "d"}} | report, [SECTION])
  shown = (tmp_path / "report.html").read_text()
  both = [(f"{n} {w}", f"{n}/{w}") for n in ("kendall", "spearman") for w in ("within", "pooled")]
  for what, path in [*both, ("ndcg within", "ndcg"), ("ndcg by chance", "ndcg/chance")]:
    path = f"agreement/correlation/{path}" + ("" if "chance" in path else "/value")
    assert f'<td>{what}</td><td><span data-path="{path}"' in shown, what


def test_scales_of_several_sources_are_not_mixed():
  """One list of a source that begins at -5 once raised the others' NDCG from 0.43 to 0.97."""
  few = [
    Example(
      f"p{i}", tuple("abcd"), (1.0, 0.0, 0.0, 0.0), "ranking", source="a", conversation=f"{i}"
    )
    for i in range(6)
  ]
  wrong = [np.asarray([0.0, 1.0, 2.0, 3.0])] * 6
  other = Example(
    "q", tuple("abcd"), (-5.0, 0.0, 3.0, 5.0), "ranking", source="b", conversation="q"
  )
  alone = agreement(wrong, few)["correlation"]
  both = agreement([*wrong, np.arange(4.0)], [*few, other])["correlation"]
  assert alone["ndcg"]["value"] == pytest.approx(1 / np.log2(5))
  assert both["ndcg"]["value"] == pytest.approx((6 / np.log2(5) + 1) / 7)
  assert alone["kendall"]["pooled"]["value"] is not None
  for name in ("kendall", "spearman"):
    assert both[name]["pooled"]["value"] is None
    assert "on 2 scales" in both[name]["pooled"]["why"]


def test_ratings_of_one_prompt_are_a_list():
  examples = [
    Example(f"p{i // 3}", ("a" * (i % 3 + 1),), (float(i % 3),), "score", conversation=f"c{i // 3}")
    for i in range(12)
  ]
  found = agreement(example_scores(length, examples), examples)["correlation"]
  assert found["lists"] == 4
  assert found["kendall"]["within"]["value"] == 1.0
  assert found["pick"]["value"] == 1.0


def judged_pair(i, judges, first="aaa", second="b"):
  said = list(judges.values())
  ones, twos, ties = (float(said.count(x)) for x in (1.0, 0.0, 0.5))
  return Example(
    f"p{i}",
    (first, second),
    (ones + ties / 2, twos + ties / 2),
    "ranking",
    conversation=f"c{i}",
    pairs=((0.0, ones), (twos, 0.0)),
    ties=((0.0, ties), (ties, 0.0)),
    judges=judges,
  )


def test_each_annotator_and_what_they_allow():
  examples = [
    judged_pair(0, {"A": 1.0, "B": 1.0}),
    judged_pair(1, {"A": 1.0, "B": 0.0}),
    judged_pair(2, {"A": 1.0, "B": 0.5}),
    judged_pair(3, {"A": 0.0, "B": 0.0}),
  ]
  found = agreement(example_scores(length, examples), examples)["judges"]
  assert found["each"]["A"]["value"] == 3 / 4
  assert found["each"]["B"]["value"] == 1 / 3
  assert found["ceiling"]["people"]["value"] == 2 / 3  # of pairs 0, 1, 3
  assert found["ceiling"]["model"]["value"] == (1 + 0.5 + 0) / 3
  assert found["ceiling"]["bound"]["value"] == (1 + 1 / 2 + 1) / 3


def test_the_bound_is_the_most_that_any_order_reaches():
  """By trying both orders of every pair, with two to four annotators."""
  said = [(1, 1), (1, 0), (1, 1, 0), (0, 0, 0), (1, 0, 0, 1), (1, 0, 0, 0), (1, 0.5, 0)]
  examples = [
    judged_pair(i, {f"A{k}": float(one) for k, one in enumerate(each)})
    for i, each in enumerate(said)
  ]

  def ceiling(first, examples):
    scores = [np.asarray([first, 0.0])] * len(examples)
    return agreement(scores, examples)["judges"]["ceiling"]

  total = 0.0
  for example in examples:
    one = ceiling(1.0, [example])
    most = max(one["model"]["value"], ceiling(-1.0, [example])["model"]["value"])
    assert one["bound"]["value"] == pytest.approx(most)
    assert one["bound"]["n"] == one["people"]["n"]
    total += most * one["people"]["n"]
  found = ceiling(1.0, examples)["bound"]
  assert found["n"] == 1 + 1 + 3 + 3 + 6 + 6 + 1
  assert found["value"] == pytest.approx(total / found["n"])
  # Two annotators who differ on half of the pairs, and a model that is right on the others.
  halves = ceiling(1.0, examples[:2])
  assert [halves[k]["value"] for k in ("people", "model", "bound")] == [0.5, 0.75, 0.75]


def test_the_page_names_what_is_compared_of_annotators(tmp_path):
  examples = [judged_pair(i, {"A": 1.0, "B": float(i % 2)}) for i in range(8)]
  report = audit(Fake(length), examples, sections=[SECTION])
  about = {"about": {"model": "m", "data": "d"}}
  assert page.write(tmp_path, about | report, [SECTION]) == {}
  shown = (tmp_path / "report.html").read_text()
  for name, what in (
    ("people", "two annotators with one another"),
    ("model", "the model with one of two annotators"),
    ("bound", "any score with one of two, at best"),
  ):
    path = f"agreement/judges/ceiling/{name}/value"
    assert f'<td>{what}</td><td><span data-path="{path}"' in shown
  assert "ceiling:" not in shown


def test_two_models_on_the_same_pairs():
  examples = [pair(i, f"p{i}", "a" * (1 + i % 3), "bb") for i in range(30)]
  scores = example_scores(length, examples)
  found = compare(scores, [-s for s in scores], examples)
  # A third of the pairs is right by length, a third tied, a third wrong; the other model prefers
  # short responses.
  assert found["difference"] == 0.0
  assert found["alike"]["value"] == pytest.approx(1 / 3)
  better = compare(scores, [np.zeros(2)] * 30, examples)
  assert better["difference"] == 0.0
  assert better["alike"]["value"] == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_another_model_named_why_is_compared():
  examples = [pair(i, f"p{i}", "aa", "b") for i in range(3)]
  found = audit(Fake(length), examples, against={"why": Fake(length)}, sections=[AGAINST])
  assert found["compare"]["why, a model"]["alike"]["value"] == 1.0


def test_steps_are_refused():
  example = Example("p", ("ab",), (1.0, 0.0), "step", steps=(("a", "b"),), conversation="c")
  with pytest.raises(ValueError, match=r"kinds \['step'\]; expected pairs, rankings"):
    agreement([np.zeros(2)], [example])


def test_topics_put_like_prompts_together():
  garden = [f"how do plants grow in garden soil, case {i}" for i in range(20)]
  money = [f"which bank account saves money, case {i}" for i in range(20)]
  rest = [f"lorem{i} ipsum{i}" for i in range(60)]
  names = topics([*garden, *money, *rest], k=3)
  assert len(set(names[:20])) == 1
  assert len(set(names[20:40])) == 1
  assert names[0] != names[20]
  assert set(names[0].split(", ")) < {"plants", "grow", "garden", "soil"}
  assert set(names[40:]) == {"other"}
  assert topics([*garden, *money, *rest], k=3) == names


def test_no_score_agrees_with_all_of_a_circle():
  circle = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
  line = ((0.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
  examples = [
    Example("p", ("aaa", "aa", "a"), (3.0, 2.0, 1.0), "ranking", conversation=c, pairs=seen)
    for c, seen in (("x", circle), ("y", line))
  ]
  report = agreement(example_scores(length, examples), examples)
  assert (report["one_order"]["value"], report["one_order"]["n"]) == (5 / 6, 6)
  assert report["accuracy"] == 5 / 6
  alone = [pair(i, f"p{i}", "aaa", "bb") for i in range(3)]
  assert "one_order" not in agreement(example_scores(length, alone), alone)


def test_topics_of_many_prompts_take_room_for_their_words_alone():
  """A dense matrix of 3,000 prompts and 2,000 words takes 24 MB, and more with its copies."""
  rng = np.random.default_rng(0)
  words = [f"word{i}" for i in range(2500)]
  prompts = [" ".join(rng.choice(words, 12)) for _ in range(3000)]
  tracemalloc.start()
  found = topics(prompts)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(set(found)) == 8
  assert peak < 12e6


def test_two_lists_of_one_conversation_are_one_cluster():
  lists = [
    Example("p", ("a", "bb", "ccc"), (0.0, 1.0, 2.0), "ranking", conversation=name, source=source)
    for name, source in (("x", "s"), ("x", "t"), ("y", "s"))
  ]
  found = _lists(example_scores(length, lists), lists)
  assert found.conversations == ["x", "x", "y"]
  assert found.scales == [("ranking", "s"), ("ranking", "t"), ("ranking", "s")]
