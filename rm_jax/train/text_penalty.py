"""Text regularisation: a penalty that keeps the backbone of a reward model a language model.

GRM (Yang et al. 2024, "Regularizing Hidden States Enables Learning Generalizable Reward Model for
LLMs") minimises (1 − α) · reward loss + α · text loss of the chosen response. Here, as with all
penalties, it is reward loss + w · text loss. With w = α / (1 − α) that is GRM's objective divided
by 1 − α; its α = 0.01 is w = 0.0101.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rm_jax.errors import InputError
from rm_jax.losses.regularisers import best, text_dpo, text_sft
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import parameter_shardings
from rm_jax.pretrained.config import tied_head
from rm_jax.pretrained.hf import LM_HEAD, read_tensor
from rm_jax.reward.architecture import check_language_head
from rm_jax.reward.setup import TextModel
from rm_jax.types import KINDS, Batch

# Kinds of feedback that have a best response. Outcomes do not: a right answer need not be worth
# imitating.
ORDERED = ("pair", "ranking")
# A language-model head that is neither the embedding nor, as for an implicit reward, the network's
# own is a parameter of the loss: the reward model that is saved does not need it.
HEAD = "loss/text/embedding"


def _weights(config: Any) -> dict[str, float]:
  """Name -> weight of the text penalties that are not 0 in the `loss` part of a config."""
  return {name: float(config[name]) for name in ("text_sft", "text_dpo") if config[name]}


def check(config: Any, model: TextModel) -> None:
  """Checks that the model has a language-model head, if a config asks for a text penalty.

  Args:
    config: the `loss` part of an experiment's config.
    model: from `setup.build_model`.

  Raises:
    InputError: the reward is implicit and the penalty is `text_dpo`; or a judge's question stands
      behind each response; or the reward is not implicit, and the model is an encoder, or a decoder
      that caps its logits, or whose language-model head is neither its embedding nor in the
      checkpoint in the right shape.
  """
  for name, weight in _weights(config).items():
    said, mend = f"loss.{name} is {weight}", f"or set loss.{name}=0"
    if model.network.implicit and name == "text_dpo":
      raise InputError(
        f"{said}, and model.reward is 'implicit', whose scores are such likelihoods already; "
        f"expected loss.text_sft, {mend}"
      )
    if not model.network.causal:
      raise InputError(
        f"{said}, and a model of type {model.config['model_type']!r} is an encoder, which predicts "
        f"no next token; set model.pretrained to a decoder, {mend}"
      )
    if model.convention.question:
      raise InputError(
        f"{said}, and a judge's question stands behind each response (model.question), whose "
        f"likelihood would count as the response's; expected model.question='', {mend}"
      )
    if model.network.implicit:
      continue  # its own likelihoods are read, of capped logits too
    if (cap := getattr(model.network.backbone, "logit_cap", None)) is not None:
      raise InputError(
        f"{said}, and the model caps its language-model head's logits at {cap:g}, which the text "
        f"losses do not; set model.pretrained to a model that does not, {mend}"
      )
    if tied_head(model.config):
      continue
    if model.source is None:
      raise InputError(
        f"{said}, and the model has random weights and a language-model head of its own "
        "(tie_word_embeddings is not true in config.json), so there is no language to keep; set "
        f"model.pretrained to a language model, {mend}"
      )
    mend = f"set model.pretrained to one, {mend}"
    check_language_head(model.source, model.network.backbone, said, mend)


def _own_head(config: Mapping[str, Any], network: Network) -> bool:
  """Whether the head is a parameter of the loss: neither the embedding nor the network's own."""
  return not (tied_head(config) or network.implicit)


def planned_head(config: Mapping[str, Any], network: Network) -> dict[str, jax.ShapeDtypeStruct]:
  """The shape of what `load_head` loads, of a model with this config.json and network."""
  if not _own_head(config, network):
    return {}
  shape = (network.backbone.vocab, network.backbone.width)
  return {HEAD: jax.ShapeDtypeStruct(shape, jnp.float32)}


def load_head(model: TextModel, mesh: Mesh) -> dict[str, jax.Array]:
  """Loads the language-model head of a model that passed `check`.

  Returns:
    {'loss/text/embedding': float32 [V, D]} on the mesh, sharded as the embedding is; {} if the head
    is the embedding, or the network's own since its reward is implicit.

  Raises:
    WeightsError: as `read_tensor`.
  """
  if not _own_head(model.config, model.network):
    return {}
  array = read_tensor(model.source.tensors(), LM_HEAD, str(model.source.path))
  sharding = parameter_shardings({HEAD: array}, mesh)[HEAD]
  return {HEAD: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])}


def head_of(params: Mapping[str, Any], loss_params: Mapping[str, Any] | None) -> jax.Array:
  """float32 [V, D]: the language-model head.

  It is a parameter of the loss, or else the embedding.
  """
  own = (loss_params or {}).get("text")
  return (own or params["backbone"]["embed"])["embedding"]


class TextPenalty:
  """The weighted text losses of each group's best response; false if a config has none.

  Args:
    config: the `loss` part of an experiment's config: the weights `text_sft` and `text_dpo`, and
      `text_beta`, the β of `text_dpo`.
    kinds: the kinds of feedback in the data.

  Raises:
    InputError: a weight, or the β of `text_dpo`, is out of its range; or a text loss has a weight
      and no kind in the data has a best response.
  """

  def __init__(self, config: Any, kinds: Iterable[str]):
    self.weights, self.beta = _weights(config), float(config.text_beta)
    kinds = set(kinds)
    for name, weight in self.weights.items():
      if weight < 0:
        raise InputError(f"loss.{name} is {weight}; expected 0 or more")
      if not kinds & set(ORDERED):
        raise InputError(
          f"loss.{name} is {weight} and learns from the best response of {' or '.join(ORDERED)}; "
          f"the data has feedback of kind {', '.join(sorted(kinds))}: set loss.{name}=0"
        )
    if "text_dpo" in self.weights and not self.beta > 0:
      raise InputError(f"loss.text_beta is {self.beta}; expected more than 0")

  def __bool__(self) -> bool:
    """Whether the config has a text penalty."""
    return bool(self.weights)

  def __call__(
    self, batch: Batch, likelihood: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The penalty of each group, and what the metrics need.

    Args:
      batch: the labels.
      likelihood: from a bool [B, G, K], the responses that are asked for, to their log-likelihoods
        and their numbers of tokens, float32 [B, G, K] both (`response_log_likelihood`). What it
        gives for others is not read.

    Returns:
      (penalty float32 [B, G]; log-likelihood a token of the best response float32 [B, G], the mean
      if several are best; bool [B, G], which groups have a best response: pairs and rankings). The
      first two are 0 for the others.
    """
    ordered_BG = jnp.isin(batch.kind, jnp.asarray([KINDS.index(kind) for kind in ORDERED]))
    # Pairs and rankings have one mark a response, so marks and responses have the same index.
    where_BGK = batch.where & ordered_BG[..., None]
    best_BGK = best(batch.labels, where_BGK)
    log_likelihood_BGK, tokens_BGK = likelihood(best_BGK)
    options = dict(labels=batch.labels, where=where_BGK)
    mean_BG = text_sft(log_likelihood_BGK, tokens=tokens_BGK, **options)
    penalty_BG = self.weights.get("text_sft", 0.0) * mean_BG
    if "text_dpo" in self.weights:
      pull_BG = text_dpo(log_likelihood_BGK, beta=self.beta, **options)
      penalty_BG += self.weights["text_dpo"] * pull_BG
    return penalty_BG, -mean_BG, jnp.any(where_BGK, axis=-1)
