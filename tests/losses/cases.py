"""Options and inputs of the battery: each registered loss in one or more settings."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rm_jax.losses import LOSSES
from tests.losses import reference


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """A loss with its options; `big` is the size of scores that it must bear."""

  name: str
  options: dict = dataclasses.field(default_factory=dict)
  params: dict | None = None
  big: float = 1e37
  finite_at_big: bool = True

  def __str__(self):
    return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

  @property
  def loss(self):
    return LOSSES[self.name]

  @property
  def learned(self):
    return {k: jnp.asarray(v, jnp.float32) for k, v in (self.params or {}).items()}

  def __call__(self, scores, fields, params=None):
    extra = {} if self.params is None else {"params": self.learned if params is None else params}
    return self.loss(scores, **fields, **extra, **self.options)

  def reference(self, scores, fields, params=None):
    """The value of one list, float64."""
    options = dict(self.options)
    if self.params is not None:
      options["params"] = self.params if params is None else params
    fields = {k: np.asarray(v).tolist() for k, v in fields.items()}
    if "response" in fields:
      options["response"] = fields.pop("response")
    one = reference.List(np.asarray(scores, np.float64).tolist(), **fields)
    return getattr(reference, self.name)(one, **options)


CASES = [
  Case("logistic"),
  Case("logistic", {"margin": 0.2, "smoothing": 0.1, "temperature": 0.7}),
  Case("scaled_logistic", {"smoothing": 0.2, "temperature": 1.3}),
  Case("hinge", {"margin": 0.6}),
  Case("squared_hinge", {"margin": 0.6}, big=1e18),
  # The slope beyond the clamp takes the value over the limit of float32, not the gradient.
  Case("exponential", {"margin": 0.1, "clamp": 0.8, "temperature": 0.5}),
  Case("exponential", {"clamp": 10.0}, finite_at_big=False),
  Case("ipo", {"tau": 0.3}, big=1e18),
  Case("noisy_logistic", {"rate": 0.2, "margin": 0.1, "temperature": 0.8}),
  Case("learned_noise", {"margin": 0.1, "temperature": 0.8}, {"noise_logit": -0.3}),
  Case("unbiased_logistic", {"rate": 0.2, "margin": 0.1, "temperature": 0.8}),
  Case("rao_kupper", {"smoothing": 0.1}, {"log_tie": -0.4}),
  Case("davidson", {"smoothing": 0.1}, {"log_tie": -0.4}),
  Case("listnet", {"temperature": 0.6}),
  Case("best_of_k"),
  Case("plackett_luce"),
  Case("plackett_luce", {"top": 2}),
  Case("lambda_ndcg"),
  Case("lambda_ndcg", {"mu": 0.0}),
  Case("bce"),
  Case("kto"),
  Case("kto", {"baseline": 0.3, "desirable": 1.5, "undesirable": 0.7}),
  Case("likelihood"),
  Case("mse", big=1e18),
  Case("huber", {"delta": 0.4}),
  Case("ordinal", {}, {"first": -0.7, "log_steps": [0.2, -0.3]}),
  Case("process"),
  Case("process", {"steps": "last"}),
  Case("process", {"steps": "first_error"}),
  Case("attribute_mse", big=1e18),
]

A = 3  # attributes


def make_inputs(case, batch=(), k=5, seed=0, *, observed=True):
  """(scores, fields): about a fifth masked, equal labels, all that the loss uses."""
  rng = np.random.default_rng(seed)
  lists = (*batch, k)
  outputs = (A, *lists) if case.name == "attribute_mse" else lists
  labels = {
    "bce": lambda: rng.uniform(size=lists),
    "kto": lambda: rng.uniform(size=lists),
    "likelihood": lambda: rng.uniform(size=lists),
    "process": lambda: rng.uniform(size=lists),
    "mse": lambda: rng.normal(size=lists),
    "huber": lambda: rng.normal(size=lists),
    "ordinal": lambda: rng.integers(0, 4, lists),
    "attribute_mse": lambda: np.where(
      rng.uniform(size=outputs) < 0.3, np.nan, rng.normal(size=outputs)
    ),
  }.get(case.name, lambda: rng.integers(-1, 2, lists))()
  where = rng.uniform(size=lists) < 0.8
  where[..., :2] = True
  if not observed:
    labels[..., :2] = [1, 0]
  fields = {"labels": labels, "where": where}
  square = (*lists, k)
  uses = case.loss.uses if observed else set(case.loss.uses) & {"pair_margin", "response"}
  if "pairs" in uses:
    fields["pairs"] = rng.choice([0, 0, 1, 2, 0.3], square)
  if "ties" in uses:
    half = rng.choice([0.0, 0.5, 1.0], square)
    fields["ties"] = half + half.swapaxes(-1, -2)
  if "pair_margin" in uses:
    fields["pair_margin"] = rng.normal(size=square)
  if "response" in uses:
    fields["response"] = rng.integers(0, 2, lists)
  fields = {
    n: jnp.asarray(v, None if v.dtype in (bool, np.int64) else jnp.float32)
    for n, v in fields.items()
  }
  return jnp.asarray(rng.normal(size=outputs), jnp.float32), fields


def spoil(scores, fields, with_value=np.nan):
  """The same with `with_value` in all that is masked."""
  where = fields["where"]
  out = dict(fields)
  for name, value in fields.items():
    if name in ("pairs", "ties", "pair_margin"):
      real = where[..., :, None] & where[..., None, :]
      out[name] = jnp.where(real, value, with_value)
    elif name == "response":
      out[name] = jnp.where(where, value, 99)
    elif name != "where":
      out[name] = jnp.where(jnp.broadcast_to(where, value.shape), value, with_value)
  return jnp.where(jnp.broadcast_to(where, scores.shape), scores, with_value), out


def permute(scores, fields, order):
  """The same lists with their items in another order."""
  out = {}
  for name, value in fields.items():
    value = value[..., order]
    out[name] = value[..., order, :] if name in ("pairs", "ties", "pair_margin") else value
  return scores[..., order], out


def one_list(scores, fields, index):
  """The list at `index` of the batch."""
  first = (slice(None),) if scores.ndim > fields["where"].ndim else ()
  at = {n: v[(*first, *index)] if n == "labels" else v[index] for n, v in fields.items()}
  return scores[(*first, *index)], at
