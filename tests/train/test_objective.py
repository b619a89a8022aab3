"""A loss for each kind of feedback: kinds mix in a batch, and what does not fit is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from rm_jax.errors import InputError
from rm_jax.heldout.pointwise import outcome_report
from rm_jax.losses import LOSSES, Loss
from rm_jax.losses.moments import penalty
from rm_jax.train.objective import Objective, baseline_of
from rm_jax.train.parse import check_loss, parse_loss, uses_ties
from rm_jax.train.window import batch_sums, sum_by_source, window_metrics, zero_sums, zero_window
from rm_jax.types import KINDS, Batch, Example


def nll(x):
  """−log σ(x)."""
  return math.log1p(math.exp(-x))


def make_batch(groups, **more):
  """One row of groups (kind, labels); K is the most labels."""
  K = max(len(labels) for _, labels in groups)
  G = len(groups)
  labels, where = np.zeros((1, G, K), np.float32), np.zeros((1, G, K), bool)
  for g, (_, values) in enumerate(groups):
    labels[0, g, : len(values)] = values
    where[0, g, : len(values)] = True
  zero = jnp.zeros((1, 4), jnp.int32)
  fields = dict(
    tokens=zero,
    group=zero + 1,
    branch=zero,
    position=zero,
    marks=jnp.zeros((1, G, K), jnp.int32),
    where=jnp.asarray(where),
    labels=jnp.asarray(labels),
    weight=jnp.ones((1, G)),
    response=jnp.zeros((1, G, K), jnp.int32),
    kind=jnp.asarray([[KINDS.index(kind) for kind, _ in groups]]),
    source=jnp.zeros((1, G), jnp.int32),
    length=jnp.ones((1, G, K), jnp.int32),
  )
  return Batch(**fields | more)


def objective(kinds, **losses):
  config = get_config().loss
  config.update(losses)
  return Objective(config, kinds)


MIXED = [
  ("pair", [1.0, 0.0]),
  ("ranking", [2.0, 1.0, 0.0]),
  ("outcome", [1.0]),
  ("score", [4.0]),
  ("step", [1.0, 0.0]),
]
SCORES = jnp.asarray([[[0.5, -0.2, 9], [1.0, 0.2, 0.4], [0.3, 9, 9], [3.5, 9, 9], [0.7, 0.1, 9]]])


def test_every_group_gets_the_loss_of_its_kind():
  value = objective({kind for kind, _ in MIXED})(SCORES, make_batch(MIXED))
  e = [math.exp(x) for x in (1.0, 0.2, 0.4)]
  expected = [
    nll(0.7),
    math.log(sum(e)) - 1.0 + math.log(e[1] + e[2]) - 0.2,
    nll(0.3),
    (4.0 - 3.5) ** 2,
    (nll(0.7) + nll(-0.1)) / 2,
  ]
  np.testing.assert_allclose(value, [expected], rtol=1e-5)


@pytest.mark.slow
def test_attributes_beside_pairs_in_one_batch():
  nan = math.nan
  # A pair, and two rated responses: the second's second attribute was not rated.
  labels = jnp.asarray([[[[nan, nan]] * 2, [[2.0, 1.0], [nan, nan]], [[-1.0, nan], [nan, nan]]]])
  batch = make_batch(
    [("pair", [1.0, 0.0]), ("attributes", [0.0]), ("attributes", [0.0])], attributes=labels
  )
  rewards = jnp.asarray([[[0.5, -0.2], [9, 9], [9, 9]]])
  each = jnp.asarray([[[[9, 9], [1.5, 9], [0.5, 9]]], [[[9, 9], [0.0, 9], [9, 9]]]])
  value = objective({"pair", "attributes"})(rewards, batch, None, each)
  expected = [nll(0.7), (0.5**2 + 1) / 2, 1.5**2]
  np.testing.assert_allclose(value, [expected], rtol=1e-5)


def test_a_kind_that_the_data_have_not_costs_nothing():
  # Its loss is not even looked at.
  objective({"pair"}, step="no such loss")


@pytest.mark.slow
def test_options_and_penalties():
  batch = make_batch([("pair", [1.0, 0.0])])
  scores = jnp.asarray([[[1.5, 0.5]]])
  value = objective({"pair"}, pair="logistic(margin=0.25, smoothing=0.1)", l2=0.5)(scores, batch)
  expected = 0.9 * nll(0.75) + 0.1 * nll(-0.75) + 0.5 * (1.5**2 + 0.5**2) / 2
  assert float(value[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_objectives_are_equal_where_they_minimise_the_same():
  first = dict(pair="hinge(margin=0.5)", ranking="listnet", l2=0.1, text_sft=0.1)
  one = objective({"pair"}, **first)
  same = objective({"pair"}, **first | {"ranking": "plackett_luce"})  # no rankings to learn from
  assert one == same
  assert hash(one) == hash(same)
  others = [
    dict(pair="hinge(margin=0.4)"),
    dict(pair="logistic"),
    dict(l2=0.2),
    dict(l2=0.0, centering=0.1),
    dict(text_sft=0.2),
    dict(text_sft=0.0, text_dpo=0.1),
    dict(decorrelation=0.1),
  ]
  different = [objective({"pair"}, **first | other) for other in others]
  different.append(objective({"pair", "ranking"}, **first))
  for other in different:
    assert one != other
    assert hash(one) != hash(other)
  beta = [objective({"pair"}, text_dpo=0.1, text_beta=b) for b in (0.1, 0.2)]
  assert beta[0] != beta[1]


def test_a_loss_may_learn_numbers_of_its_own():
  tied = objective({"pair"}, pair="davidson(tie_rate=0.2)")
  params = tied.init_params(jax.random.key(0))
  assert list(params) == ["loss/pair/log_tie"]
  ties = jnp.asarray([[[[0, 1.0], [1.0, 0]]]])
  batch = make_batch([("pair", [0.0, 0.0])], ties=ties, pairs=jnp.zeros_like(ties))
  value = tied(
    jnp.asarray([[[1.0, 1.0]]]), batch, {"pair": {"log_tie": params["loss/pair/log_tie"]}}
  )
  assert float(value[0, 0]) == pytest.approx(-math.log(0.2), rel=1e-5)
  assert objective({"pair"}).init_params(jax.random.key(0)) == {}


@pytest.mark.parametrize(
  ("losses", "message"),
  [
    ({"pair": "process"}, "loss.pair is 'process', which learns from step"),
    ({"pair": "logitsic"}, "loss.pair is 'logitsic'; expected one of logistic"),
    ({"pair": "logistic(marign=1)"}, "loss.pair: loss 'logistic' has no option 'marign'"),
    ({"pair": "logistic(1)"}, r"expected a loss, or a loss\(option=value\)"),
    ({"pair": "logistic(margin=f(x))"}, r"expected a loss, or a loss\(option=value\)"),
    ({"pair": "__import__('os')"}, "expected a loss"),
    ({"pair": ""}, "expected a loss"),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_compiles(losses, message):
  with pytest.raises(ValueError, match=message):
    objective({"pair"}, **losses)


def test_which_losses_know_ties():
  assert uses_ties("davidson(tie_rate=0.1)")
  assert not uses_ties("logistic")
  assert parse_loss("hinge", "loss.pair") == (LOSSES["hinge"], {})


def sums_of(scores, loss_BG, batch, sources):
  loss_S = sum_by_source(batch.weight * loss_BG, batch.source, sources)
  return batch_sums(scores, loss_S, batch, sources)


def test_metrics_count_each_kind_by_what_it_has():
  batch = make_batch(MIXED)
  sums = sums_of(SCORES, jnp.ones((1, len(MIXED))), batch, 1)
  assert set(sums) == set(zero_sums(1))
  metrics = window_metrics(jax.device_get(zero_window(1) | sums), ["a"])
  assert "sources" not in metrics
  # Pair right; ranking: 2 of 3 comparisons; outcome right; steps: one of two. A rating has none.
  assert metrics["accuracy"] == pytest.approx((1 + 2 / 3 + 1 + 1 / 2) / 4)
  assert metrics["margin"] == pytest.approx((0.7 + (0.8 + 0.6 - 0.2) / 3) / 2, rel=1e-5)
  assert metrics["pairs"] == 4
  only = make_batch([("score", [1.0])])
  alone = sums_of(jnp.ones((1, 1, 1)), jnp.ones((1, 1)), only, 1)
  assert window_metrics(jax.device_get(zero_window(1) | alone), ["a"])["accuracy"] is None


def test_a_score_of_zero_is_half_right_as_in_the_held_out_report():
  batch = make_batch([("outcome", [1.0, 0.0]), ("step", [0.0, 1.0])])
  scores = jnp.asarray([[[0.0, -0.0], [0.0, 1.0]]])
  sums = sums_of(scores, jnp.ones((1, 2)), batch, 1)
  assert sums["accuracy"] == 1 / 2 + 3 / 4
  report = outcome_report([np.zeros(2)], [Example("p", ("a", "b"), (1.0, 0.0), "outcome")])[0]
  assert report["accuracy"] == 1 / 2


def test_sources_are_counted_each_by_itself_and_sum_to_the_whole():
  batch = make_batch(MIXED, source=jnp.asarray([[0, 1, 1, 2, 0]]))
  loss = jnp.asarray([[1.0, 2.0, 4.0, 8.0, 16.0]])
  metrics = window_metrics(
    jax.device_get(zero_window(4) | sums_of(SCORES, loss, batch, 4)), ["a", "b", "c", "none"]
  )
  assert metrics["loss"] == pytest.approx(31 / 5)
  assert {name: one["loss"] for name, one in metrics["sources"].items()} == {
    "a": 17 / 2,
    "b": 3.0,
    "c": 8.0,
  }
  assert metrics["sources"]["a"]["accuracy"] == pytest.approx((1 + 0.5) / 2)
  assert metrics["sources"]["c"]["accuracy"] is None


def test_observed_comparisons_and_not_the_labels_order_are_counted():
  pairs = jnp.asarray([[[[0, 0], [2.0, 0]]]])
  batch = make_batch([("ranking", [1.0, 0.0])], pairs=pairs, ties=jnp.zeros_like(pairs))
  sums = sums_of(jnp.asarray([[[1.0, 0.0]]]), jnp.ones((1, 1)), batch, 1)
  assert sums["accuracy"] == 0
  assert sums["pairs"] == 1


@pytest.mark.slow
def test_decorrelation_over_micro_batches_is_that_of_the_whole_step():
  rng = np.random.default_rng(0)
  scores = jnp.asarray(rng.normal(size=(1, 6, 2)), jnp.float32)
  lengths = jnp.asarray(rng.integers(5, 300, (1, 6, 2)))
  weight = jnp.asarray([[1.0, 2.0, 1.0, 0.5, 1.0, 3.0]])
  batch = make_batch([("pair", [1.0, 0.0])] * 6, length=lengths, weight=weight)
  both = objective({"pair"}, decorrelation=0.3)
  assert both.decorrelation == 0.3

  def whole(s):
    return 0.3 * penalty(both.moments(s, batch))

  def part(s, where):
    cut = jax.tree.map(lambda x: x[:, where] if x.ndim > 1 and x.shape[1] == 6 else x, batch)
    return s[:, where], cut

  halves = (slice(0, 2), slice(2, 6))
  total = sum(both.moments(*part(scores, where)) for where in halves)

  def sum_of_parts(s):
    return sum(both.decorrelate(*part(s, where), total) for where in halves) / total[0]

  expected = jax.grad(whole)(scores)
  assert np.abs(expected).max() > 1e-3
  np.testing.assert_allclose(jax.grad(sum_of_parts)(scores), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("shift", "least"), [(-5.0, 0.0), (2.0, 1.0)])
def test_kto_refers_to_the_mean_of_responses_to_other_prompts_over_the_whole_step(shift, least):
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(1, 6, 2)).astype(np.float32)
  scores[..., 1] += shift
  weight = np.asarray([[1.0, 2.0, 1.0, 0.5, 1.0, 3.0]])
  labels = rng.integers(0, 2, 6)
  batch = make_batch(
    [("outcome", [float(y), 0.0]) for y in labels],
    weight=jnp.asarray(weight),
    mismatched=jnp.broadcast_to(jnp.asarray([False, True]), (1, 6, 2)),
  )
  both = objective({"outcome"}, outcome="kto(baseline='batch', desirable=1.5)")
  assert both.looks_ahead
  assert both.needs == {"mismatched"}

  def part(where):
    cut = jax.tree.map(lambda x: x[:, where] if x.ndim > 1 and x.shape[1] == 6 else x, batch)
    return both.ahead(jnp.asarray(scores[:, where]), cut)

  total = part(slice(0, 2))["mismatched"] + part(slice(2, 6))["mismatched"]
  z0 = max(0.0, float((weight * scores[..., 1]).sum() / weight.sum()))
  assert z0 >= least
  assert (z0 == 0) == (shift < 0)
  found = both(jnp.asarray(scores), batch.with_feedback(), baseline=baseline_of(total))
  margin = scores[..., 0].astype(np.float64) - z0
  good, bad = 1.5 / (1 + np.exp(margin)), 1 / (1 + np.exp(-margin))
  np.testing.assert_allclose(found, np.where(labels == 1, good, bad), rtol=1e-6)
  sums = sums_of(jnp.asarray(scores), found, batch.with_feedback(), 1)
  right = (scores[0, :, 0] > 0) == (labels == 1)
  assert float(sums["accuracy"].sum()) == pytest.approx((weight[0] * right).sum())


def test_only_training_estimates_a_reference_point():
  with pytest.raises(InputError, match="baseline is 'batch'"):
    LOSSES["kto"](jnp.ones(1), jnp.ones(1), where=jnp.ones(1, bool), baseline="batch")
  with pytest.raises(InputError, match=r"loss.outcome: baseline is 'step'; expected a number"):
    check_loss(*parse_loss("kto(baseline='step')", "loss.outcome"), "loss.outcome", "outcome")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gives_one_value_a_list_of_every_kind_it_is_for(name):
  loss = LOSSES[name]
  for kind in loss.kinds:
    check_loss(loss, {"classes": 5} if name == "ordinal" else {}, f"loss.{kind}", kind)


@pytest.mark.parametrize(
  ("reduce", "found"),
  [
    (jnp.mean, r"\(\)"),
    (lambda x: x, r"\(3, 5, 4\)"),
    (lambda x: jnp.mean(x, axis=0), r"\(5, 4\)"),
    (lambda x: jnp.mean(x, axis=-1, keepdims=True), r"\(3, 5, 1\)"),
    (lambda x: None, "NoneType"),
  ],
)
def test_a_loss_of_ones_own_that_returns_another_shape_is_refused(reduce, found, monkeypatch):
  own = Loss("own", lambda scores, labels, *, where: reduce(scores), ("pair",))
  with pytest.raises(ValueError, match=f"loss.pair: loss 'own' returns {found} of scores"):
    check_loss(own, {}, "loss.pair", "pair")
  # Who calls the objective without having asked is told when it is traced.
  monkeypatch.setitem(LOSSES, "own", own)
  config = get_config().loss
  config.pair = "own"
  batch = make_batch([("pair", (1.0, 0.0)), ("pair", (1.0, 0.0)), ("pair", (1.0, 0.0))])
  with pytest.raises(ValueError, match=r"loss.pair: loss 'own' returns"):
    jax.eval_shape(Objective(config, {"pair"}), jnp.zeros((1, 3, 2)), batch)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("hinge(margin={[]:1})", "expected a loss, or a loss"),
    ("hinge(**{})", "expected a loss, or a loss"),
    ("hinge(margin=" + "-" * 100_000 + "1)", "expected a loss, or a loss"),
    ("hinge(margin='1')", "margin is '1'; expected it of type float"),
    ("hinge(margin=True)", "margin is True; expected it of type float"),
    ("ordinal(classes=2.5)", "classes is 2.5; expected it of type int"),
    ("plackett_luce(top=1.0)", "top is 1.0; expected it of type int or None"),
    ("learned_noise(rate=None)", "rate is None; expected it of type float"),
  ],
)
def test_what_is_no_loss_or_no_option_is_a_mistake_of_the_config(text, message):
  with pytest.raises(InputError, match=message):
    parse_loss(text, "loss.pair")


def test_whole_numbers_are_numbers_and_a_word_is_the_losses_own_to_check():
  assert parse_loss("hinge(margin=1)", "loss.pair")[1] == {"margin": 1}
  assert parse_loss("plackett_luce(top=None)", "loss.ranking")[1] == {"top": None}
  with pytest.raises(InputError, match=r"loss\.step: steps is 3; expected one of all"):
    check_loss(*parse_loss("process(steps=3)", "loss.step"), "loss.step", "step")


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_bug_in_a_loss_of_ones_own_is_raised_as_it_is(error):
  def broken(scores, labels, *, where):
    raise error("shapes that do not fit")

  with pytest.raises(error) as found:
    check_loss(Loss("own", broken, ("pair",)), {}, "loss.pair", "pair")
  assert not isinstance(found.value, InputError)
  assert found.traceback[-1].name == "broken"
