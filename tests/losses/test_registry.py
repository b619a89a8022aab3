"""The losses by name: their options are known, checked, and divided between function and params."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from rm_jax.losses import LOSSES
from rm_jax.types import ARRAYS, KINDS

KEY = jax.random.key(0)
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
SCORES, LABELS, WHERE = jnp.asarray([1.0, 0.5]), jnp.asarray([1.0, 0.0]), jnp.ones(2, bool)


@every
def test_a_loss_says_what_it_is(loss):
  assert LOSSES[loss.name] is loss
  assert loss.kinds
  assert set(loss.kinds) <= set(KINDS)
  parameters = inspect.signature(loss.function).parameters
  assert ("params" in parameters) == (loss.init_params is not None)
  assert not set(loss.options) & {"scores", "params", "key", *ARRAYS}
  assert list(parameters)[:2] == ["scores", "labels"]
  assert all(p.kind is p.KEYWORD_ONLY for n, p in list(parameters.items())[2:])


def test_what_a_loss_takes_of_a_batch_is_in_its_signature():
  comparisons = ("pairs", "pair_margin")
  assert LOSSES["logistic"].uses == LOSSES["learned_noise"].uses == comparisons
  assert LOSSES["davidson"].uses == ("pairs", "ties")
  assert LOSSES["process"].uses == ("response",)
  assert LOSSES["plackett_luce"].uses == LOSSES["attribute_mse"].uses == ()
  assert set(LOSSES["scaled_logistic"].uses) == set(comparisons)
  assert {name: loss.needs for name, loss in LOSSES.items() if loss.needs} == {
    "scaled_logistic": ("pair_margin",)
  }


@every
def test_an_unknown_option_is_an_error_that_lists_the_known(loss):
  listed = ", ".join(loss.options) or "no options"
  needed = {"classes": 3} if loss.name == "ordinal" else {}
  for call in (loss.check, lambda o: loss.bind(**o), lambda o: loss.init(KEY, **o)):
    call(needed)
    with pytest.raises(ValueError, match=rf"{loss.name}.*'margn'.*knows {listed}"):
      call({**needed, "margn": 1.0})
    # A field of the batch is no option.
    with pytest.raises(ValueError, match="no option 'where'"):
      call({**needed, "where": WHERE})


def test_a_missing_option_is_an_error():
  ordinal = LOSSES["ordinal"]
  assert ordinal.options == {"classes": inspect.Parameter.empty}
  for call in (lambda: ordinal.check({}), ordinal.bind, lambda: ordinal.init(KEY)):
    with pytest.raises(ValueError, match=r"ordinal.*needs the option 'classes'"):
      call()
  with pytest.raises(ValueError, match="at least 2 grades"):
    ordinal.init(KEY, classes=1)


def test_the_options_are_those_of_function_and_params():
  assert LOSSES["davidson"].options == {"smoothing": 0.0, "tie_rate": 1 / 3}
  assert LOSSES["learned_noise"].options == {"margin": 0.0, "temperature": 1.0, "rate": 0.1}
  assert LOSSES["hinge"].options == {"margin": 1.0}
  assert LOSSES["mse"].options == {}


def test_bind_and_init_leave_each_others_options_alone():
  options = {"smoothing": 0.2, "tie_rate": 0.25}
  loss = LOSSES["davidson"]
  bound, params = loss.bind(**options), loss.init(KEY, **options)
  assert bound.keywords == {"smoothing": 0.2}
  # A tie in 1 of 4 at equal scores: ν = 2t / (1 - t).
  assert set(params) == {"log_tie"}
  assert float(jnp.exp(params["log_tie"])) == pytest.approx(2 * 0.25 / 0.75, rel=2e-6)
  value = bound(SCORES, LABELS, where=WHERE, params=params)
  assert value == loss(SCORES, LABELS, where=WHERE, params=params, smoothing=0.2)
  ordinal = LOSSES["ordinal"]
  assert ordinal.bind(classes=4).keywords == {}
  assert ordinal.init(KEY, classes=4)["log_steps"].shape == (2,)


@pytest.mark.parametrize("name", ["davidson", "rao_kupper"])
def test_a_tie_rate_at_the_start_is_the_chance_of_a_tie_at_equal_scores(name):
  loss, zero = LOSSES[name], jnp.zeros(2)
  params = loss.init(KEY, tie_rate=0.2)
  tie = loss(zero, zero, where=WHERE, params=params)
  win = loss(zero, LABELS, where=WHERE, params=params)
  assert float(jnp.exp(-tie)) == pytest.approx(0.2, rel=2e-6)
  assert float(jnp.exp(-win)) == pytest.approx(0.4, rel=2e-6)
  for wrong in (0.0, 1.0):
    with pytest.raises(ValueError, match="tie_rate"):
      loss.init(KEY, tie_rate=wrong)


@every
def test_params_are_float32_and_a_loss_that_learns_none_has_none(loss):
  options = {"classes": 3} if loss.name == "ordinal" else {}
  params = loss.init(KEY, **options)
  if loss.init_params is None:
    assert params == {}
  else:
    assert params
    assert all(x.dtype == jnp.float32 and jnp.isfinite(x).all() for x in params.values())


def test_the_rate_of_learned_noise_has_bounds():
  for wrong in (0.0, 0.5):
    with pytest.raises(ValueError, match="rate"):
      LOSSES["learned_noise"].init(KEY, rate=wrong)
