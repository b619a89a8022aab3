"""Samples continuations of prompts from a decoder's language-model head.

Shape letters: P prompts, S samples of each, T columns of the longest prompt, M tokens of a sample,
V vocabulary.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.models.network import Network
from rm_jax.policy.cache import layers_of, read_prompts, read_tokens


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How continuations are drawn. Hashable: a static argument of the compiled function.

  Updates take samples as drawn from the policy itself. At another temperature than 1, or with
  top_p below 1, they are not quite, and their ratios of probabilities do not correct for it.

  Attributes:
    tokens: the most tokens of a continuation, the end token included.
    end: ids of the tokens that end one, at least one.
    temperature: logits are divided by it; 0 takes the most probable token.
    top_p: only the smallest set of tokens whose probability, at this temperature, is at least
      `top_p` is drawn from (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration");
      1 = all.
    vocab: ids from here on are never drawn, because the tokenizer has no token for them; 0 = all
      may be.

  Raises InputError for a number out of its range.
  """

  tokens: int
  end: tuple[int, ...]
  temperature: float = 1.0
  top_p: float = 1.0
  vocab: int = 0

  def __post_init__(self):
    if self.tokens < 1:
      raise InputError(f"sampling: {self.tokens} tokens; expected at least 1")
    if not self.end:
      raise InputError("sampling: no token ends a continuation; expected at least one id")
    if not 0 <= self.temperature < math.inf:
      raise InputError(f"sampling: temperature is {self.temperature}; expected 0 or above, finite")
    if not 0 < self.top_p <= 1:
      raise InputError(f"sampling: top_p is {self.top_p}; expected it in (0, 1]")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """S continuations of each of P prompts.

  Attributes:
    tokens: int32 [P, S, M], 0 after the end.
    logp: float32 [P, S, M], the log-probability of each token under the policy itself: the softmax
      over the whole vocabulary at temperature 1, without top-p, whatever it was drawn with. 0 after
      the end. It is what an update computes of the same tokens.
    length: int32 [P, S], tokens, the end token included.
    ended: bool [P, S], whether the last of them is an end token.
  """

  tokens: jax.Array
  logp: jax.Array
  length: jax.Array
  ended: jax.Array


def draw(keys: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
  """Draws a token from each row of logits.

  Args:
    keys: random keys [...].
    logits: float32 [..., V].
    sampling: see `Sampling`.

  Returns:
    int32 [...].
  """
  V = logits.shape[-1]
  if 0 < sampling.vocab < V:
    known = jnp.arange(V) < sampling.vocab
    logits = jnp.where(known.reshape((1,) * (logits.ndim - 1) + (V,)), logits, -jnp.inf)
  if sampling.temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits / sampling.temperature
  if sampling.top_p < 1:
    logits = jnp.where(nucleus(logits, sampling.top_p), logits, -jnp.inf)
  flat = jax.vmap(jax.random.categorical)(keys.reshape(-1), logits.reshape(-1, V))
  return flat.reshape(keys.shape).astype(jnp.int32)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
  """bool [..., V]: the smallest set of tokens with probability `top_p` or more together.

  The tokens are taken in order of probability, until their sum reaches `top_p`: the most probable
  one is always in. Tokens as probable as the last of the set are in it too.
  """
  ordered = -jnp.sort(-logits, axis=-1)
  probability = jax.nn.softmax(ordered, axis=-1)
  before = jnp.cumsum(probability, axis=-1) - probability
  least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
  return logits >= least


@functools.partial(jax.jit, static_argnames=("network", "samples", "sampling"))
def generate(
  network: Network,
  params: dict,
  tokens_PT: jax.Array,
  length_P: jax.Array,
  keys_P: jax.Array,
  *,
  samples: int,
  sampling: Sampling,
) -> Samples:
  """Continues each prompt S times.

  A prompt runs through the network once; after that each step runs one token of every sample,
  against cached keys and values (`policy.cache`), until all have ended. Each token is drawn with
  a key of its prompt, sample and place. So a prompt's samples do not depend, but for rounding, on
  the other prompts, on padding or on `samples`.

  Args:
    network: a decoder with a `LikelihoodHead`, whose language-model head is read.
    params: its parameters, nested.
    tokens_PT: int32, prompts, padded on the right.
    length_P: int32, tokens of each prompt, at least 1.
    keys_P: a random key for each prompt.
    samples: S.
    sampling: see `Sampling`.

  Raises:
    ValueError: the network has no language-model head.
  """
  if not network.implicit:
    raise ValueError(f"the network's head is {network.head}; expected a LikelihoodHead")
  modules = network.bind(params)
  decoder, layers = modules.backbone, layers_of(modules.backbone)
  head_VD = modules.whole_head().astype(jnp.float32)
  cap = network.backbone.logit_cap
  P, M = len(length_P), sampling.tokens
  end = jnp.asarray(sampling.end, jnp.int32)[None, None]
  each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  keys_PS = each(keys_P, jnp.arange(samples))

  def choose(h_PSD, step):
    logits = jnp.einsum(
      "psd,vd->psv", h_PSD.astype(jnp.float32), head_VD, precision=jax.lax.Precision.HIGHEST
    )
    if cap is not None:
      logits = cap * jnp.tanh(logits / cap)
    logits = jnp.broadcast_to(logits, (P, samples, logits.shape[-1]))
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys_PS, step)
    token_PS = draw(keys, logits, sampling)
    chosen = jnp.take_along_axis(logits, token_PS[..., None], axis=-1)[..., 0]
    return token_PS, chosen - jax.nn.logsumexp(logits, axis=-1)

  def write(state, token_PS, logp_PS, step):
    # What an ended sample draws is not kept.
    live = ~state["done"]
    token_PS = jnp.where(live, token_PS, 0)
    new = {"tokens": token_PS, "logp": jnp.where(live, logp_PS, 0.0)}
    for name, value_PS in new.items():
      whole = state[name]
      new[name] = jax.lax.dynamic_update_slice_in_dim(whole, value_PS[..., None], step, axis=2)
    ended = live & jnp.any(token_PS[..., None] == end, axis=-1)
    return (
      state
      | new
      | {
        "last": token_PS,
        "length": state["length"] + live,
        "done": state["done"] | ended,
      }
    )

  # The last token is read by no further one, so that there need be no room for its key.
  h_PD, caches = read_prompts(decoder, tokens_PT, length_P, samples=samples, longest=max(1, M - 1))
  nothing = jnp.zeros((P, samples), jnp.int32)
  state = {
    "tokens": jnp.zeros((P, samples, M), jnp.int32),
    "logp": jnp.zeros((P, samples, M), jnp.float32),
    "last": nothing,
    "length": nothing,
    "done": nothing > 0,
  }
  first = jnp.int32(0)
  state = write(state, *choose(h_PD[:, None], first), first)

  def go_on(carry):
    step, state, _ = carry
    return (step < M) & ~jnp.all(state["done"])

  def one(carry):
    step, state, caches = carry
    h_PSD, caches = read_tokens(decoder, layers, caches, state["last"], length_P, step - 1)
    return step + 1, write(state, *choose(h_PSD, step), step), caches

  _, state, _ = jax.lax.while_loop(go_on, one, (jnp.int32(1), state, caches))
  return Samples(state["tokens"], state["logp"], state["length"], state["done"])
