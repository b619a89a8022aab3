"""Text regularisation: the backbone of a reward model goes on being a language model.

GRM (Yang et al. 2024, "Regularizing Hidden States Enables Learning Generalizable Reward Model for
LLMs") takes (1 − α) · reward loss + α · text loss of the chosen response. Ours is reward loss +
w · text loss, as all penalties are: with w = α / (1 − α) that is GRM's, divided by 1 − α. Its
α = 0.01 is w = 0.0101.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rm_jax.losses.regularisers import best, text_dpo, text_sft
from rm_jax.losses.text import sum_by_response, token_log_likelihood
from rm_jax.parallel.mesh import parameter_shardings
from rm_jax.pretrained.config import tied_head
from rm_jax.pretrained.hf import LM_HEAD, read_tensor
from rm_jax.reward.setup import Model
from rm_jax.types import KINDS, Batch

# Kinds of feedback that name a best response; a good outcome need not be worth imitating.
ORDERED = ("pair", "ranking")
# A head of its own is a parameter of the loss: the reward model that is saved has no use for it.
HEAD = "loss/text/embedding"


def _weights(config: Any) -> dict[str, float]:
  """Weights of the penalties that a config turns on."""
  return {name: float(config[name]) for name in ("text_sft", "text_dpo") if config[name]}


def check(config: Any, model: Model) -> None:
  """Whether the model can be held to text, where the `loss` part of a config asks for it.

  Raises:
    ValueError: an encoder, or a decoder whose head is not its embedding and is not to be had.
  """
  for name, weight in _weights(config).items():
    said, mend = f"loss.{name} is {weight}", f"or set loss.{name}=0"
    if not model.network.causal:
      raise ValueError(
        f"{said}, and a model of type {model.config['model_type']!r} is an encoder, which predicts "
        f"no next token; set model.pretrained to a decoder, {mend}"
      )
    if (cap := getattr(model.network.backbone, "logit_cap", None)) is not None:
      raise ValueError(
        f"{said}, and the model caps its language-model head's logits at {cap:g}, which the text "
        f"losses do not; set model.pretrained to a model that does not, {mend}"
      )
    if tied_head(model.config):
      continue
    if model.source is None:
      raise ValueError(
        f"{said}, and the model has random weights and a language-model head of its own "
        "(tie_word_embeddings is not true in config.json), so there is no language to keep; set "
        f"model.pretrained to a language model, {mend}"
      )
    reader = model.source.tensors()
    if LM_HEAD not in reader.names():
      raise ValueError(
        f"{said}, and {model.source.path} has no {LM_HEAD}, though its config.json does not tie it "
        "to the embedding; expected a language model's checkpoint, which a classifier's is not: "
        f"set model.pretrained to one, {mend}"
      )
    backbone = model.network.backbone
    if (found := tuple(reader.shape(LM_HEAD))) != (backbone.vocab, backbone.width):
      raise ValueError(
        f"{model.source.path}: {LM_HEAD} is {found}, config.json says "
        f"{(backbone.vocab, backbone.width)}"
      )


def load_head(model: Model, mesh: Mesh) -> dict[str, jax.Array]:
  """The language-model head of a model that `check` found none fault with.

  Returns:
    {'loss/text/embedding': float32 [V, D]} on the mesh, divided as the embedding is; {} where the
    head is the embedding.
  """
  if tied_head(model.config):
    return {}
  array = read_tensor(model.source.tensors(), LM_HEAD, str(model.source.path))
  sharding = parameter_shardings({HEAD: array}, mesh)[HEAD]
  return {HEAD: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])}


def head_of(params: Mapping[str, Any], loss_params: Mapping[str, Any] | None) -> jax.Array:
  """float32 [V, D]: the head among a step's parameters, its own or the network's embedding."""
  own = (loss_params or {}).get("text")
  return (own or params["backbone"]["embed"])["embedding"]


def response_log_likelihood(
  h_BTD: jax.Array, head_VD: jax.Array, batch: Batch, wanted_BGK: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Σ log π over each wanted response's own tokens, its EOS too, and how many they are.

  Args:
    h_BTD: the backbone's last hidden states, [B, T, D].
    head_VD: float [V, D], from `head_of`.
    batch: with `previous`.
    wanted_BGK: bool, by response.

  Returns:
    float32 [B, G, K] twice, by response; 0 where none is wanted. A response that no prompt stands
    before lacks its first token.
  """
  B, G, K = wanted_BGK.shape
  own_BT = batch.previous >= 0
  index_BT = jnp.where(own_BT, (batch.group - 1) * K + batch.branch - 1, 0)
  counts_BT = own_BT & jnp.take_along_axis(wanted_BGK.reshape(B, G * K), index_BT, axis=1)
  # Those that count first: where all rows are past theirs no logits are made.
  order_BT = jnp.argsort(~counts_BT, axis=1, stable=True)

  def ordered(values_BT):
    return jnp.take_along_axis(values_BT, order_BT, axis=1)

  counts_BT, group_BT, branch_BT = map(ordered, (counts_BT, batch.group, batch.branch))
  before_BT = jnp.where(counts_BT, ordered(batch.previous), 0)
  token_BT = token_log_likelihood(
    jnp.take_along_axis(h_BTD, before_BT[..., None], axis=1),
    head_VD,
    ordered(batch.tokens),
    where=counts_BT,
    # By sixteenths of a row, whatever its length: each device then holds the logits of a sixteenth
    # of its data.cells tokens.
    chunk=-(-h_BTD.shape[1] // 16),
  )

  def total(values_BT):
    return sum_by_response(values_BT, group_BT, branch_BT, groups=G, branches=K)

  return total(token_BT), total(counts_BT)


class TextPenalty:
  """Weighted text losses of each group's best response, of one likelihood.

  Args:
    config: the `loss` part of an experiment's config: weights `text_sft` and `text_dpo`, and the
      latter's `text_beta`.
    kinds: of the data.

  Raises:
    ValueError: a weight or β out of its range, or no kind in the data that has a best response.
  """

  def __init__(self, config: Any, kinds: Iterable[str]):
    self.weights, self.beta = _weights(config), float(config.text_beta)
    kinds = set(kinds)
    for name, weight in self.weights.items():
      if weight < 0:
        raise ValueError(f"loss.{name} is {weight}; expected 0 or more")
      if not kinds & set(ORDERED):
        raise ValueError(
          f"loss.{name} is {weight} and learns from the best response of {' or '.join(ORDERED)}; "
          f"the data has feedback of kind {', '.join(sorted(kinds))}: set loss.{name}=0"
        )
    if "text_dpo" in self.weights and not self.beta > 0:
      raise ValueError(f"loss.text_beta is {self.beta}; expected more than 0")

  def __bool__(self) -> bool:
    """Whether there is anything to do."""
    return bool(self.weights)

  def __call__(
    self, h_BTD: jax.Array, head_VD: jax.Array, batch: Batch
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The penalty, and what it is of.

    Args:
      h_BTD: the backbone's last hidden states, [B, T, D].
      head_VD: float [V, D], from `head_of`.
      batch: with `previous`.

    Returns:
      (penalty float32 [B, G]; log-likelihood a token of the best response float32 [B, G], the mean
      of several best; bool [B, G], which groups have one: pairs and rankings). The first two are 0
      elsewhere.
    """
    ordered_BG = jnp.isin(batch.kind, jnp.asarray([KINDS.index(kind) for kind in ORDERED]))
    # Each of these has one mark a response, so that marks are counted as branches are.
    where_BGK = batch.where & ordered_BG[..., None]
    best_BGK = best(batch.labels, where_BGK, None) > 0
    log_likelihood_BGK, tokens_BGK = response_log_likelihood(h_BTD, head_VD, batch, best_BGK)
    options = dict(labels=batch.labels, where=where_BGK)
    mean_BG = text_sft(log_likelihood_BGK, tokens=tokens_BGK, **options)
    penalty_BG = self.weights.get("text_sft", 0.0) * mean_BG
    if "text_dpo" in self.weights:
      pull_BG = text_dpo(log_likelihood_BGK, beta=self.beta, **options)
      penalty_BG += self.weights["text_dpo"] * pull_BG
    return penalty_BG, -mean_BG, jnp.any(where_BGK, axis=-1)
