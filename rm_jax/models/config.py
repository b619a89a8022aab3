"""The records that networks are built from. `pretrained.config` reads them from a config.json."""

import dataclasses
import math
from collections.abc import Mapping, Set
from typing import Any, ClassVar

from rm_jax.errors import InputError
from rm_jax.losses.process import SO_FAR
from rm_jax.models.layers import activation


def _stable_repr(config: Any, later: Set[str], renamed: Mapping[str, str]) -> str:
  """The repr of a dataclass as it was before fields were added or renamed.

  The hash by which cached scores and drift references name their model (`audit.scorer.model_hash`)
  is computed from it, so that those which an earlier version of this library wrote are still found.

  Args:
    config: the dataclass.
    later: fields that were added later; they are left out where they have their defaults.
    renamed: field -> its first name.
  """
  shown = (
    f"{renamed.get(f.name, f.name)}={getattr(config, f.name)!r}"
    for f in dataclasses.fields(config)
    if f.name not in later or getattr(config, f.name) != f.default
  )
  return f"{type(config).__name__}({', '.join(shown)})"


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embedding (Su et al. 2021); how it is scaled: `decoder.rope_frequencies`.

  Attributes:
    theta: base of the wavelengths.
    kind: 'default', 'linear' or 'llama3'.
    factor: by which 'linear' and 'llama3' stretch wavelengths.
    low_freq_factor, high_freq_factor: 'llama3' stretches wavelengths above original_length /
      low_freq_factor (in tokens) and keeps those below original_length / high_freq_factor.
    original_length: the context length, in tokens, before 'llama3' stretches it.
  """

  theta: float = 10_000.0
  kind: str = "default"
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A causal transformer of Llama's kind: pre-norm layers, rotary positions, gated feed-forward.

  Attributes:
    model_type: key of `pretrained.families.FAMILIES`.
    vocab: rows of the embedding.
    width: of the activations.
    layers: how many.
    heads: of queries.
    kv_heads: of keys and values; divides `heads`.
    head_dim: of each head; even.
    ffn: width of the feed-forward.
    activation: of the feed-forward's gate, a name of `layers.ACTIVATIONS`.
    eps: of the norms.
    rope: rotary frequencies.
    qkv_bias, out_bias, mlp_bias: whether queries, keys and values, attention's output map, and the
      feed-forward's maps have biases.
    qk_norm: whether each head's queries and keys are normalised.
    sliding_windows: of each layer, in tokens, 0 = it sees all before; None = no layer's is limited.
    max_positions: the longest sequence, in tokens.
    attention_dropout: dropout rate of attention's weights in training.
    init_std: of fresh kernels and embeddings.
    attention_scale: of the logits q · k; None = 1 / sqrt(head_dim).
    attention_cap: the logits of attention become cap · tanh(logit / cap); None = they stay.
    logit_cap: likewise the logits of the language-model head, which only an implicit reward reads.
    embed_scale: what the embedding's output is multiplied by.
    norm_offset: norms multiply by norm_offset + scale; 1 where a checkpoint stores scale - 1.
    post_norms: whether attention's output and the feed-forward's are normalised before they are
      added to the activations.
  """

  model_type: str
  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  ffn: int
  activation: str
  eps: float
  rope: Rope
  qkv_bias: bool
  out_bias: bool
  mlp_bias: bool
  qk_norm: bool
  sliding_windows: tuple[int, ...] | None
  max_positions: int
  attention_dropout: float
  init_std: float
  attention_scale: float | None = None
  attention_cap: float | None = None
  logit_cap: float | None = None
  embed_scale: float = 1.0
  norm_offset: float = 0.0
  post_norms: bool = False

  def __repr__(self) -> str:
    later = {f.name for f in dataclasses.fields(self) if f.default is not dataclasses.MISSING}
    return _stable_repr(self, later, {"sliding_windows": "windows"})


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """A BERT encoder; fields that are not listed here are as `DecoderConfig`'s.

  Attributes:
    activation: of the feed-forward, which has no gate; a name of `layers.ACTIVATIONS`.
    token_types: rows of the embedding of token types.
    hidden_dropout: dropout rate of the embedding's output, and of what attention and the
      feed-forward of each layer add to the activations.
  """

  model_type: str
  vocab: int
  width: int
  layers: int
  heads: int
  ffn: int
  activation: str
  eps: float
  max_positions: int
  token_types: int
  hidden_dropout: float
  attention_dropout: float
  init_std: float


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """A head, which turns a hidden state into scores. Any backbone can have any head.

  Attributes:
    outputs: how many numbers; a reward has one.
    ensemble: the outputs, two or more, are members, each of which is a reward, and the reward is
      their mean.
    attributes: names of the outputs, each of which is a rating, and the reward is their sum by
      weights.
    mix: the initial values of those weights; training may change them.
    gate: each prompt has weights of its own: a softmax over a linear map of its state (Wang et al.
      2024, "Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts",
      ArmoRM's gating layer), times the mix, divided by their sum. The gate learns how probable each
      objective is given the prompt, at the rates of the training data. The mix corrects for other
      rates: (1 / rate of the first, 1 / rate of the second ..) is as if all were equally frequent.
    steps: how the scores of a solution's steps are read, as `losses.process.so_far` says: 'own',
      'min' or 'product'. Of a response with one mark, 'product' only limits very high and very low
      scores, and 'min' changes nothing.
    bias: of the output layer.
    pooler: whether a dense layer of the model's width with `activation` precedes the output layer
      (as in BERT).
    activation: of the pooler, a name of `layers.ACTIVATIONS`.
    dropout: dropout rate before the output layer, below 1.

  Raises InputError for a value that is not possible, or for fields that contradict one another.
  """

  outputs: int = 1
  ensemble: bool = False
  attributes: tuple[str, ...] = ()
  mix: tuple[float, ...] = ()
  bias: bool = False
  pooler: bool = False
  activation: str = "tanh"
  dropout: float = 0.0
  gate: bool = False
  steps: str = "own"

  def __repr__(self) -> str:
    return _stable_repr(self, {"gate", "steps"}, {})

  def __post_init__(self):
    for name in ("attributes", "mix"):  # JSON has no tuples
      object.__setattr__(self, name, tuple(getattr(self, name)))
    count = len(self.attributes)
    if self.outputs < 1 or not 0.0 <= self.dropout < 1.0:
      raise InputError(
        f"head: {self.outputs} outputs, dropout {self.dropout}; expected 1 or more, and a rate "
        "from 0 and below 1"
      )
    if self.ensemble and self.outputs < 2:
      raise InputError("head: ensemble is True and outputs 1; expected two members or more")
    activation(self.activation, "head: activation")
    if len(self.mix) != count or (count and (self.outputs != count or self.ensemble)):
      raise InputError(
        f"head: attributes {self.attributes}, mix {self.mix}, {self.outputs} outputs, ensemble "
        f"{self.ensemble}; expected a name and a weight for each output, or neither"
      )
    if self.steps not in SO_FAR:
      raise InputError(f"head: steps is {self.steps!r}; expected one of {', '.join(SO_FAR)}")
    if self.gate and count < 2:
      raise InputError(f"head: a gate over attributes {self.attributes}; expected two or more")
    if self.gate and min(self.mix) <= 0:
      raise InputError(
        f"model.mix is {self.mix} and there is a gate, whose probabilities it multiplies; expected "
        "numbers above 0"
      )


@dataclasses.dataclass(frozen=True)
class LikelihoodHead:
  """The language-model head, read as an implicit reward (Rafailov et al. 2023, DPO, eq. 5).

    r(x, y) = β · (log π(y | x) − log π_ref(y | x))

  log π is summed over the response's own tokens up to the mark, EOS included, so that at the steps
  of a solution it is a running sum (Yuan et al. 2024, "Free Process Rewards without Process
  Labels"). Only decoders can have it.

  Attributes:
    beta: β > 0.
    normalised: the two log-likelihoods are divided by the number of tokens in their sums. Without
      a reference this is the reward of SimPO (Meng et al. 2024).
    reference: whether log π_ref is subtracted, which batches then bring (`Batch.reference`); else
      it counts as 0.
    tied: whether the language-model head is the embedding. If not, it is a parameter of the network
      of its own.

  Raises InputError unless β > 0 and finite.
  """

  beta: float = 0.1
  normalised: bool = False
  reference: bool = True
  tied: bool = True

  # The fields of `HeadConfig` of the same names: one output, which is the reward.
  outputs: ClassVar[int] = 1
  ensemble: ClassVar[bool] = False
  attributes: ClassVar[tuple[str, ...]] = ()
  mix: ClassVar[tuple[float, ...]] = ()
  gate: ClassVar[bool] = False
  steps: ClassVar[str] = "own"

  def __post_init__(self):
    if not self.beta > 0 or math.isinf(self.beta):
      raise InputError(f"model.beta is {self.beta}; expected a finite number above 0")
