"""The network of a reward model: a backbone, and a head that reads its hidden states at marks.

A reward is read there in one of two ways: by a head of its own (`Head`), or from the likelihood of
the response up to the mark under the language-model head (`config.LikelihoodHead`).

Shape letters: B rows, T columns (tokens) of a row, G groups a row, K marks a group, M = G K marks
of a row, D width, A outputs of the head.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rm_jax.errors import InputError
from rm_jax.losses.likelihood import mark_log_likelihood
from rm_jax.losses.process import so_far
from rm_jax.models.attention import columns
from rm_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig, LikelihoodHead
from rm_jax.models.decoder import Decoder
from rm_jax.models.encoder import Encoder
from rm_jax.models.kernels import PACKING
from rm_jax.models.layers import REMAT, activation, linear
from rm_jax.models.lora import Lora
from rm_jax.models.numerics import drop
from rm_jax.parallel.axes import gather_layer, on_one_cpu
from rm_jax.types import Batch


class Head(nnx.Module):
  """Hidden states [..., D] -> float32 [..., A].

  Computed in float32 whatever the backbone's dtype is: scores of one prompt's responses may differ
  by less than bfloat16 resolves.

  A fresh output layer is normal(0, 1 / (D + 1)): scores start near zero and a pairwise loss near
  log 2, so that a first loss far from log 2 is the sign of a bug.

  Args:
    config: see `HeadConfig`.
    width: D.
    std: standard deviation of a fresh pooler's kernel.
    rngs: for fresh parameters.
  """

  def __init__(self, config: HeadConfig, width: int, *, std: float, rngs: nnx.Rngs):
    self.config = config
    maps = dict(dtype=jnp.float32, rngs=rngs)
    self.pooler = (
      linear("pooler", width, width, bias=True, std=std, **maps) if config.pooler else None
    )
    self.out = linear("out", width, config.outputs, bias=config.bias, std=1 / (width + 1), **maps)
    self.mix = nnx.Param(jnp.asarray(config.mix, jnp.float32)) if config.attributes else None
    names = len(config.attributes)
    # "gating" and not "gate", which is a map of a decoder's feed-forward.
    self.gating = (
      linear("gating", width, names, bias=True, std=0.0, **maps) if config.gate else None
    )

  def log_weights(self, state: jax.Array) -> jax.Array:
    """The gate: states of prompts [..., D] -> log of the attributes' weights, float32 [..., A]."""
    return jax.nn.log_softmax(self.gating(state.astype(jnp.float32)))

  def __call__(self, h: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    h = h.astype(jnp.float32)
    if self.pooler is not None:
      h = activation(self.config.activation)(self.pooler(h))
    return self.out(drop(h, self.config.dropout, key))


def span_means(h_BTD: jax.Array, first_BM: jax.Array, last_BM: jax.Array) -> jax.Array:
  """Means over the columns first .. last, both included; float32 [B, M, D].

  They are computed as a product with a matrix of zeros and ones, summed in float32: a difference of
  running sums would lose digits in a long row.

  Args:
    h_BTD: hidden states of any float dtype.
    first_BM, last_BM: int32, columns.
  """
  column_T = jnp.arange(h_BTD.shape[1])[None, None, :]
  inside_BMT = (first_BM[..., None] <= column_T) & (column_T <= last_BM[..., None])
  total_BMD = jnp.einsum(
    "bmt,btd->bmd",
    inside_BMT.astype(jnp.float32),
    h_BTD.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return total_BMD / (last_BM - first_BM + 1)[..., None]


def reads_marks_alone(*, spans: bool, trained: bool) -> bool:
  """Whether the last layer is to compute only the columns that the head reads.

  On one CPU this saves most of the last layer: its queries, output map and feed-forward of all
  other columns. Its costs are that the last layer's parameters are copied out of the stack of
  layers, and that on many devices columns are gathered across devices. No measurement has
  shown that it pays on other devices.

  Args:
    spans: means over columns are read, not single columns.
    trained: some layers are not frozen. Frozen ones give their output for all columns, to be kept.
  """
  return trained and not spans and on_one_cpu()


class _Modules(nnx.Module):
  """A network's backbone and head as Flax modules, which hold its parameters inside a trace."""

  def __init__(self, network: "Network", rngs: nnx.Rngs):
    config = network.backbone
    options = dict(
      frozen=network.frozen,
      dtype=jnp.dtype(network.dtype),
      remat=network.remat,
      rngs=rngs,
      lora=network.lora,
    )
    if isinstance(config, DecoderConfig):
      self.backbone = Decoder(config, attention=network.attention, **options)
    else:
      self.backbone = Encoder(config, **options)
    if not network.implicit:
      self.head = Head(network.head, config.width, std=config.init_std, rngs=rngs)
    elif not network.head.tied:
      init = nnx.initializers.normal(config.init_std)
      self.lm_head = nnx.Embed(config.vocab, config.width, embedding_init=init, rngs=rngs)

  @property
  def language_head(self) -> jax.Array:
    """[V, D]: the language-model head of a network whose reward is implicit."""
    embed = getattr(self, "lm_head", self.backbone.embed)
    return embed.embedding[...]

  def whole_head(self) -> jax.Array:
    """`language_head`, gathered once and not for each chunk of tokens whose logits are computed."""
    whole = gather_layer({"lm_head": {"embedding": self.language_head}}, jnp.float32)
    return whole["lm_head"]["embedding"]


@functools.lru_cache(maxsize=64)
def _abstract(network: "Network") -> tuple[nnx.GraphDef, nnx.State]:
  """A network's modules, with shapes for parameters; equal networks share them."""
  return nnx.split(nnx.eval_shape(lambda: _Modules(network, nnx.Rngs(jax.random.key(0)))))


@dataclasses.dataclass(frozen=True)
class Network:
  """What a network is, and its pure functions of (parameters, batch).

  It holds no arrays: parameters are a nested dict, whose paths look like 'backbone/layers/q/kernel'
  (`backbone/lower` for frozen layers). So a network is hashable and a static argument of `jax.jit`,
  and parameters, gradients and optimiser states are plain pytrees.

  Attributes:
    backbone: config of the decoder or encoder.
    head: config of the head; a `LikelihoodHead` is the language-model head.
    frozen: how many of the lowest layers are not trained (see `decoder.Decoder`).
    dtype: of the backbone's compute; the head computes in float32.
    remat: rematerialisation: 'none', 'minimal' or 'full' (see `layers.run_stack`).
    lora: which linear maps have adapters (see `lora.Lora`).
    attention: what a decoder's attention runs on, a name of `kernels.PACKING`, which also says how
      batches are to be packed.
    gate_trains: factor of the gradient that reaches the backbone through the head's gate. With 0
      the gate reads the prompt's state as the scores have shaped it.

  Raises InputError for a number of frozen layers or a `remat` that is not possible, or an encoder
  with a `LikelihoodHead`; and ValueError for an unknown `attention`.
  """

  backbone: DecoderConfig | EncoderConfig
  head: HeadConfig | LikelihoodHead
  frozen: int = 0
  dtype: str = "float32"
  remat: str = "none"
  lora: Lora | None = None
  attention: str = "xla"
  # Not in the description, which is part of the key of cached scores: it changes no score.
  gate_trains: float = dataclasses.field(default=0.0, repr=False)

  def __post_init__(self):
    if not 0 <= self.frozen <= self.backbone.layers:
      raise InputError(
        f"model.frozen_layers is {self.frozen}; expected 0 to {self.backbone.layers}, the model's "
        "layers"
      )
    if self.remat not in REMAT:
      raise InputError(f"model.remat is {self.remat!r}; expected one of {', '.join(REMAT)}")
    if self.attention not in PACKING:
      raise ValueError(f"attention is {self.attention!r}; expected one of {', '.join(PACKING)}")
    if self.implicit and not self.causal:
      raise InputError(
        f"model.reward is 'implicit', and a model of type {self.backbone.model_type!r} is an "
        "encoder, which predicts no next token; set model.pretrained to a decoder, or "
        "model.reward='head'"
      )

  @property
  def causal(self) -> bool:
    """Whether the backbone is a decoder, whose responses can share a prompt."""
    return isinstance(self.backbone, DecoderConfig)

  @property
  def implicit(self) -> bool:
    """Whether the reward is read from likelihoods."""
    return isinstance(self.head, LikelihoodHead)

  @property
  def needs(self) -> frozenset[str]:
    """Optional arrays of a batch that the network cannot do without."""
    if self.implicit:
      return frozenset({"previous", "reference"} if self.head.reference else {"previous"})
    return frozenset({"prompt_end"} if self.head.gate else ())

  # Parameters.

  def abstract(self) -> dict:
    """Shapes and dtypes of the parameters that `init` makes, without making them."""
    return nnx.to_pure_dict(_abstract(self)[1])

  @functools.partial(jax.jit, static_argnums=0)
  def init(self, key: jax.Array) -> dict:
    """Random parameters, float32."""
    return nnx.to_pure_dict(nnx.state(_Modules(self, nnx.Rngs(key))))

  def bind(self, params: dict) -> _Modules:
    """Backbone and head as Flax modules that hold these parameters, for use inside a trace."""
    graph, abstract = _abstract(self)
    # `replace_by_pure_dict` writes into the state, which here is shared by all calls: a copy.
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)

  # Scores and rewards.

  def apply(self, params: dict, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Scores at the marks, float32 [B, G, K]; 0 where not `batch.where`.

    A mark's score is read from its column, or from the mean of the columns `batch.starts` to its
    own; or it is the implicit reward of the response up to it (`config.LikelihoodHead`). Where
    `head.steps` is 'min' or 'product', the score of a step is then that of its solution so far.
    Where the head has members or attributes, each output's: [A, B, G, K]. Where it has a gate, the
    logarithms of the weights that it gives to the A attributes follow them: [2 A, B, G, K].

    Args:
      params: nested dict.
      batch: packed as `kernels.PACKING` says for `attention`.
      key: turns dropout on.

    Raises:
      ValueError: an implicit reward has a reference, and `batch.reference` is None.
    """
    return self._apply(params, batch, key, whole=False)[0]

  def apply_with_hidden(
    self, params: dict, batch: Batch, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Scores as of `apply`, and the last hidden states that they were read from, [B, T, D]."""
    return self._apply(params, batch, key, whole=True)

  def apply_with_likelihood(
    self, params: dict, batch: Batch, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores as of `apply`, of a `LikelihoodHead`; what `mark_log_likelihood` gives beside them."""
    modules = self.bind(params)
    body_key = None if key is None else jax.random.split(key)[0]
    both = self._likelihoods(modules, modules.backbone(batch, key=body_key), batch)
    return self._implicit_rewards(batch, *both), *both

  def _apply(
    self, params: dict, batch: Batch, key: jax.Array | None, *, whole: bool
  ) -> tuple[jax.Array, jax.Array | None]:
    modules = self.bind(params)
    body_key, head_key = (None, None) if key is None else jax.random.split(key)
    if self.implicit:
      h_BTD = modules.backbone(batch, key=body_key)
      return self._implicit_rewards(batch, *self._likelihoods(modules, h_BTD, batch)), h_BTD
    h_BMD, prompt_BMD, h_BTD = self._pooled(modules, batch, key=body_key, whole=whole)
    return self._scores(modules, h_BMD, prompt_BMD, batch, key=head_key), h_BTD

  def _likelihoods(
    self, modules: _Modules, h_BTD: jax.Array, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    """Log-likelihoods up to the marks, and numbers of tokens, as of `mark_log_likelihood`."""
    return mark_log_likelihood(h_BTD, modules.whole_head(), batch, cap=self.backbone.logit_cap)

  def _implicit_rewards(
    self, batch: Batch, value_BGK: jax.Array, tokens_BGK: jax.Array
  ) -> jax.Array:
    """Scores as of `apply`, of a `LikelihoodHead`'s log-likelihoods and numbers of tokens."""
    if self.head.reference:
      if batch.reference is None:
        raise ValueError("batch.reference is None; expected the reference's log-likelihoods")
      value_BGK -= batch.reference
    if self.head.normalised:
      value_BGK /= jnp.maximum(tokens_BGK, 1)
    return jnp.where(batch.where, self.head.beta * value_BGK, 0.0)

  def _pooled(
    self, modules: _Modules, batch: Batch, *, key: jax.Array | None = None, whole: bool = False
  ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """What the head reads, and the last hidden states that it is read from.

    Args:
      modules: the network's modules, with their parameters.
      batch: rows of groups; if it has `starts`, the head reads means of columns.
      key: for dropout.
      whole: whether the last hidden states are wanted at all columns.

    Returns:
      The hidden state of each mark, [B, M, D]; with `batch.starts` the mean from there to the mark.
      The state of each mark's prompt, [B, M, D]; None without a gate. In a decoder it is the hidden
        state of the prompt's last token. In an encoder all hidden states have read the response
        too, so it is the mean of the outputs of the embedding layer over the prompt.
      The last hidden states, [B, T, D]; None where the last layer computed only the columns that
        the head reads, as it does for single columns on one CPU (`reads_marks_alone`) unless
        `whole`.
    """
    shape = len(batch.marks), -1
    marks_BM = batch.marks.reshape(shape)
    ends_BM = batch.prompt_end.reshape(shape) if self.head.gate else None
    prompt_BMD = None
    if self.head.gate and not self.causal:
      prompt_BMD = self._prompt_means(modules, batch, ends_BM)
    spans = batch.starts is not None
    trained = modules.backbone.layers is not None
    if not whole and reads_marks_alone(spans=spans, trained=trained):
      if ends_BM is None or prompt_BMD is not None:
        return modules.backbone(batch, key=key, at_BM=marks_BM), prompt_BMD, None
      both_BM = jnp.concatenate([marks_BM, ends_BM], axis=1)
      return *jnp.split(modules.backbone(batch, key=key, at_BM=both_BM), 2, axis=1), None
    h_BTD = modules.backbone(batch, key=key)
    if ends_BM is not None and prompt_BMD is None:
      prompt_BMD = columns(h_BTD, ends_BM)
    if spans:
      h_BMD = span_means(h_BTD, batch.starts.reshape(marks_BM.shape), marks_BM)
    else:
      h_BMD = columns(h_BTD, marks_BM)
    return h_BMD, prompt_BMD, h_BTD

  def _prompt_means(self, modules: _Modules, batch: Batch, ends_BM: jax.Array) -> jax.Array:
    """Means over each mark's prompt of an encoder's embedding layer, float32 [B, M, D]."""
    # A mark's sequence has no shared part in an encoder, and begins at position 0.
    first_BM = ends_BM - jnp.take_along_axis(batch.position, ends_BM, axis=1)
    return span_means(modules.backbone.embedded(batch), first_BM, ends_BM)

  def _scores(
    self,
    modules: _Modules,
    h_BMD: jax.Array,
    prompt_BMD: jax.Array | None,
    batch: Batch,
    *,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Scores as of `apply`, of what the head reads."""

    def outputs(values_BMA):
      values_ABGK = jnp.moveaxis(values_BMA, -1, 0).reshape(-1, *batch.marks.shape)
      return jnp.where(batch.where, values_ABGK, 0.0)

    scores_ABGK = outputs(modules.head(h_BMD, key=key))
    if self.head.steps != "own":
      whole = {
        name: jnp.broadcast_to(getattr(batch, name), scores_ABGK.shape)
        for name in ("where", "response")
      }
      scores_ABGK = so_far(scores_ABGK, how=self.head.steps, **whole)
    if self.head.gate:
      state_BMD = jax.lax.stop_gradient(prompt_BMD)
      if self.gate_trains:
        state_BMD += self.gate_trains * (prompt_BMD - state_BMD)
      weights_ABGK = outputs(modules.head.log_weights(state_BMD))
      scores_ABGK = jnp.concatenate([scores_ABGK, weights_ABGK])
    # With one attribute the axis A stays: `reward` sums over it.
    one = scores_ABGK.shape[0] == 1 and not self.head.attributes
    return scores_ABGK[0] if one else scores_ABGK

  def reward(self, params: dict, scores: jax.Array) -> jax.Array:
    """The reward, float32 [B, G, K], of `apply`'s scores.

    The mean of an ensemble's members; the sum of attributes by the weights params['head']['mix'],
    or by the gate's (`_gated`).
    """
    if self.head.ensemble:
      return jnp.mean(scores, axis=0)
    if self.head.gate:
      scores_ABGK, weights_ABGK = self._gated(params, scores)
      return jnp.sum(weights_ABGK * scores_ABGK, axis=0)
    if self.head.attributes:
      return jnp.sum(params["head"]["mix"][:, None, None, None] * scores, axis=0)
    return scores

  def weights(self, params: dict, batch: Batch) -> jax.Array:
    """Weights of the head's attributes in the reward at the marks, float32 [A, B, G, K]."""
    if self.head.gate:
      return self._gated(params, self.apply(params, batch))[1]
    shape = len(self.head.attributes), *batch.marks.shape
    return jnp.broadcast_to(params["head"]["mix"][:, None, None, None], shape)

  def _gated(self, params: dict, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the attributes' scores, their weights), each float32 [A, B, G, K], of `apply`'s scores.

    The gate's probabilities times the mix, divided by their sum. An equal mix changes nothing, and
    is left out, so that rewards are to the last bit those of versions without it.
    """
    scores_ABGK, log_weights_ABGK = jnp.split(scores, 2)
    if len(set(self.head.mix)) > 1:
      log_mix_A = jnp.log(params["head"]["mix"])
      log_weights_ABGK += log_mix_A[:, None, None, None]
      log_weights_ABGK = jax.nn.log_softmax(log_weights_ABGK, axis=0)
    return scores_ABGK, jnp.exp(log_weights_ABGK)

  def judged(self, params: dict, scores: jax.Array, batch: Batch) -> jax.Array:
    """What each group's feedback is about, float32 [B, G, K]: the reward, or one attribute's score.

    Args:
      params: nested dict.
      scores: `apply`'s.
      batch: `objective` says which attribute, -1 = the reward; where it is None, all groups'
        feedback is about the reward.
    """
    rewards_BGK = self.reward(params, scores)
    if batch.objective is None:
      return rewards_BGK
    own_BGK = rewards_BGK
    for a in range(len(self.head.attributes)):
      own_BGK = jnp.where((batch.objective == a)[..., None], scores[a], own_BGK)
    return own_BGK

  def score(self, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(rewards, float32 [B, G, K]; the scores that they are made of, as `apply` gives them)."""
    scores = self.apply(params, batch)
    return self.reward(params, scores), scores

  def read(self, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the head reads at each mark, float32 [B, G, K, D]; rewards and scores as of `score`.

    Where the reward is implicit, that is the hidden state at the mark.
    """
    modules = self.bind(params)
    h_BMD, prompt_BMD, h_BTD = self._pooled(modules, batch, whole=self.implicit)
    if self.implicit:
      scores = self._implicit_rewards(batch, *self._likelihoods(modules, h_BTD, batch))
    else:
      scores = self._scores(modules, h_BMD, prompt_BMD, batch)
    pooled_BGKD = h_BMD.astype(jnp.float32).reshape(*batch.marks.shape, -1)
    return pooled_BGKD, self.reward(params, scores), scores

  def log_likelihood(self, params: dict, batch: Batch) -> jax.Array:
    """Σ log π up to each mark, float32 [B, G, K] (`likelihood.mark_log_likelihood`).

    Of a reference it is what `Batch.reference` holds. Needs a `LikelihoodHead`.
    """
    modules = self.bind(params)
    return self._likelihoods(modules, modules.backbone(batch), batch)[0]

  # Hidden states.

  def hidden(self, params: dict, batch: Batch) -> jax.Array:
    """The backbone's last hidden states, [B, T, D]."""
    return self.bind(params).backbone(batch)

  def features(self, params: dict, batch: Batch) -> jax.Array:
    """What enters the first trained layer, [B, T, D] (see `Batch.hidden`)."""
    return self.bind(params).backbone.features(batch)
