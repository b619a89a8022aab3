"""A backbone and a head read at marks: the network of a reward model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rm_jax.errors import InputError
from rm_jax.models.attention import columns
from rm_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig
from rm_jax.models.decoder import Decoder
from rm_jax.models.encoder import Encoder
from rm_jax.models.kernels import PACKING
from rm_jax.models.layers import REMAT, activation, linear
from rm_jax.models.lora import Lora
from rm_jax.models.numerics import drop
from rm_jax.parallel.axes import on_one_cpu
from rm_jax.types import Batch


class Head(nnx.Module):
  """Hidden states [..., D] -> float32 [..., outputs]; always computed in float32.

  A fresh output layer is normal(0, 1 / (D + 1)): scores start near zero and a pairwise loss near
  log 2, so that a first loss far from it is the sign of a bug. A fresh pooler is normal(0, std).
  """

  def __init__(self, config: HeadConfig, width: int, *, std: float, rngs: nnx.Rngs):
    self.config = config
    maps = dict(dtype=jnp.float32, rngs=rngs)
    self.pooler = (
      linear("pooler", width, width, bias=True, std=std, **maps) if config.pooler else None
    )
    self.out = linear("out", width, config.outputs, bias=config.bias, std=1 / (width + 1), **maps)
    self.mix = nnx.Param(jnp.asarray(config.mix, jnp.float32)) if config.attributes else None

  def __call__(self, h: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    h = h.astype(jnp.float32)
    if self.pooler is not None:
      h = activation(self.config.activation)(self.pooler(h))
    return self.out(drop(h, self.config.dropout, key))


def span_means(h_BTD: jax.Array, first_BM: jax.Array, last_BM: jax.Array) -> jax.Array:
  """Means over the columns first .. last, float32 [B, M, D], computed in float32.

  Not as a difference of running sums, which loses digits in a long row.
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
  """Whether the last layer does no more than is read of it: see `RewardNetwork.pooled`.

  Args:
    spans: means of columns are read.
    trained: not all layers are frozen.
  """
  return trained and not spans and on_one_cpu()


class RewardNetwork(nnx.Module):
  """`Batch` -> scores at its marks, or of the means that end at them (`Batch.starts`).

  Args:
    backbone: config of the decoder or encoder.
    head: config of the head.
    frozen: lowest layers that are not trained (see `Decoder`).
    dtype: compute dtype of the backbone; parameters and head are float32.
    remat: 'none', 'minimal' or 'full' (see `layers.run_stack`).
    lora: what is adapted (see `lora.Lora`).
    attention: what a decoder's runs on, a name of `kernels.PACKING`; batches are laid as that says.
  """

  def __init__(
    self,
    backbone: DecoderConfig | EncoderConfig,
    head: HeadConfig,
    *,
    frozen: int = 0,
    dtype=jnp.float32,
    remat: str = "none",
    lora: Lora | None = None,
    attention: str = "xla",
    rngs: nnx.Rngs,
  ):
    if not 0 <= frozen <= backbone.layers:
      raise InputError(
        f"model.frozen_layers is {frozen}; expected 0 to {backbone.layers}, the model's layers"
      )
    if remat not in REMAT:
      raise InputError(f"model.remat is {remat!r}; expected one of {', '.join(REMAT)}")
    if attention not in PACKING:
      raise ValueError(f"attention is {attention!r}; expected one of {', '.join(PACKING)}")
    options = dict(frozen=frozen, dtype=dtype, remat=remat, rngs=rngs, lora=lora)
    if isinstance(backbone, DecoderConfig):
      self.backbone = Decoder(backbone, attention=attention, **options)
    else:
      self.backbone = Encoder(backbone, **options)
    self.head = Head(head, backbone.width, std=backbone.init_std, rngs=rngs)

  def pooled(
    self, batch: Batch, *, key: jax.Array | None = None, whole: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """What the head reads at each mark, [B, G K, D]: a column, or the mean of a span of them.

    And the last hidden states, [B, T, D], where they were made: where spans are read, or `whole`
    says so, or many devices do what one CPU would save. It alone has the last layer do no more than
    is read, for which that layer's parameters are taken out of their stack, and so copied.
    """
    marks_BM = batch.marks.reshape(len(batch.marks), -1)
    spans = batch.starts is not None
    trained = self.backbone.layers is not None
    if not whole and reads_marks_alone(spans=spans, trained=trained):
      return self.backbone(batch, key=key, at_BM=marks_BM), None
    h_BTD = self.backbone(batch, key=key)
    if spans:
      return span_means(h_BTD, batch.starts.reshape(marks_BM.shape), marks_BM), h_BTD
    return columns(h_BTD, marks_BM), h_BTD

  def __call__(
    self, batch: Batch, *, key: jax.Array | None = None, whole: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """Scores, and the backbone's last hidden states that they are read from (see `pooled`).

    Scores are float32 [B, G, K], 0 where not `where`; of members or attributes each output's,
    [M, B, G, K] or [A, B, G, K].
    """
    body_key, head_key = (None, None) if key is None else jax.random.split(key)
    h_BMD, h_BTD = self.pooled(batch, key=body_key, whole=whole)
    return self.scores(h_BMD, batch, key=head_key), h_BTD

  def scores(self, h_BMD: jax.Array, batch: Batch, *, key: jax.Array | None = None) -> jax.Array:
    """Scores, as `__call__` gives them, of what the head reads."""
    scores_BMA = self.head(h_BMD, key=key)
    scores_ABGK = jnp.moveaxis(scores_BMA, -1, 0).reshape(-1, *batch.marks.shape)
    scores_ABGK = jnp.where(batch.where, scores_ABGK, 0.0)
    one = scores_ABGK.shape[0] == 1 and not self.head.config.attributes
    return scores_ABGK[0] if one else scores_ABGK


@dataclasses.dataclass(frozen=True)
class Network:
  """`RewardNetwork` as pure functions over a plain nested dict of parameters.

  `frozen`, `dtype`, `remat`, `lora` and `attention` are `RewardNetwork`'s. Paths of parameters look
  like 'backbone/layers/q/kernel'.
  """

  backbone: DecoderConfig | EncoderConfig
  head: HeadConfig
  frozen: int = 0
  dtype: str = "float32"
  remat: str = "none"
  lora: Lora | None = None
  attention: str = "xla"

  def _make(self, key: jax.Array) -> RewardNetwork:
    return RewardNetwork(
      self.backbone,
      self.head,
      frozen=self.frozen,
      dtype=jnp.dtype(self.dtype),
      remat=self.remat,
      lora=self.lora,
      attention=self.attention,
      rngs=nnx.Rngs(key),
    )

  @functools.cached_property
  def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: self._make(jax.random.key(0))))

  @property
  def causal(self) -> bool:
    """Whether the backbone is a decoder, whose responses can share a prompt."""
    return isinstance(self.backbone, DecoderConfig)

  def abstract(self) -> dict:
    """Shapes and dtypes of the parameters, without making them."""
    return nnx.to_pure_dict(self._abstract[1])

  @functools.partial(jax.jit, static_argnums=0)
  def init(self, key: jax.Array) -> dict:
    """Random parameters, float32."""
    return nnx.to_pure_dict(nnx.state(self._make(key)))

  def _bind(self, params: dict) -> RewardNetwork:
    graph, abstract = self._abstract
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)

  def apply(self, params: dict, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Scores at the marks, as `RewardNetwork` gives them; `key` turns dropout on."""
    return self._bind(params)(batch, key=key)[0]

  def apply_with_hidden(
    self, params: dict, batch: Batch, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Scores as of `apply`, and the last hidden states that they were read from, [B, T, D]."""
    return self._bind(params)(batch, key=key, whole=True)

  def reward(self, params: dict, scores: jax.Array) -> jax.Array:
    """The reward, float32 [B, G, K], of `apply`'s scores.

    The mean of an ensemble's members; the sum of attributes by the weights params['head']['mix'].
    """
    if self.head.ensemble:
      return jnp.mean(scores, axis=0)
    if self.head.attributes:
      return jnp.sum(params["head"]["mix"][:, None, None, None] * scores, axis=0)
    return scores

  def score(self, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(rewards, float32 [B, G, K]; the scores that they are made of, as `apply` gives them)."""
    scores = self.apply(params, batch)
    return self.reward(params, scores), scores

  def hidden(self, params: dict, batch: Batch) -> jax.Array:
    """The backbone's last hidden states, [B, T, D]."""
    return self._bind(params).backbone(batch)

  def read(self, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the head reads at each mark, float32 [B, G, K, D]; rewards and scores as of `score`."""
    network = self._bind(params)
    h_BMD, _ = network.pooled(batch)
    scores = network.scores(h_BMD, batch)
    pooled_BGKD = h_BMD.astype(jnp.float32).reshape(*batch.marks.shape, -1)
    return pooled_BGKD, self.reward(params, scores), scores

  def features(self, params: dict, batch: Batch) -> jax.Array:
    """What enters the first trained layer, [B, T, D] (see `Batch.hidden`)."""
    return self._bind(params).backbone.features(batch)
