"""The records that networks are built from. `pretrained.config` reads them from a config.json."""

import dataclasses

from rm_jax.models.layers import activation


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary frequencies: `theta` and, where scaled, how (Llama 3's rule or plain linear)."""

  theta: float = 10_000.0
  kind: str = "default"  # 'default', 'linear' or 'llama3'
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_length: int = 8192  # tokens; the context that llama3's rule stretches


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A causal transformer of the Llama family (Llama, Mistral, Qwen2, Qwen3)."""

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
  windows: tuple[int, ...] | None  # a layer's sliding window in tokens, 0 = all; None = no layer's
  max_positions: int
  attention_dropout: float
  init_std: float


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """BERT."""

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
  """What stands between a hidden state and a score; a record of its own, not of an architecture.

  `pooler`: a dense layer of the model's width with `activation` before the output layer (BERT's).
  `outputs`: how many numbers; a reward has one. `ensemble`: the outputs are members, each of which
  is a reward by itself, and the reward is their mean. `attributes`: names of the outputs, each of
  which is a rating, and the reward is their sum by weights; `mix` are the weights as they begin
  (training may change them). `dropout`: before the output layer.

  Raises ValueError where names, weights and outputs are not as many.
  """

  outputs: int = 1
  ensemble: bool = False
  attributes: tuple[str, ...] = ()
  mix: tuple[float, ...] = ()
  bias: bool = False
  pooler: bool = False
  activation: str = "tanh"
  dropout: float = 0.0

  def __post_init__(self):
    for name in ("attributes", "mix"):  # JSON has no tuples
      object.__setattr__(self, name, tuple(getattr(self, name)))
    count = len(self.attributes)
    if self.outputs < 1 or not 0.0 <= self.dropout <= 1.0:
      raise ValueError(
        f"head: {self.outputs} outputs, dropout {self.dropout}; expected 1 or more, and 0 to 1"
      )
    activation(self.activation)
    if len(self.mix) != count or (count and (self.outputs != count or self.ensemble)):
      raise ValueError(
        f"head: attributes {self.attributes}, mix {self.mix}, {self.outputs} outputs, ensemble "
        f"{self.ensemble}; expected a name and a weight for each output, or neither"
      )
